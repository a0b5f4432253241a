"""What a student learns from: labels alone, or a teacher by one of the distillation methods.

A method is one short module with `create(hyper, axis_name) -> Distiller` and a line in `_REGISTRY`.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from cnn2gnn_jax.distillers import kd, none
from cnn2gnn_jax.distillers.base import Distiller, Stage
from cnn2gnn_jax.errors import UserError

__all__ = ["METHODS", "Distiller", "Method", "Stage", "create"]

_REGISTRY: dict[str, Callable[[Mapping[str, Any], str | None], Distiller]] = {"none": none.create, "kd": kd.create}


class Method(NamedTuple):
    """A row of the paper's tables: the kind of student, the distiller, and the values of its hyperparameters."""

    student: str  # 'graph' or 'cnn'
    distiller: str
    hyper: Mapping[str, float]


METHODS: dict[str, Method] = {
    "cnn2gnn": Method("graph", "kd", {"temperature": 48.0, "ce_weight": 1.0, "kd_weight": 1.0}),
    "gnn": Method("graph", "none", {}),
    "ce": Method("cnn", "none", {}),
    "kd": Method("cnn", "kd", {"temperature": 4.0, "ce_weight": 0.1, "kd_weight": 0.9}),
    "kd_tau48": Method("cnn", "kd", {"temperature": 48.0, "ce_weight": 1.0, "kd_weight": 1.0}),
}


def create(name: str, hyper: Mapping[str, Any], axis_name: str | None = None) -> Distiller:
    """The distiller `name` with its hyperparameters; its losses are those of the global batch over `axis_name`.

    Raises:
      UserError: unknown name.
    """
    if name not in _REGISTRY:
        raise UserError(f"distiller {name!r} is unknown: choose one of {', '.join(sorted(_REGISTRY))}")
    return _REGISTRY[name](hyper, axis_name)
