"""Batch normalization (Ioffe and Szegedy, 2015) over the global batch, which ignores padding."""

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
    """The dtype of parameters, statistics and logits of a network that computes in `dtype`: float32 or wider."""
    return jnp.promote_types(jnp.float32, dtype)


def batch_moments(x: jax.Array, mask: jax.Array | None = None) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Mean and biased variance of each channel over the images of the global batch that are not padding.

    Devices exchange sums and counts instead of means, so they may have different numbers of images.

    Args:
        x: (B, ..., C), float32 or wider.
        mask: (B,) bool, False for padding; None if there is no padding.

    Returns:
        mean (C,), variance (C,), and the number of values per channel, (). All are 0 if all images are padding.
    """
    axes = tuple(range(x.ndim - 1))
    mask_Bx1 = None if mask is None else mask.reshape(mask.shape + (1,) * (x.ndim - 1))

    def total(values: jax.Array) -> jax.Array:
        return psum(jnp.sum(values if mask_Bx1 is None else jnp.where(mask_Bx1, values, 0), axes))

    rows = jnp.asarray(x.shape[0], x.dtype) if mask is None else jnp.sum(mask, dtype=x.dtype)
    count = psum(rows * math.prod(x.shape[1:-1]))
    divisor = jnp.maximum(count, 1)
    mean = total(x) / divisor
    # E[x^2] - E[x]^2 would lose its digits in float32 if the mean is much larger than the standard deviation.
    variance = total(jnp.square(x - mean)) / divisor
    return mean, variance, count


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _normalize_by_batch(
    x: jax.Array, scale: jax.Array, bias: jax.Array, mask: jax.Array | None, epsilon: float
) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
    """Normalizes `x`, (B, ..., C), by the moments of the global batch. Also returns the moments, without gradient."""
    moments = batch_moments(x, mask)
    mean, var, _ = moments
    return (x - mean) * (scale * lax.rsqrt(var + epsilon)) + bias, moments


def _normalize_forward(
    x: jax.Array, scale: jax.Array, bias: jax.Array, mask: jax.Array | None, epsilon: float
) -> tuple[Any, Any]:
    y, moments = _normalize_by_batch(x, scale, bias, mask, epsilon)
    return (y, moments), (x, scale, mask, moments)


def _normalize_backward(
    epsilon: float, residuals: Any, cotangents: Any
) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    """The gradient in closed form. It needs two sums over the batch; automatic differentiation would need four."""
    (x, scale, mask, (mean, var, count)), (grad_y, _) = residuals, cotangents
    axes = tuple(range(x.ndim - 1))
    inverse_std = lax.rsqrt(var + epsilon)
    normalized = (x - mean) * inverse_std
    grad_bias, grad_scale = jnp.sum(grad_y, axes), jnp.sum(grad_y * normalized, axes)
    global_grad_bias, global_grad_scale = psum((grad_bias, grad_scale))
    grad_moments = (global_grad_bias + normalized * global_grad_scale) / jnp.maximum(count, 1)
    if mask is not None:  # padding does not contribute to the moments
        grad_moments = jnp.where(mask.reshape(mask.shape + (1,) * (x.ndim - 1)), grad_moments, 0)
    grad_x = scale * inverse_std * (grad_y - grad_moments)
    return grad_x, grad_scale.astype(scale.dtype), grad_bias.astype(scale.dtype), None


_normalize_by_batch.defvjp(_normalize_forward, _normalize_backward)


class BatchNorm(nn.Module):
    """Normalizes each channel of (B, ..., C). Running statistics `mean` and `var` are in the collection `batch_stats`.

    Training uses the moments of the global batch, and updates the running statistics to
    `momentum * old + (1 - momentum) * new`. The running variance is biased as in Flax (PyTorch stores the unbiased
    variance). Statistics are float32, or float64 if `x` is float64. The output has the dtype of `x`. If all images of a
    batch are padding, the running statistics do not change.

    Attributes:
        momentum: weight of the old running statistics in an update.
        epsilon: added to the variance.
        param_dtype: dtype of scale, bias and the running statistics.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """Normalizes `x`, (B, ..., C). The mask is (B,) bool, False for padding. Returns the shape and dtype of `x`."""
        shape = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, shape, self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, shape, self.param_dtype)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape, self.param_dtype)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape, self.param_dtype)

        x_float32 = x.astype(at_least_float32(x.dtype))
        if train and not self.is_initializing():
            y, (mean, var, count) = _normalize_by_batch(x_float32, scale, bias, mask, self.epsilon)
            momentum = jnp.where(count > 0, self.momentum, 1.0)
            for running, new in ((running_mean, mean), (running_var, var)):
                running.value = (momentum * running.value + (1 - momentum) * new).astype(running.value.dtype)
        else:
            y = (x_float32 - running_mean.value) * (scale * lax.rsqrt(running_var.value + self.epsilon)) + bias
        return y.astype(x.dtype)
