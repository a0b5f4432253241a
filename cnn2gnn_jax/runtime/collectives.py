"""Collectives over the devices that share a batch.

A training step runs on the whole batch, or on each device's part of it under the mapped axis `AXIS`. These functions
ask JAX whether that axis is bound. If it is not, the part is the whole batch and a collective is the identity. Graph,
statistics and losses are therefore always those of the global batch, and no caller names the axis.
"""

from typing import Any

import jax
from jax import lax

AXIS = "batch"


def _batch_is_split() -> bool:
    try:
        lax.axis_size(AXIS)
    except NameError:
        return False
    return True


def all_gather(part: jax.Array, axis: int = 0) -> jax.Array:
    """Gathers the global batch, (B, ...), from the parts of all devices, (b, ...); `axis` is the axis that is split."""
    return lax.all_gather(part, AXIS, axis=axis, tiled=True) if _batch_is_split() else part


def first_row(rows: int) -> jax.Array | int:
    """The position of this device's first row in a global array, if each device has `rows` rows."""
    return lax.axis_index(AXIS) * rows if _batch_is_split() else 0


def local_rows(whole: jax.Array, rows: int) -> jax.Array:
    """This device's `rows` rows, (b, ...), of a global array, (B, ...)."""
    return lax.dynamic_slice_in_dim(whole, first_row(rows), rows) if _batch_is_split() else whole


def psum(tree: Any) -> Any:
    """Sums the leaves of a pytree over the devices."""
    return lax.psum(tree, AXIS) if _batch_is_split() else tree
