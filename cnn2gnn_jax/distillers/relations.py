"""Relations between the images of the global batch. Rows are this device's images, columns those of all devices."""

import jax
import jax.numpy as jnp

from cnn2gnn_jax.runtime.collectives import all_gather


def inner_products(rows: jax.Array) -> jax.Array:
    """Inner products (b, B) of this device's vectors (b, D) with the vectors of the global batch."""
    columns = all_gather(rows)
    return jnp.einsum("id,jd->ij", rows, columns, precision="highest")


def column_mean(values: jax.Array, column_mask: jax.Array) -> jax.Array:
    """The mean over the columns that are not padding, (..., B) to (...). `column_mask`, (B,), is False for padding."""
    return jnp.sum(jnp.where(column_mask, values, 0), axis=-1) / jnp.maximum(jnp.sum(column_mask), 1)
