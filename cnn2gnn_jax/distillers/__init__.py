"""The distillation methods, and training on labels only.

To add a method, write a module with a function `create(hyper) -> Distiller`, and add it to `_REGISTRY` and `METHODS`.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from cnn2gnn_jax.distillers import (
    ab,
    at,
    ccd,
    crd,
    dkd,
    fitnets,
    ft,
    kd,
    none,
    pkt,
    rkd,
    sp,
    strong_view,
    vid,
)
from cnn2gnn_jax.distillers.base import Distiller, Setting, Stage
from cnn2gnn_jax.runtime.errors import UserError

__all__ = ["METHODS", "Distiller", "Method", "Setting", "Stage", "create", "hyperparameters"]

_REGISTRY: dict[str, Callable[[Mapping[str, Any]], Distiller]] = {
    "none": none.create,
    "kd": kd.create,
    "fitnets": fitnets.create,
    "at": at.create,
    "sp": sp.create,
    "vid": vid.create,
    "rkd": rkd.create,
    "pkt": pkt.create,
    "ab": ab.create,
    "ft": ft.create,
    "crd": crd.create,
    "ccd": ccd.create,
    "dkd": dkd.create,
}


class Method(NamedTuple):
    """A row of the paper's tables.

    title: the name of the row.
    student: the kind of student, `graph` or `cnn`.
    distiller: the name of the distiller; see `create`.
    hyper: the published hyperparameters. A value that depends on the networks or the data set is a function of a
      `Setting`; see `hyperparameters`.
    graph: the graph of a graph student; None if the config chooses it.
    """

    title: str
    student: str
    distiller: str
    hyper: Mapping[str, Any]
    graph: str | None = None


_EQ6 = {"temperature": 48.0, "ce_weight": 1.0, "kd_weight": 1.0, "tau_squared": True}

METHODS: dict[str, Method] = {
    "cnn2gnn": Method("CNN2GNN", "graph", "kd", _EQ6),
    "cnn2gnn_off": Method("CNN2GNN without a graph", "graph", "kd", _EQ6, graph="off"),
    "gnn": Method("GNN", "graph", "none", {}),
    "ce": Method("CNN student, labels alone", "cnn", "none", {}),
    "kd": Method("KD", "cnn", "kd", {"temperature": 4.0, "ce_weight": 0.1, "kd_weight": 0.9, "tau_squared": True}),
    "kd_tau48": Method("CNN student, KD at τ = 48", "cnn", "kd", _EQ6),
    "fitnets": Method("FitNets", "cnn", "fitnets", {"ce_weight": 1.0, "weight": 100.0}),
    "at": Method("AT", "cnn", "at", {"ce_weight": 1.0, "weight": 1000.0}),
    "sp": Method("SP", "cnn", "sp", {"ce_weight": 1.0, "weight": 3000.0}),
    "vid": Method("VID", "cnn", "vid", {"ce_weight": 1.0, "weight": 1.0}),
    "rkd": Method(
        "RKD", "cnn", "rkd", {"ce_weight": 1.0, "weight": 1.0, "distance_weight": 25.0, "angle_weight": 50.0}
    ),
    "pkt": Method("PKT", "cnn", "pkt", {"ce_weight": 1.0, "weight": 30000.0}),
    "ab": Method("AB", "cnn", "ab", {"pretrain_epochs": 30, "pretrain_learning_rate": 0.05}),
    "ft": Method(
        "FT",
        "cnn",
        "ft",
        {
            "ce_weight": 1.0,
            "weight": 200.0,
            "pretrain_epochs": 30,
            "pretrain_learning_rate": ft.published_pretrain_learning_rate,
        },
    ),
    "crd": Method(
        "CRD",
        "cnn",
        "crd",
        {
            "ce_weight": 1.0,
            "weight": 0.8,
            "negatives": 16384,
            "temperature": 0.07,
            "momentum": 0.5,
            "feature_dim": 128,
        },
    ),
    "ccd": Method(
        "CCD",
        "cnn",
        "ccd",
        {
            "ce_weight": 1.0,
            "weight": 1.0,
            "temperature": 4.0,
            "policy": strong_view.published_policy,
            "probability": strong_view.published_probability,
        },
    ),
    "dkd": Method(
        "DKD",
        "cnn",
        "dkd",
        {"ce_weight": 1.0, "weight": 1.0, "temperature": 4.0, "beta": dkd.published_beta, "warmup": 20},
    ),
}


def hyperparameters(method: str, teacher_network: str, student_network: str, data: str = "cifar100") -> dict[str, Any]:
    """The published hyperparameters of a method, by their names.

    Args:
      method: a key of `METHODS`.
      teacher_network: the name of the teacher's network.
      student_network: the name of the CNN student's network.
      data: the name of the data set.
    """
    setting = Setting(teacher_network, student_network, data)
    return {name: value(setting) if callable(value) else value for name, value in METHODS[method].hyper.items()}


def create(name: str, hyper: Mapping[str, Any]) -> Distiller:
    """Creates a distiller. Its losses are those of the global batch.

    Args:
      name: the distiller, a value of `Method.distiller`.
      hyper: the hyperparameters of the method in `METHODS`. The distiller crd also needs `training_labels`, the classes
        of all training images, (N,) integers.

    Raises:
      UserError: the name is unknown.

    >>> create("kd", hyperparameters("kd", "resnet34", "resnet18")).teacher
    ('logits',)
    """
    if name not in _REGISTRY:
        raise UserError(f"distiller {name!r} is unknown: choose one of {', '.join(sorted(_REGISTRY))}")
    return _REGISTRY[name](hyper)
