"""Learned layers that map the student's feature maps to the shape of the teacher's."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from cnn2gnn_jax.distillers.maps import adaptive_average_pool, smaller_size
from cnn2gnn_jax.networks.conv import Conv
from cnn2gnn_jax.networks.layers import linear_init
from cnn2gnn_jax.networks.norm import BatchNorm, at_least_float32


def conv(x: jax.Array, channels: int, kernel: int, *, name: str, stride: int = 1, use_bias: bool = True) -> jax.Array:
    """A convolution of (B, H, W, I) with padding kernel // 2 on all sides, initialized as in PyTorch, in x's dtype."""
    return Conv(
        channels,
        kernel,
        stride,
        padding=kernel // 2,
        use_bias=use_bias,
        dtype=x.dtype,
        param_dtype=at_least_float32(x.dtype),
        kernel_init=linear_init,
        name=name,
    )(x)


def transposed_conv(x: jax.Array, channels: int, *, name: str) -> jax.Array:
    """A transposed 4x4 convolution at stride 2 with padding 1: (B, H, W, I) to (B, 2H, 2W, channels)."""
    dilated = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), (0, 0, 1), (0, 0, 1), (0, 0, 0)])
    return conv(dilated, channels, 4, name=name)


def _ratio(student: tuple[int, ...], teacher: tuple[int, ...]) -> str:
    """The ratio of the student's size (H, W) to the teacher's: 'same', 'twice', 'half' or 'other'."""
    if student == teacher:
        return "same"
    if all(-(-s // 2) == t for s, t in zip(student, teacher, strict=True)):
        return "twice"
    if all(2 * s == t for s, t in zip(student, teacher, strict=True)):
        return "half"
    return "other"


def target_size(student: jax.Array, teacher: jax.Array) -> tuple[int, int]:
    """The height and width at which two feature maps are compared after a `Connector`.

    It is the teacher's size if the student's size is the same, twice (rounded up) or half of it. Otherwise it is the
    smaller of both, and the larger feature map is average-pooled.
    """
    if _ratio(student.shape[1:3], teacher.shape[1:3]) == "other":
        return smaller_size(student, teacher)
    return teacher.shape[1], teacher.shape[2]


class Connector(nn.Module):
    """Maps the student's feature map to the teacher's size and channels (Romero et al., 2015; Tian et al., 2020).

    It consists of a convolution, BatchNorm and, if `relu`, ReLU. The convolution is 1x1 if both feature maps have the
    same size, 3x3 at stride 2 if the student's is twice as large (rounded up), and a transposed 4x4 convolution at
    stride 2 if it is half as large. With any other ratio, average pooling is followed by a 1x1 convolution.

    Attributes:
        size: height and width of the output, the `target_size` of both feature maps.
        channels: channels of the teacher's feature map.
        relu: whether ReLU is applied at the end.
    """

    size: tuple[int, int]
    channels: int
    relu: bool

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Maps (B, H, W, I) to (B, *size, channels). The mask is (B,) bool, False for padding."""
        ratio = _ratio(x.shape[1:3], self.size)
        if ratio == "twice":
            x = conv(x, self.channels, 3, stride=2, name="conv")
        elif ratio == "half":
            x = transposed_conv(x, self.channels, name="conv")
        else:
            x = conv(adaptive_average_pool(x, *self.size), self.channels, 1, name="conv")
        x = BatchNorm(param_dtype=at_least_float32(x.dtype), name="norm")(x, True, mask)
        return nn.relu(x) if self.relu else x


def initialize(
    rng: jax.Array, modules: Mapping[str, nn.Module], inputs: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Initializes modules from the shapes of their inputs.

    Args:
      rng: the key.
      modules: modules by their names.
      inputs: their inputs, or shapes of these, by the same names.

    Returns:
      The parameters and the BatchNorm statistics, each by the names of the modules.
    """
    params, statistics = {}, {}
    for key, (name, module) in zip(jax.random.split(rng, max(len(modules), 1)), modules.items(), strict=False):
        x = inputs[name]
        variables = module.lazy_init(key, jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype))
        params[name] = variables["params"]
        if "batch_stats" in variables:
            statistics[name] = variables["batch_stats"]
    return params, statistics


def apply(
    name: str, module: nn.Module, params: Mapping[str, Any], statistics: dict[str, Any], *inputs: Any, **options: Any
) -> tuple[jax.Array, dict[str, Any]]:
    """Applies the module called `name`. Returns its output, and the statistics of all modules with its own updated."""
    variables = {"params": params[name], "batch_stats": statistics.get(name, {})}
    output, updates = module.apply(variables, *inputs, mutable=["batch_stats"], **options)
    batch_stats = updates.get("batch_stats")
    return output, statistics | ({name: batch_stats} if batch_stats else {})
