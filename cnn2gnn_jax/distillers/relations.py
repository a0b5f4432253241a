"""Relations between the images of the global batch: this device's rows against the columns of all devices."""

import jax
import jax.numpy as jnp

from cnn2gnn_jax.runtime.collectives import all_gather


def inner_products(rows: jax.Array) -> jax.Array:
    """Inner products, (b, B), of this device's vectors (b, D) with those of the global batch."""
    columns = all_gather(rows)
    return jnp.einsum("id,jd->ij", rows, columns, precision="highest")


def column_mean(values: jax.Array, columns: jax.Array) -> jax.Array:
    """The mean over the last axis, (..., B) to (...), of the columns where `columns`, (B,), is True."""
    return jnp.sum(jnp.where(columns, values, 0), axis=-1) / jnp.maximum(jnp.sum(columns), 1)
