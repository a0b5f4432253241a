"""PKT: probabilistic knowledge transfer (Passalis and Tefas, 2018)."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from cnn2gnn_jax import losses
from cnn2gnn_jax.distillers import maps
from cnn2gnn_jax.distillers.base import Distiller, Stage, cross_entropy, no_params, weighted
from cnn2gnn_jax.distillers.relations import column_mean, inner_products
from cnn2gnn_jax.runtime.collectives import all_gather

EPSILON = 1e-7


def create(hyper: Mapping[str, Any]) -> Distiller:
    """The loss is `ce_weight` * cross-entropy + `weight` * mean(K_t log((K_t + e) / (K_s + e))).

    K is the (B, B) matrix of (cosine + 1) / 2 between pooled features, with rows that are scaled to sum to 1. The mean
    is over its elements.
    """

    def probabilities(pooled: jax.Array, column_mask: jax.Array) -> jax.Array:
        cosines = inner_products(maps.normalize_rows(maps.to_float32(pooled)))
        # Rounding can make a cosine smaller than -1, of which the logarithm would be NaN. `jnp.maximum` would not do;
        # see `normalize_rows`.
        kernel = jnp.where(column_mask & (cosines > -1), (cosines + 1) / 2, 0)
        sums = jnp.sum(kernel, axis=-1, keepdims=True)
        return kernel / jnp.where(sums > EPSILON, sums, EPSILON)

    def loss(params, memory, inputs):
        del params
        mask = inputs.batch["mask"]
        column_mask = all_gather(mask)
        s = probabilities(inputs.student.pooled, column_mask)
        t = probabilities(lax.stop_gradient(inputs.teacher.pooled), column_mask)
        divergences = column_mean(t * (jnp.log(t + EPSILON) - jnp.log(s + EPSILON)), column_mask)
        divergence = losses.batch_mean(divergences, mask)
        total, metrics = weighted(hyper, cross_entropy(inputs), divergence)
        return total, memory, metrics

    return Distiller(("pooled",), no_params, (Stage("train", loss),), student=("logits", "pooled"))
