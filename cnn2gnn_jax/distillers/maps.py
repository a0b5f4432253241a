"""Functions that pair the feature maps of two networks, bring them to the same size, and normalize them."""

import jax
import jax.numpy as jnp
import numpy as np

from cnn2gnn_jax.networks import Outputs
from cnn2gnn_jax.networks.norm import at_least_float32
from cnn2gnn_jax.runtime.errors import UserError


def to_float32(x: jax.Array) -> jax.Array:
    """Converts `x` to float32, unless it is wider."""
    return x.astype(at_least_float32(x.dtype))


def require_maps(method: str, field: str, student: Outputs, teacher: Outputs | None) -> None:
    """Checks that both networks are CNNs, which return the feature maps of the stem and of at least two stages.

    Args:
      method: the name of the method, for the error.
      field: 'features' or 'preactivations'.
      student: the outputs of the student, or their shapes.
      teacher: the outputs of the teacher, or their shapes.

    Raises:
      UserError: a network does not return these feature maps. This is the case for a graph student.
    """
    for role, outputs in (("student", student), ("teacher", teacher)):
        maps = () if outputs is None else getattr(outputs, field)
        if len(maps) < 3:
            raise UserError(
                f"the method {method} compares the {field} of two CNNs, but the {role} gives {len(maps)} such maps: "
                "choose a CNN, or a method that uses only logits or pooled features (kd, dkd, ccd, rkd, pkt, crd)"
            )


def stage_pairs(student: tuple[jax.Array, ...], teacher: tuple[jax.Array, ...]) -> list[tuple[jax.Array, jax.Array]]:
    """Pairs the feature maps f1..fn of the stages of both networks, without the stem.

    If the numbers of stages differ, the last stages are paired. For example, f2, f3, f4 of a network with four stages
    are paired with f1, f2, f3 of one with three. Thus the last feature maps are always compared.
    """
    n = min(len(student), len(teacher)) - 1
    return list(zip(student[-n:], teacher[-n:], strict=True))


def teacher_maps_not_larger(student: tuple[jax.Array, ...], teacher: tuple[jax.Array, ...]) -> bool:
    """Whether no feature map of the teacher has more rows or columns than the student's in the same pair."""
    return all(smaller_size(s, t) == t.shape[1:3] for s, t in stage_pairs(student, teacher))


def adaptive_average_pool(x: jax.Array, height: int, width: int) -> jax.Array:
    """Average-pools (B, H, W, C) to (B, height, width, C), as PyTorch's adaptive pooling.

    Row i of the result is the mean of the rows from floor(i H / height) to ceil((i + 1) H / height) - 1. Columns are
    pooled in the same way.
    """
    if x.shape[1:3] == (height, width):
        return x
    rows, columns = (
        _pooling_matrix(size, pooled).astype(x.dtype) for size, pooled in ((x.shape[1], height), (x.shape[2], width))
    )
    return jnp.einsum("ih,bhwc,jw->bijc", rows, x, columns, precision="highest")


def _pooling_matrix(size: int, pooled: int) -> np.ndarray:
    """The matrix (pooled, size) that pools `size` rows to `pooled` rows. Each row has the weights of one mean."""
    i, k = np.arange(pooled)[:, None], np.arange(size)
    is_pooled = (k >= i * size // pooled) & (k < -(-(i + 1) * size // pooled))
    return is_pooled / is_pooled.sum(1, keepdims=True)


def smaller_size(x: jax.Array, y: jax.Array) -> tuple[int, int]:
    """The smaller height and the smaller width of two feature maps."""
    return min(x.shape[1], y.shape[1]), min(x.shape[2], y.shape[2])


def to_smaller_size(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Average-pools two feature maps to their `smaller_size`. The results are float32 or wider."""
    height, width = smaller_size(x, y)
    return adaptive_average_pool(to_float32(x), height, width), adaptive_average_pool(to_float32(y), height, width)


def normalize_rows(x: jax.Array) -> jax.Array:
    """The function Q of the losses: divides each vector of the last axis by max(its l2 norm, 1e-12).

    The gradient is finite everywhere, also at 0.
    """
    squared_norms = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    # `jnp.maximum` would not do: its gradient tests for equality with a value that XLA may recompute and round
    # differently.
    return x / jnp.sqrt(jnp.where(squared_norms > 1e-24, squared_norms, 1e-24))


def one_channel(x: jax.Array) -> jax.Array:
    """Reduces a feature map (B, H, W, C) to a smaller one with the same `attention`, (B, H, W, 1), float32 or wider."""
    return jnp.sqrt(jnp.mean(jnp.square(to_float32(x)), axis=-1, keepdims=True))


def attention(x: jax.Array) -> jax.Array:
    """The normalized attention (B, H W) of a feature map (B, H, W, C): Q of the mean square over channels."""
    return normalize_rows(jnp.mean(jnp.square(to_float32(x)), axis=-1).reshape(len(x), -1))
