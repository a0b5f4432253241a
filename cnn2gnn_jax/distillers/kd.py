"""Response-based distillation (Hinton et al., 2015): the method KD, and the loss of CNN2GNN (Eq. 6)."""

from collections.abc import Mapping
from typing import Any

from cnn2gnn_jax import losses
from cnn2gnn_jax.distillers.base import Distiller, Stage, cross_entropy, no_params


def create(hyper: Mapping[str, Any]) -> Distiller:
    """The loss is `ce_weight` * cross-entropy + `kd_weight` * the distillation loss of Eq. 7.

    `temperature` and `tau_squared` are the arguments of `losses.distillation`.
    """

    def loss(params, memory, inputs):
        del params
        ce = cross_entropy(inputs)
        divergence = losses.distillation(
            inputs.student.logits, inputs.teacher.logits, hyper["temperature"], tau_squared=hyper["tau_squared"]
        )
        kd = losses.batch_mean(divergence, inputs.batch["mask"])
        return hyper["ce_weight"] * ce + hyper["kd_weight"] * kd, memory, {"cross_entropy": ce, "distillation": kd}

    return Distiller(("logits",), no_params, (Stage("train", loss),))
