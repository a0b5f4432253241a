"""RKD: relational distillation of distances and angles (Park et al., 2019)."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from cnn2gnn_jax import losses
from cnn2gnn_jax.distillers import maps
from cnn2gnn_jax.distillers.base import Distiller, Stage, cross_entropy, nothing, weighted
from cnn2gnn_jax.distillers.relations import column_mean
from cnn2gnn_jax.runtime.collectives import all_gather, psum


def create(hyper: Mapping[str, Any]) -> Distiller:
    """`ce_weight` * cross-entropy + `weight` * (`distance_weight` * D + `angle_weight` * A).

    D and A are the means over all pairs and triples of the batch of smooth-L1(student's, teacher's): of the Euclidean
    distances of the pooled features, each over its network's mean positive distance; of the cosines of the angles at
    an image between the differences to two others.
    """

    def relations(pooled: jax.Array, mask: jax.Array, columns: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Distances (b, B) and cosines (b, B, B)."""
        pooled = maps.wide(pooled)
        differences = all_gather(pooled)[None] - pooled[:, None]
        squares = jnp.sum(jnp.square(differences), axis=-1)
        positive = squares > 0
        distances = jnp.where(positive, jnp.sqrt(jnp.where(positive, squares, 1)), 0)
        counted = positive & mask[:, None] & columns
        total, count = psum((jnp.sum(jnp.where(counted, distances, 0)), jnp.sum(counted)))
        mean = jnp.where(count > 0, total / jnp.maximum(count, 1), 1)
        units = maps.normalize_rows(differences)
        return distances / mean, jnp.einsum("ijd,ikd->ijk", units, units, precision="highest")

    def loss(params, memory, inputs):
        del params
        mask = inputs.batch["mask"]
        columns = all_gather(mask)
        (s_distances, s_cosines), (t_distances, t_cosines) = (
            relations(pooled, mask, columns)
            for pooled in (inputs.student.pooled, lax.stop_gradient(inputs.teacher.pooled))
        )
        pairs = column_mean(optax.losses.huber_loss(s_distances, t_distances), columns)
        triples = column_mean(column_mean(optax.losses.huber_loss(s_cosines, t_cosines), columns), columns)
        distance, angle = (losses.batch_mean(values, mask) for values in (pairs, triples))
        extra = hyper["distance_weight"] * distance + hyper["angle_weight"] * angle
        total, metrics = weighted(hyper, cross_entropy(inputs), extra)
        return total, memory, metrics | {"distance": distance, "angle": angle}

    return Distiller(("pooled",), nothing, (Stage("train", loss),), student=("logits", "pooled"))
