"""PKT: probabilistic knowledge transfer (Passalis and Tefas, 2018)."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from cnn2gnn_jax import losses
from cnn2gnn_jax.distillers import maps
from cnn2gnn_jax.distillers.base import Distiller, Stage, cross_entropy, nothing, weighted
from cnn2gnn_jax.distillers.relations import column_mean, inner_products
from cnn2gnn_jax.runtime.collectives import all_gather

EPSILON = 1e-7


def create(hyper: Mapping[str, Any]) -> Distiller:
    """`ce_weight` * cross-entropy + `weight` * the mean over B x B of K_t log((K_t + e) / (K_s + e)).

    K = (cosine + 1) / 2 of the pooled features, its rows normalised to sum to 1.
    """

    def probabilities(pooled: jax.Array, columns: jax.Array) -> jax.Array:
        cosines = inner_products(maps.normalize_rows(maps.wide(pooled)))
        # Rounding may take a cosine below -1, and the logarithm with it. Selected, not `maximum`: see `normalize_rows`.
        kernel = jnp.where(columns & (cosines > -1), (cosines + 1) / 2, 0)
        sums = jnp.sum(kernel, axis=-1, keepdims=True)
        return kernel / jnp.where(sums > EPSILON, sums, EPSILON)

    def loss(params, memory, inputs):
        del params
        mask = inputs.batch["mask"]
        columns = all_gather(mask)
        s = probabilities(inputs.student.pooled, columns)
        t = probabilities(lax.stop_gradient(inputs.teacher.pooled), columns)
        divergence = column_mean(t * (jnp.log(t + EPSILON) - jnp.log(s + EPSILON)), columns)
        extra = losses.batch_mean(divergence, mask)
        total, metrics = weighted(hyper, cross_entropy(inputs), extra)
        return total, memory, metrics

    return Distiller(("pooled",), nothing, (Stage("train", loss),), student=("logits", "pooled"))
