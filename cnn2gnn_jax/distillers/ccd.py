"""CCD: cosine confidence distillation of a strongly augmented view (Li et al., 2022)."""

import functools
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax import lax

from cnn2gnn_jax import losses
from cnn2gnn_jax.distillers import maps, strong_view
from cnn2gnn_jax.distillers.base import Distiller, Stage, nothing, weighted


def create(hyper: Mapping[str, Any]) -> Distiller:
    """`ce_weight` * cross-entropy over both views + `weight` * T^2/2 * [KL(x) + mean((cos + 1) * KL(x'))].

    x' is the strong view of image x by `policy` and `probability`, KL the teacher's divergence from the student at
    temperature T, and cos the cosine of the teacher's logits for x and x'.
    """

    def loss(params, memory, inputs):
        del params
        mask, labels = inputs.batch["mask"], inputs.batch["label"]
        plain, strong = jnp.split(inputs.student.logits, 2)
        t_plain, t_strong = jnp.split(lax.stop_gradient(inputs.teacher.logits), 2)
        ce = (losses.cross_entropy(plain, labels) + losses.cross_entropy(strong, labels)) / 2
        confidence = jnp.sum(maps.normalize_rows(t_plain) * maps.normalize_rows(t_strong), axis=-1) + 1
        # With tau^2, as `losses.distillation` has it.
        divergence = losses.distillation(plain, t_plain, hyper["temperature"])
        divergence += confidence * losses.distillation(strong, t_strong, hyper["temperature"])
        total, metrics = weighted(hyper, losses.batch_mean(ce, mask), losses.batch_mean(divergence / 2, mask))
        return total, memory, metrics

    view = functools.partial(
        strong_view.strong_view, policy=strong_view.policy(hyper["policy"]), probability=hyper["probability"]
    )
    return Distiller(("logits",), nothing, (Stage("train", loss),), second_view=view)
