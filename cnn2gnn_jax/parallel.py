"""Collectives over a named batch axis that are the identity without one.

Modules take `axis_name: str | None`. With a name they run on one shard of a batch and these functions make graph,
statistics and losses those of the global batch; with None the shard is the batch.
"""

from typing import Any

import jax
from jax import lax


def all_gather(shard: jax.Array, axis_name: str | None) -> jax.Array:
    """The global batch, (B, ...), from this device's part of it, (b, ...)."""
    return shard if axis_name is None else lax.all_gather(shard, axis_name, tiled=True)


def local_rows(whole: jax.Array, rows: int, axis_name: str | None) -> jax.Array:
    """This device's `rows` rows, (b, ...), of a global array, (B, ...)."""
    if axis_name is None:
        return whole
    return lax.dynamic_slice_in_dim(whole, lax.axis_index(axis_name) * rows, rows)


def psum(tree: Any, axis_name: str | None) -> Any:
    """Leaves summed over the devices."""
    return tree if axis_name is None else lax.psum(tree, axis_name)
