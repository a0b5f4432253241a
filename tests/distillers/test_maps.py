"""Tests of the functions and layers that bring the feature maps of two networks to the same shape."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from cnn2gnn_jax.distillers import connectors, maps


def test_pooling_of_a_multiple_is_the_mean_of_tiles():
    x = jax.random.normal(jax.random.key(0), (2, 6, 8, 3))
    np.testing.assert_allclose(maps.adaptive_average_pool(x, 3, 2), x.reshape(2, 3, 2, 2, 4, 3).mean((2, 4)), atol=1e-6)


def test_pooling_windows_overlap_where_sizes_do_not_divide():
    x = jnp.arange(5.0).reshape(1, 5, 1, 1)
    # The means of the rows 0 to 1, 1 to 3, and 3 to 4.
    np.testing.assert_allclose(maps.adaptive_average_pool(x, 3, 1).ravel(), [0.5, 2, 3.5])


def test_maps_of_the_same_size_are_not_changed():
    x = jnp.ones((1, 3, 4, 2))
    assert maps.adaptive_average_pool(x, 3, 4) is x


def test_height_and_width_are_pooled_independently():
    x, y = maps.to_smaller_size(jnp.ones((1, 3, 8, 2)), jnp.ones((1, 5, 4, 7), jnp.bfloat16))
    assert x.shape == (1, 3, 4, 2) and y.shape == (1, 3, 4, 7)
    assert y.dtype == jnp.float32


def test_rows_are_normalized_and_zero_stays_zero():
    x = jnp.array([[3.0, 4.0], [0.0, 0.0], [1e-13, 0.0], [1e15, 1e15]])
    np.testing.assert_allclose(maps.normalize_rows(x), [[0.6, 0.8], [0, 0], [0.1, 0], [0.5**0.5] * 2], rtol=1e-6)
    gradient = jax.grad(lambda x: jnp.sum(maps.normalize_rows(x)))(x)
    assert np.all(np.isfinite(gradient))


def test_the_compiled_gradient_of_normalized_rows_equals_the_formula():
    x = jax.random.normal(jax.random.key(0), (50, 7))
    weights = jax.random.normal(jax.random.key(1), x.shape)
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(weights * maps.normalize_rows(x))))(x)
    length = np.linalg.norm(x, axis=-1, keepdims=True)
    u, w = np.asarray(x) / length, np.asarray(weights)
    np.testing.assert_allclose(gradient, (w - u * np.sum(u * w, -1, keepdims=True)) / length, rtol=1e-4, atol=1e-6)


def test_one_channel_has_the_same_attention():
    x = jax.random.normal(jax.random.key(0), (4, 6, 5, 9))
    assert maps.one_channel(x).shape == (4, 6, 5, 1)
    np.testing.assert_allclose(maps.attention(maps.one_channel(x)), maps.attention(x), rtol=1e-6)


@pytest.mark.parametrize(
    ("student", "teacher", "answer"),
    [
        ((8, 8, 4), (8, 8, 4), True),
        ((8, 8, 4), (9, 8, 4), True),  # the stem is not compared
        ((8, 8, 4), (8, 4, 4), True),
        ((8, 8, 4), (8, 9, 4), False),
        ((8, 4, 4), (8, 8, 4), False),
        ((8, 8, 4), (8, 8, 8, 5), False),
    ],
)
def test_teacher_maps_not_larger(student, teacher, answer):
    sides = (tuple(jnp.zeros((1, side, side, 2)) for side in sizes) for sizes in (student, teacher))
    assert maps.teacher_maps_not_larger(*sides) is answer


def test_the_last_stages_are_paired():
    assert maps.stage_pairs(("f0", "f1", "f2"), ("g0", "g1", "g2", "g3")) == [("f1", "g2"), ("f2", "g3")]
    assert maps.stage_pairs(("f0", "f1", "f2", "f3"), ("g0", "g1", "g2")) == [("f2", "g1"), ("f3", "g2")]


@pytest.mark.parametrize(
    ("student", "teacher", "target", "kernel"),
    [
        ((8, 8), (8, 8), (8, 8), 1),
        ((16, 16), (8, 8), (8, 8), 3),
        ((21, 21), (11, 11), (11, 11), 3),
        ((4, 4), (8, 8), (8, 8), 4),
        ((16, 16), (4, 4), (4, 4), 1),
        ((5, 5), (8, 8), (5, 5), 1),
        ((8, 4), (4, 4), (4, 4), 1),
        ((4, 9), (9, 4), (4, 4), 1),
    ],
)
def test_connector(student, teacher, target, kernel):
    s, t = jnp.zeros((2, *student, 3)), jnp.zeros((2, *teacher, 5))
    assert connectors.target_size(s, t) == target
    module = connectors.Connector(target, 5, relu=True)
    out, variables = jax.eval_shape(lambda: module.init_with_output(jax.random.key(0), s))
    assert out.shape == (2, *target, 5)
    assert variables["params"]["conv"]["kernel"].shape == (kernel, kernel, 3, 5)
    assert variables["params"]["conv"]["bias"].shape == (5,)


def test_transposed_conv_equals_the_one_of_jax():
    class Double(connectors.nn.Module):
        @connectors.nn.compact
        def __call__(self, x):
            return connectors.transposed_conv(x, 5, name="conv")

    x = jax.random.normal(jax.random.key(0), (2, 3, 4, 6))
    y, variables = jax.jit(Double().init_with_output)(jax.random.key(1), x)
    kernel = variables["params"]["conv"]["kernel"]
    expected = lax.conv_transpose(x, kernel, (2, 2), [(2, 2), (2, 2)], dimension_numbers=("NHWC", "HWIO", "NHWC"))
    assert y.shape == (2, 6, 8, 5)
    np.testing.assert_allclose(y, expected, atol=1e-5)
