"""Labels alone: cross-entropy."""

from collections.abc import Mapping
from typing import Any

from cnn2gnn_jax import losses
from cnn2gnn_jax.distillers.base import Distiller, Stage, nothing


def create(hyper: Mapping[str, Any]) -> Distiller:
    """The student by cross-entropy: the teacher's own training, and the rows CE and GNN."""
    del hyper

    def loss(params, memory, student, teacher, batch, epoch, rng):
        del params, teacher, epoch, rng
        ce = losses.batch_mean(losses.cross_entropy(student.logits, batch["label"]), batch["mask"])
        return ce, memory, {"cross_entropy": ce}

    return Distiller((), nothing, (Stage("train", loss),))
