"""Learned layers between the student's feature maps and the teacher's."""

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
    """A convolution of (B, H, W, I) in its own dtype, padded by kernel // 2 on all sides, initialised as in PyTorch."""
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


def double(x: jax.Array, channels: int, *, name: str) -> jax.Array:
    """The transposed 4x4 convolution at stride 2 and padding 1: (B, H, W, I) to (B, 2H, 2W, channels)."""
    spread = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), (0, 0, 1), (0, 0, 1), (0, 0, 0)])
    return conv(spread, channels, 4, name=name)


def _ratio(student: tuple[int, ...], teacher: tuple[int, ...]) -> str:
    """How the sides (H, W) of the student's map relate to the teacher's: same, twice, half or other."""
    if student == teacher:
        return "same"
    if all(-(-s // 2) == t for s, t in zip(student, teacher, strict=True)):
        return "twice"
    if all(2 * s == t for s, t in zip(student, teacher, strict=True)):
        return "half"
    return "other"


def target_size(student: jax.Array, teacher: jax.Array) -> tuple[int, int]:
    """The height and width at which a `Connector` brings two maps together: the teacher's where the student's are the
    same, twice (rounded up) or half as large; otherwise the smaller, and the larger map is average-pooled."""
    if _ratio(student.shape[1:3], teacher.shape[1:3]) == "other":
        return smaller_size(student, teacher)
    return teacher.shape[1], teacher.shape[2]


class Connector(nn.Module):
    """The student's map at the teacher's size and channels: a convolution, BatchNorm and, with `relu`, ReLU.

    The convolution is 1x1 for maps of one size, 3x3 at stride 2 where the student's is twice as large (rounded up),
    transposed 4x4 at stride 2 where it is half as large; a map of any other size is pooled before a 1x1 convolution
    (Romero et al., 2015; layers as in Tian et al., 2020).

    Attributes:
        size: `target_size` of both maps.
        channels: the teacher's.
        relu: whether a ReLU follows.
    """

    size: tuple[int, int]
    channels: int
    relu: bool

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """(B, H, W, I) to (B, *size, channels); mask: (B,) bool, False for padding."""
        ratio = _ratio(x.shape[1:3], self.size)
        if ratio == "twice":
            x = conv(x, self.channels, 3, stride=2, name="conv")
        elif ratio == "half":
            x = double(x, self.channels, name="conv")
        else:
            x = conv(adaptive_average_pool(x, *self.size), self.channels, 1, name="conv")
        x = BatchNorm(param_dtype=at_least_float32(x.dtype), name="norm")(x, True, mask)
        return nn.relu(x) if self.relu else x


def initialise(
    rng: jax.Array, modules: Mapping[str, nn.Module], inputs: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters and BatchNorm statistics of each module, by its name, from the shape of its input."""
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
    """The output of the module called `name`, and the statistics of all with its own updated."""
    variables = {"params": params[name], "batch_stats": statistics.get(name, {})}
    output, changed = module.apply(variables, *inputs, mutable=["batch_stats"], **options)
    found = changed.get("batch_stats")
    return output, statistics | ({name: found} if found else {})
