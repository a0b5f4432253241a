"""The convolution with gradients of its own and the max-pool, each against XLA's."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from cnn2gnn_jax.networks import layers
from cnn2gnn_jax.networks.conv import Conv, convolve


def xla_convolve(x, kernel, stride, padding):
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), [(padding, padding)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def value_and_gradients(function, x, kernel):
    def loss(x, kernel):
        y = function(x, kernel)
        return jnp.sum(jnp.sin(y)), y

    (_, y), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(x, kernel)
    return y, gradients


@pytest.mark.parametrize(
    ("size", "stride", "padding", "sides"),
    [
        (3, 1, 1, (8, 8)),
        (3, 1, 1, (1, 1)),
        (3, 2, 1, (8, 8)),
        (3, 2, 1, (9, 6)),
        (3, 2, 1, (1, 2)),
        (1, 1, 0, (5, 5)),
        (1, 2, 0, (7, 8)),
        (7, 2, 3, (9, 6)),
        (7, 2, 3, (1, 1)),
        (4, 2, 1, (6, 6)),
        (3, 1, 0, (5, 4)),
    ],
)
def test_convolution_and_its_gradients_equal_those_of_xla(size, stride, padding, sides):
    rng = np.random.default_rng(0)
    with jax.enable_x64():
        x = rng.normal(size=(3, *sides, 2))
        kernel = rng.normal(size=(size, size, 2, 4))
        ours, xla = (
            jax.jit(partial(value_and_gradients, partial(f, stride=stride, padding=padding)))(x, kernel)
            for f in (convolve, xla_convolve)
        )
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-11), ours, xla)


def test_convolution_under_vmap_and_scan():
    """As the seeds of a sweep and the steps of a chunk use it."""
    x = jax.random.normal(jax.random.key(0), (2, 3, 5, 5, 2))
    kernels = jax.random.normal(jax.random.key(1), (2, 3, 3, 2, 4))
    gradients = partial(value_and_gradients, partial(convolve, stride=2, padding=1))
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
    one_by_one = [gradients(a, b) for a, b in zip(x, kernels, strict=True)]
    expected = jax.tree.map(lambda *a: jnp.stack(a), *one_by_one)
    jax.tree.map(close, jax.jit(jax.vmap(gradients))(x, kernels), expected)
    _, scanned = jax.jit(lambda *a: lax.scan(lambda c, ab: (c, gradients(*ab)), 0, a))(x, kernels)
    jax.tree.map(close, scanned, expected)


@pytest.mark.parametrize("stride", [1, 2])
def test_conv_has_the_parameters_and_values_of_linen(stride):
    x = jax.random.normal(jax.random.key(0), (2, 6, 6, 3))
    ours = Conv(4, 3, stride, padding=1, use_bias=True)
    linen = nn.Conv(4, (3, 3), stride, padding=1)
    variables = ours.init(jax.random.key(1), x)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, linen.init(jax.random.key(1), x))
    np.testing.assert_allclose(ours.apply(variables, x), linen.apply(variables, x), rtol=1e-5, atol=1e-5)


def test_conv_in_bfloat16_keeps_float32_parameters():
    x = jnp.ones((1, 4, 4, 2), jnp.bfloat16)
    conv = Conv(3, 3, padding=1, use_bias=True, dtype=jnp.bfloat16)
    variables = conv.init(jax.random.key(0), x)
    gradients = jax.grad(lambda v: jnp.sum(conv.apply(v, x).astype(jnp.float32)))(variables)
    assert conv.apply(variables, x).dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves((variables, gradients))} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize("sides", [(8, 8), (7, 5)])
def test_max_pool_equals_that_of_linen(sides):
    x = jax.random.normal(jax.random.key(0), (2, *sides, 3))

    def linen(x):
        return nn.max_pool(x, (2, 2), (2, 2))

    np.testing.assert_array_equal(layers.max_pool(x), linen(x))
    ours, theirs = (jax.grad(lambda x, f=f: jnp.sum(jnp.sin(f(x))))(x) for f in (layers.max_pool, linen))
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_max_pool_keeps_a_side_of_one_pixel():
    x = jax.random.normal(jax.random.key(0), (2, 1, 4, 3))
    np.testing.assert_array_equal(layers.max_pool(x), x.reshape(2, 1, 2, 2, 3).max(3))
    np.testing.assert_array_equal(layers.max_pool(x[:, :, :1]), x[:, :, :1])
