"""Batch normalisation over the global batch, with padding images left out (Ioffe and Szegedy, 2015)."""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from cnn2gnn_jax.runtime.collectives import psum


def at_least_float32(dtype: DTypeLike) -> jnp.dtype:
    """The dtype of parameters, statistics and logits beside computation in `dtype`: float64 stays, less is raised."""
    return jnp.promote_types(jnp.float32, dtype)


def batch_moments(x: jax.Array, mask: jax.Array | None = None) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Mean and biased variance of each channel over the unmasked rows of the global batch.

    Sums and counts, not means, are added over devices, so devices may hold different numbers of unmasked rows.

    Args:
        x: (B, ..., C), float32 or wider.
        mask: (B,) bool, False where the row is padding; None where every row counts.

    Returns:
        mean (C,), variance (C,), and the number of values behind each of them, (). All are 0 where no row counts.
    """
    axes = tuple(range(x.ndim - 1))
    keep_Bx1 = None if mask is None else mask.reshape(mask.shape + (1,) * (x.ndim - 1))

    def total(values: jax.Array) -> jax.Array:
        return psum(jnp.sum(values if keep_Bx1 is None else jnp.where(keep_Bx1, values, 0), axes))

    rows = jnp.asarray(x.shape[0], x.dtype) if mask is None else jnp.sum(mask, dtype=x.dtype)
    count = psum(rows * math.prod(x.shape[1:-1]))
    divisor = jnp.maximum(count, 1)
    mean = total(x) / divisor
    # Two passes: E[x^2] - E[x]^2 cancels in float32 where the mean is large beside the deviation.
    variance = total(jnp.square(x - mean)) / divisor
    return mean, variance, count


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _normalize_by_batch(
    x: jax.Array, scale: jax.Array, bias: jax.Array, mask: jax.Array | None, epsilon: float
) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
    """`x`, (B, ..., C), normalised by the moments of the global batch; and these, which pass no gradient on."""
    moments = batch_moments(x, mask)
    mean, var, _ = moments
    return (x - mean) * (scale * lax.rsqrt(var + epsilon)) + bias, moments


def _normalize_forward(
    x: jax.Array, scale: jax.Array, bias: jax.Array, mask: jax.Array | None, epsilon: float
) -> tuple[Any, Any]:
    y, moments = _normalize_by_batch(x, scale, bias, mask, epsilon)
    return (y, moments), (x, scale, mask, moments)


def _normalize_backward(epsilon: float, saved: Any, cotangents: Any) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    """The gradient in closed form: two sums over the batch, where differentiating the moments takes four."""
    (x, scale, mask, (mean, var, count)), (to_y, _) = saved, cotangents
    axes = tuple(range(x.ndim - 1))
    inverse = lax.rsqrt(var + epsilon)
    normalized = (x - mean) * inverse
    to_bias, to_scale = jnp.sum(to_y, axes), jnp.sum(to_y * normalized, axes)
    sum_bias, sum_scale = psum((to_bias, to_scale))
    through_moments = (sum_bias + normalized * sum_scale) / jnp.maximum(count, 1)
    if mask is not None:  # padding has no part in the moments
        through_moments = jnp.where(mask.reshape(mask.shape + (1,) * (x.ndim - 1)), through_moments, 0)
    to_x = scale * inverse * (to_y - through_moments)
    return to_x, to_scale.astype(scale.dtype), to_bias.astype(scale.dtype), None


_normalize_by_batch.defvjp(_normalize_forward, _normalize_backward)


class BatchNorm(nn.Module):
    """Normalises each channel of (B, ..., C); running statistics in the collection `batch_stats` (`mean`, `var`).

    Training uses the moments of the global batch and updates the running ones as
    `momentum * old + (1 - momentum) * new`, the variance biased as in Flax (PyTorch stores the unbiased one).
    Statistics are float32, or float64 where `x` is; the output has the dtype of `x`.
    A batch without an unmasked row leaves the running statistics as they are.

    Attributes:
        momentum: share of the old running statistics that stays.
        epsilon: added to the variance.
        param_dtype: of scale, bias and the running statistics.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """x: (B, ..., C); mask: (B,) bool, False for padding, or None. Returns the shape and dtype of `x`."""
        shape = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, shape, self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, shape, self.param_dtype)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape, self.param_dtype)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape, self.param_dtype)

        wide = x.astype(at_least_float32(x.dtype))
        if train and not self.is_initializing():
            y, (mean, var, count) = _normalize_by_batch(wide, scale, bias, mask, self.epsilon)
            keep = jnp.where(count > 0, self.momentum, 1.0)
            for running, new in ((running_mean, mean), (running_var, var)):
                running.value = (keep * running.value + (1 - keep) * new).astype(running.value.dtype)
        else:
            y = (wide - running_mean.value) * (scale * lax.rsqrt(running_var.value + self.epsilon)) + bias
        return y.astype(x.dtype)
