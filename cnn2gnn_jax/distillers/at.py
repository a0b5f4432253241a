"""AT: attention transfer (Zagoruyko and Komodakis, 2017)."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax import lax

from cnn2gnn_jax import losses
from cnn2gnn_jax.distillers import maps
from cnn2gnn_jax.distillers.base import Distiller, Stage, cross_entropy, weighted


def create(hyper: Mapping[str, Any]) -> Distiller:
    """The loss is `ce_weight` * cross-entropy + `weight` * the sum over stages of mean((Q(A_s) - Q(A_t))^2).

    A is the flattened mean over channels of f^2, where f is a feature map, and Q normalizes to unit length. The larger
    feature map is average-pooled first.
    """

    def init(rng, student, teacher):
        del rng
        maps.require_maps("at", "features", student, teacher)
        return {}, {}

    def loss(params, memory, inputs):
        del params
        pairs = maps.stage_pairs(inputs.student.features, lax.stop_gradient(inputs.teacher.features))
        errors = sum((jnp.mean(jnp.square(s - t), axis=-1) for s, t in map(_attentions, pairs)), start=jnp.zeros(()))
        attention_loss = losses.batch_mean(errors, inputs.batch["mask"])
        total, metrics = weighted(hyper, cross_entropy(inputs), attention_loss)
        return total, memory, metrics

    return Distiller(("features",), init, (Stage("train", loss),), student=("logits", "features"), attention=True)


def _attentions(pair):
    return [maps.attention(x) for x in maps.to_smaller_size(*pair)]
