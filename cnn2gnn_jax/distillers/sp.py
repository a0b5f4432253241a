"""SP: similarity-preserving distillation (Tung and Mori, 2019)."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from cnn2gnn_jax import losses
from cnn2gnn_jax.distillers import maps
from cnn2gnn_jax.distillers.base import Distiller, Stage, cross_entropy, weighted
from cnn2gnn_jax.distillers.relations import column_mean, inner_products
from cnn2gnn_jax.runtime.collectives import all_gather


def create(hyper: Mapping[str, Any]) -> Distiller:
    """`ce_weight` * cross-entropy + `weight` * ||Q(G_s) - Q(G_t)||^2 / B^2.

    G = F F^T, (B, B), of the last stage's flattened maps, its rows normalised by Q.
    """

    def init(rng, student, teacher):
        del rng
        maps.require_maps("sp", "features", student, teacher)
        return {}, {}

    def similarity(x: jax.Array, columns: jax.Array) -> jax.Array:
        products = inner_products(maps.wide(x).reshape(len(x), -1))
        return maps.normalize_rows(jnp.where(columns, products, 0))

    def loss(params, memory, inputs):
        del params
        mask = inputs.batch["mask"]
        columns = all_gather(mask)
        s = similarity(inputs.student.features[-1], columns)
        t = similarity(lax.stop_gradient(inputs.teacher.features[-1]), columns)
        extra = losses.batch_mean(column_mean(jnp.square(s - t), columns), mask)
        total, metrics = weighted(hyper, cross_entropy(inputs), extra)
        return total, memory, metrics

    return Distiller(("features",), init, (Stage("train", loss),), student=("logits", "features"))
