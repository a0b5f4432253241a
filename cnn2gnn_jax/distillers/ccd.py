"""CCD: cosine confidence distillation with a strongly augmented view (Li et al., 2022)."""

import functools
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax import lax

from cnn2gnn_jax import losses
from cnn2gnn_jax.distillers import maps, strong_view
from cnn2gnn_jax.distillers.base import Distiller, Stage, no_params, weighted


def create(hyper: Mapping[str, Any]) -> Distiller:
    """The loss is `ce_weight` * cross-entropy over both views + `weight` * T^2/2 * mean(KL(x) + (cos + 1) * KL(x')).

    x' is the strong view of image x, made with `policy` and `probability`. KL is the Kullback-Leibler divergence of
    teacher and student at the temperature T. cos is the cosine of the teacher's logits for x and x'.
    """

    def loss(params, memory, inputs):
        del params
        mask, labels = inputs.batch["mask"], inputs.batch["label"]
        s_original, s_strong = jnp.split(inputs.student.logits, 2)
        t_original, t_strong = jnp.split(lax.stop_gradient(inputs.teacher.logits), 2)
        ce = (losses.cross_entropy(s_original, labels) + losses.cross_entropy(s_strong, labels)) / 2
        confidence = jnp.sum(maps.normalize_rows(t_original) * maps.normalize_rows(t_strong), axis=-1) + 1
        # `losses.distillation` includes the factor T^2.
        divergence = losses.distillation(s_original, t_original, hyper["temperature"])
        divergence += confidence * losses.distillation(s_strong, t_strong, hyper["temperature"])
        total, metrics = weighted(hyper, losses.batch_mean(ce, mask), losses.batch_mean(divergence / 2, mask))
        return total, memory, metrics

    view = functools.partial(
        strong_view.strong_view, policy=strong_view.policy(hyper["policy"]), probability=hyper["probability"]
    )
    return Distiller(("logits",), no_params, (Stage("train", loss),), second_view=view)
