"""Tests that the convolution module and the max-pooling equal those of Flax Linen."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn2gnn_jax.networks import layers
from cnn2gnn_jax.networks.conv import Conv


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
