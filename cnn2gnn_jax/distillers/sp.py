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
    """The loss is `ce_weight` * cross-entropy + `weight` * ||Q(G_s) - Q(G_t)||^2 / B^2.

    G = F F^T, (B, B), where F are the flattened feature maps of the last stage. Q normalizes rows to unit length.
    """

    def init(rng, student, teacher):
        del rng
        maps.require_maps("sp", "features", student, teacher)
        return {}, {}

    def similarity(x: jax.Array, column_mask: jax.Array) -> jax.Array:
        products = inner_products(maps.to_float32(x).reshape(len(x), -1))
        return maps.normalize_rows(jnp.where(column_mask, products, 0))

    def loss(params, memory, inputs):
        del params
        mask = inputs.batch["mask"]
        column_mask = all_gather(mask)
        s = similarity(inputs.student.features[-1], column_mask)
        t = similarity(lax.stop_gradient(inputs.teacher.features[-1]), column_mask)
        similarity_loss = losses.batch_mean(column_mean(jnp.square(s - t), column_mask), mask)
        total, metrics = weighted(hyper, cross_entropy(inputs), similarity_loss)
        return total, memory, metrics

    return Distiller(("features",), init, (Stage("train", loss),), student=("logits", "features"))
