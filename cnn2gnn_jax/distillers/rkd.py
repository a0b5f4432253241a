"""RKD: relational distillation of distances and angles (Park et al., 2019)."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from cnn2gnn_jax import losses
from cnn2gnn_jax.distillers import maps
from cnn2gnn_jax.distillers.base import Distiller, Stage, cross_entropy, no_params, weighted
from cnn2gnn_jax.distillers.relations import column_mean
from cnn2gnn_jax.runtime.collectives import all_gather, psum


def create(hyper: Mapping[str, Any]) -> Distiller:
    """The loss is `ce_weight` * cross-entropy + `weight` * (`distance_weight` * D + `angle_weight` * A).

    D is the mean over all pairs of images of the smooth L1 loss between the distances of student and teacher: Euclidean
    distances of pooled features, divided by the mean positive distance of the network. A is the mean over all triples
    of images of the smooth L1 loss between cosines, those of the angle at an image between the directions to two
    others.
    """

    def relations(pooled: jax.Array, mask: jax.Array, column_mask: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the distances (b, B) and the cosines (b, B, B)."""
        pooled = maps.to_float32(pooled)
        differences = all_gather(pooled)[None] - pooled[:, None]
        squared = jnp.sum(jnp.square(differences), axis=-1)
        is_positive = squared > 0
        distances = jnp.where(is_positive, jnp.sqrt(jnp.where(is_positive, squared, 1)), 0)
        pair_mask = is_positive & mask[:, None] & column_mask
        total, count = psum((jnp.sum(jnp.where(pair_mask, distances, 0)), jnp.sum(pair_mask)))
        mean = jnp.where(count > 0, total / jnp.maximum(count, 1), 1)
        directions = maps.normalize_rows(differences)
        return distances / mean, jnp.einsum("ijd,ikd->ijk", directions, directions, precision="highest")

    def loss(params, memory, inputs):
        del params
        mask = inputs.batch["mask"]
        column_mask = all_gather(mask)
        (s_distances, s_cosines), (t_distances, t_cosines) = (
            relations(pooled, mask, column_mask)
            for pooled in (inputs.student.pooled, lax.stop_gradient(inputs.teacher.pooled))
        )
        pairs = column_mean(optax.losses.huber_loss(s_distances, t_distances), column_mask)
        triples = column_mean(column_mean(optax.losses.huber_loss(s_cosines, t_cosines), column_mask), column_mask)
        distance, angle = (losses.batch_mean(values, mask) for values in (pairs, triples))
        relational = hyper["distance_weight"] * distance + hyper["angle_weight"] * angle
        total, metrics = weighted(hyper, cross_entropy(inputs), relational)
        return total, memory, metrics | {"distance": distance, "angle": angle}

    return Distiller(("pooled",), no_params, (Stage("train", loss),), student=("logits", "pooled"))
