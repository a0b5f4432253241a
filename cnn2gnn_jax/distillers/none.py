"""Training on labels only, with cross-entropy."""

from collections.abc import Mapping
from typing import Any

from cnn2gnn_jax.distillers.base import Distiller, Stage, cross_entropy, no_params


def create(hyper: Mapping[str, Any]) -> Distiller:
    """The loss is cross-entropy. It trains the teacher, and the students of the methods `ce` and `gnn`."""
    del hyper

    def loss(params, memory, inputs):
        del params
        ce = cross_entropy(inputs)
        return ce, memory, {"cross_entropy": ce}

    return Distiller((), no_params, (Stage("train", loss),))
