"""Layers and outputs that all families of networks share."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Initializer
from jax import lax
from jax.typing import DTypeLike

from cnn2gnn_jax.networks.conv import Conv
from cnn2gnn_jax.networks.norm import at_least_float32

STEMS = ("cifar", "downsample")

# N(0, 2 / (k * k * out)): Kaiming initialization with fan-out for ReLU (He et al., 2015).
conv_init: Initializer = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
# U(-1/sqrt(in), 1/sqrt(in)): PyTorch's default for a linear layer.
linear_init: Initializer = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class Outputs(NamedTuple):
    """The outputs of a network for a batch. Under jit, outputs that are not used are not computed.

    Attributes:
        logits: (B, classes), float32, or float64 in a float64 network.
        features: (f0, f1, ..., fn), each (B, H_i, W_i, C_i): the feature maps of the stem and of each stage.
        preactivations: the feature maps before their ReLU, with the same shapes as `features`.
        pooled: (B, C), the input of the classifier, in the dtype of the logits.
    """

    logits: jax.Array
    features: tuple[jax.Array, ...]
    preactivations: tuple[jax.Array, ...]
    pooled: jax.Array


def conv(channels: int, kernel: int, stride: int = 1, *, dtype: DTypeLike, name: str, use_bias: bool = False) -> Conv:
    """A convolution with padding kernel // 2 on all sides, as in PyTorch. ('SAME' pads differently at stride 2.)"""
    return Conv(
        channels,
        kernel,
        stride,
        padding=kernel // 2,
        use_bias=use_bias,
        dtype=dtype,
        param_dtype=at_least_float32(dtype),
        kernel_init=conv_init,
        name=name,
    )


def stem_conv(channels: int, stem: str, *, dtype: DTypeLike, name: str, use_bias: bool = False) -> Conv:
    """The first convolution: 3x3 at stride 1 for 'cifar', 7x7 at stride 2 for 'downsample'."""
    kernel, stride = {"cifar": (3, 1), "downsample": (7, 2)}[stem]
    return conv(channels, kernel, stride, dtype=dtype, name=name, use_bias=use_bias)


def max_pool(x: jax.Array) -> jax.Array:
    """2x2 max-pooling at stride 2, (B, H, W, C) -> (B, H // 2, W // 2, C). A height or width of 1 is kept.

    It compares slices. On the CPU, its gradient is about 5 times as fast as that of XLA's windowed maximum. `jnp.max`
    would not do: its gradient goes to the values that equal the maximum, but XLA may recompute both with different
    rounding. Then no value equals the maximum, and the gradient is lost.
    """
    for axis in (1, 2):
        end = x.shape[axis] // 2 * 2
        if end:
            even, odd = (lax.slice_in_dim(x, start, end, 2, axis) for start in (0, 1))
            x = jnp.where(even >= odd, even, odd)
    return x


def stem_pool(x: jax.Array, stem: str) -> jax.Array:
    """3x3 max-pooling at stride 2 for 'downsample'; the identity for 'cifar'."""
    return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1))) if stem == "downsample" else x


def global_average_pool(x: jax.Array) -> jax.Array:
    """The mean over all pixels, (B, H, W, C) to (B, C), in float32 or wider."""
    return jnp.mean(x, (1, 2), dtype=at_least_float32(x.dtype))


def classifier(num_classes: int, kernel_init: Initializer, dtype: DTypeLike) -> nn.Dense:
    """The linear layer after pooling, in float32 or wider. Its bias is initialized to 0."""
    dtype = at_least_float32(dtype)
    return nn.Dense(num_classes, dtype=dtype, param_dtype=dtype, kernel_init=kernel_init, name="classifier")
