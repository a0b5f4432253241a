"""What the families share: their outputs, convolutions and stems."""

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

# N(0, 2 / (k * k * out)): Kaiming's fan-out for ReLU (He et al., 2015), which VGG and WRN write out by hand.
conv_init: Initializer = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
# U(-1/sqrt(in), 1/sqrt(in)), PyTorch's default for a linear layer.
linear_init: Initializer = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class Outputs(NamedTuple):
    """What a network returns of a batch; under jit, what is not used is not computed.

    Attributes:
        logits: (B, classes), float32 (float64 in a float64 network).
        features: (f0, f1, ..., fn), each (B, H_i, W_i, C_i): the stem's output and each stage's.
        preactivations: as many maps of the same shapes, before the ReLU that reads them.
        pooled: (B, C), what the classifier reads; dtype of the logits.
    """

    logits: jax.Array
    features: tuple[jax.Array, ...]
    preactivations: tuple[jax.Array, ...]
    pooled: jax.Array


def conv(channels: int, kernel: int, stride: int = 1, *, dtype: DTypeLike, name: str, use_bias: bool = False) -> Conv:
    """A square convolution padded by kernel // 2 on every side, as in PyTorch; 'SAME' pads otherwise at stride 2."""
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
    """2x2 max-pool at stride 2, (B, H, W, C) -> (B, H // 2, W // 2, C); a side of 1 pixel stays.

    By comparing slices: on the CPU its gradient runs about 5 times as fast as that of XLA's windowed maximum. The
    gradient of `jnp.max` would not do: it looks for values equal to the maximum, and XLA may compute both anew, with
    different rounding, so that none is equal and the gradient is lost.
    """
    for axis in (1, 2):
        end = x.shape[axis] // 2 * 2
        if end:
            even, odd = (lax.slice_in_dim(x, start, end, 2, axis) for start in (0, 1))
            x = jnp.where(even >= odd, even, odd)
    return x


def stem_pool(x: jax.Array, stem: str) -> jax.Array:
    """3x3 max-pool at stride 2 for 'downsample', nothing for 'cifar'."""
    return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1))) if stem == "downsample" else x


def global_average_pool(x: jax.Array) -> jax.Array:
    """(B, H, W, C) to (B, C), in float32 or wider."""
    return jnp.mean(x, (1, 2), dtype=at_least_float32(x.dtype))


def classifier(num_classes: int, kernel_init: Initializer, dtype: DTypeLike) -> nn.Dense:
    """The linear layer after pooling, in float32 or wider; its bias starts at 0."""
    wide = at_least_float32(dtype)
    return nn.Dense(num_classes, dtype=wide, param_dtype=wide, kernel_init=kernel_init, name="classifier")
