"""Tests that the outputs and gradients of the convolution equal those of XLA, finite differences and float64."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.test_util import check_grads

from cnn2gnn_jax.networks.conv import Conv, convolve


def plain(x, kernel, stride, padding):
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), [(padding, padding)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def with_gradients(function, stride, padding):
    """Returns a compiled function that computes the output and the gradients with respect to both arguments."""

    @jax.jit
    def run(x, kernel, cotangent_seed=0):
        y, pull = jax.vjp(lambda x, kernel: function(x, kernel, stride, padding), x, kernel)
        return y, *pull(jnp.cos(jnp.arange(y.size) + cotangent_seed).reshape(y.shape).astype(y.dtype))

    return run


def operands(size, kernel, seed=0, inputs=3, outputs=5):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(2, *size, inputs)), rng.normal(size=(kernel, kernel, inputs, outputs))


# (height, width), size of the kernel, stride, padding. Images that are not smaller than the kernel go to XLA's
# convolution, so one case of them is enough to test that the arguments are passed on.
CASES = [
    ((9, 7), 3, 2, 1),
    ((1, 1), 3, 1, 1),
    ((1, 1), 3, 2, 1),
    ((2, 2), 3, 1, 1),
    ((2, 3), 3, 2, 1),
    ((2, 4), 3, 1, 1),
    ((2, 2), 7, 2, 3),
    ((5, 4), 7, 1, 3),
    ((6, 9), 7, 2, 3),
]


@pytest.mark.parametrize(("size", "kernel", "stride", "padding"), CASES)
def test_output_and_gradients_equal_those_of_xla(size, kernel, stride, padding):
    with jax.enable_x64():
        arguments = operands(size, kernel)
        actual = with_gradients(convolve, stride, padding)(*arguments)
        expected = with_gradients(plain, stride, padding)(*arguments)
        for ours, xlas in zip(actual, expected, strict=True):
            np.testing.assert_allclose(ours, xlas, rtol=1e-12, atol=1e-12)
            assert np.abs(xlas).max() > 0.1


@pytest.mark.parametrize(("size", "kernel", "stride", "padding"), CASES)
def test_gradients_equal_finite_differences(size, kernel, stride, padding):
    with jax.enable_x64():
        x, weights = operands(size, kernel)
        check_grads(lambda x, k: convolve(x, k, stride, padding), (x, weights), order=1, modes=["rev"], eps=1e-4)


@pytest.mark.parametrize(("size", "kernel", "stride", "padding"), CASES)
def test_float32_equals_float64(size, kernel, stride, padding):
    arguments = operands(size, kernel)
    single = with_gradients(convolve, stride, padding)(*(np.float32(a) for a in arguments))
    with jax.enable_x64():
        double = with_gradients(convolve, stride, padding)(*arguments)
    for low, high in zip(single, double, strict=True):
        np.testing.assert_allclose(low, high, rtol=1e-5, atol=1e-5 * np.abs(high).max())


def test_bfloat16():
    arguments = [jnp.asarray(a, jnp.bfloat16) for a in operands((2, 2), 3)]
    actual = with_gradients(convolve, 2, 1)(*arguments)
    expected = with_gradients(plain, 2, 1)(*(a.astype(jnp.float32) for a in arguments))
    for ours, xlas in zip(actual, expected, strict=True):
        assert ours.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.float32(ours), xlas, atol=2e-2 * np.abs(xlas).max())


def test_inside_a_loop():
    x, kernel = (np.float32(a) for a in operands((2, 2), 3, outputs=3))
    run = with_gradients(convolve, 1, 1)
    _, actual = jax.jit(lambda: lax.scan(lambda c, seed: (c, run(x, kernel, seed)), 0, jnp.arange(3.0)))()
    for seed in range(3):
        expected = with_gradients(plain, 1, 1)(x, kernel, float(seed))
        for ours, xlas in zip(actual, expected, strict=True):
            np.testing.assert_allclose(ours[seed], xlas, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shared_images", [True, False])
def test_two_layers_under_vmap(shared_images):
    """Tests the case of several seeds that train together.

    Each seed has its own kernel. In the first layer they may share the images; in the second, each has its own inputs.
    """
    x = np.stack([np.float32(operands((2, 3), 3, seed)[0]) for seed in range(3)])
    kernels = np.stack([np.float32(operands((2, 3), 3, seed, outputs=3)[1]) for seed in range(3)])

    def gradients(convolution):
        def loss(kernel, x):
            hidden = nn.relu(convolution(x, kernel, 1, 1))
            return jnp.mean(convolution(hidden, kernel[::-1], 2, 1) ** 2)

        return jax.grad(loss, argnums=(0, 1))

    axes = (0, None) if shared_images else (0, 0)
    images = x[0] if shared_images else x
    actual = jax.jit(jax.vmap(gradients(convolve), axes))(kernels, images)
    single = jax.jit(gradients(plain))
    for seed in range(3):
        expected = single(kernels[seed], images if shared_images else images[seed])
        for ours, xlas in zip(actual, expected, strict=True):
            np.testing.assert_allclose(ours[seed], xlas, rtol=1e-4, atol=1e-4 * np.abs(xlas).max())


@pytest.mark.parametrize(("use_bias", "dtype"), [(True, jnp.float32), (False, jnp.bfloat16)])
def test_the_module_has_the_parameters_and_output_of_flax(use_bias, dtype):
    ours = Conv(4, 3, stride=2, padding=1, use_bias=use_bias, dtype=dtype)
    flax = nn.Conv(4, (3, 3), 2, ((1, 1), (1, 1)), use_bias=use_bias, dtype=dtype, kernel_init=ours.kernel_init)
    x = np.float32(operands((7, 6), 3)[0])
    variables, theirs = jax.jit(lambda key: (ours.init(key, x), flax.init(key, x)))(jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, variables, theirs)
    if use_bias:
        variables["params"]["bias"] += jnp.arange(4.0)
    actual, expected = jax.jit(lambda v, x: (ours.apply(v, x), flax.apply(v, x)))(variables, x)
    assert actual.dtype == dtype
    np.testing.assert_array_equal(np.float32(actual), np.float32(expected))
