"""Feature maps of two networks brought together: which belong to each other, at which size, and what is compared."""

import jax
import jax.numpy as jnp
import numpy as np

from cnn2gnn_jax.networks import Outputs
from cnn2gnn_jax.networks.norm import at_least_float32
from cnn2gnn_jax.runtime.errors import UserError


def wide(x: jax.Array) -> jax.Array:
    """`x` in float32 or wider."""
    return x.astype(at_least_float32(x.dtype))


def require_maps(method: str, field: str, student: Outputs, teacher: Outputs | None) -> None:
    """Checks that both networks have the maps `field` ('features' or 'preactivations') of two stages and the stem.

    Raises:
      UserError: one of them does not, as a graph student.
    """
    for role, outputs in (("student", student), ("teacher", teacher)):
        maps = () if outputs is None else getattr(outputs, field)
        if len(maps) < 3:
            raise UserError(
                f"{method} compares the {field} of two CNNs, but the {role} gives {len(maps)} such maps: choose a CNN, "
                "or a method that needs logits or pooled features alone (kd, dkd, ccd, rkd, pkt, crd)"
            )


def stage_pairs(student: tuple[jax.Array, ...], teacher: tuple[jax.Array, ...]) -> list[tuple[jax.Array, jax.Array]]:
    """The maps of the stages f1..fn of both, stem left out; of a different number of stages, the last are paired.

    Four stages against three: f2, f3, f4 with f1, f2, f3, so that what the classifiers read is compared in any case.
    """
    n = min(len(student), len(teacher)) - 1
    return list(zip(student[-n:], teacher[-n:], strict=True))


def none_larger(student: tuple[jax.Array, ...], teacher: tuple[jax.Array, ...]) -> bool:
    """Whether no stage's map of the teacher has more rows or columns than the student's that it is compared with."""
    return all(smaller_size(s, t) == t.shape[1:3] for s, t in stage_pairs(student, teacher))


def adaptive_average_pool(x: jax.Array, height: int, width: int) -> jax.Array:
    """(B, H, W, C) to (B, height, width, C).

    Row i is the mean of the rows from floor(i H / height) to ceil((i + 1) H / height) - 1; columns likewise.
    """
    if x.shape[1:3] == (height, width):
        return x
    rows, columns = (_averages(n, out).astype(x.dtype) for n, out in ((x.shape[1], height), (x.shape[2], width)))
    return jnp.einsum("ih,bhwc,jw->bijc", rows, x, columns, precision="highest")


def _averages(n: int, out: int) -> np.ndarray:
    """(out, n): each row the weights of one mean."""
    i, k = np.arange(out)[:, None], np.arange(n)
    inside = (k >= i * n // out) & (k < -(-(i + 1) * n // out))
    return inside / inside.sum(1, keepdims=True)


def smaller_size(x: jax.Array, y: jax.Array) -> tuple[int, int]:
    """The smaller height and the smaller width of two maps."""
    return min(x.shape[1], y.shape[1]), min(x.shape[2], y.shape[2])


def to_smaller_size(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Both maps at `smaller_size`, in float32 or wider; the larger is adaptively average-pooled."""
    height, width = smaller_size(x, y)
    return adaptive_average_pool(wide(x), height, width), adaptive_average_pool(wide(y), height, width)


def normalize_rows(x: jax.Array) -> jax.Array:
    """Q: each vector of the last axis over max(its l2 norm, 1e-12); its gradient is finite at 0 too."""
    squares = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    # Selected, not `maximum`, whose gradient compares with a value that may have been computed anew, rounded otherwise.
    return x / jnp.sqrt(jnp.where(squares > 1e-24, squares, 1e-24))


def one_channel(x: jax.Array) -> jax.Array:
    """(B, H, W, C) to (B, H, W, 1), float32 or wider: a map with the same `attention`, C times as small."""
    return jnp.sqrt(jnp.mean(jnp.square(wide(x)), axis=-1, keepdims=True))


def attention(x: jax.Array) -> jax.Array:
    """Normalised attention, (B, H W), of a map (B, H, W, C): Q of the mean square over channels."""
    return normalize_rows(jnp.mean(jnp.square(wide(x)), axis=-1).reshape(len(x), -1))
