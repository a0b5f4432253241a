"""Labels alone: cross-entropy."""

from collections.abc import Mapping
from typing import Any

from cnn2gnn_jax.distillers.base import Distiller, Stage, cross_entropy, nothing


def create(hyper: Mapping[str, Any]) -> Distiller:
    """The student by cross-entropy: the teacher's own training, and the rows CE and GNN."""
    del hyper

    def loss(params, memory, inputs):
        del params
        ce = cross_entropy(inputs)
        return ce, memory, {"cross_entropy": ce}

    return Distiller((), nothing, (Stage("train", loss),))
