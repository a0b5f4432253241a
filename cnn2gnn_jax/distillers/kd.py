"""Response-based distillation (Hinton et al., 2015): the row KD, and Eq. 6 of CNN2GNN."""

from collections.abc import Mapping
from typing import Any

from cnn2gnn_jax import losses
from cnn2gnn_jax.distillers.base import Distiller, Stage, cross_entropy, nothing


def create(hyper: Mapping[str, Any]) -> Distiller:
    """`ce_weight` * cross-entropy + `kd_weight` * Eq. 7 at `temperature`, with `tau_squared` or without."""

    def loss(params, memory, inputs):
        del params
        ce = cross_entropy(inputs)
        divergence = losses.distillation(
            inputs.student.logits, inputs.teacher.logits, hyper["temperature"], tau_squared=hyper["tau_squared"]
        )
        kd = losses.batch_mean(divergence, inputs.batch["mask"])
        return hyper["ce_weight"] * ce + hyper["kd_weight"] * kd, memory, {"cross_entropy": ce, "distillation": kd}

    return Distiller(("logits",), nothing, (Stage("train", loss),))
