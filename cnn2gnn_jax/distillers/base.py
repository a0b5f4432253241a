"""What a distillation method is: its needs, its parameters and memory, its stages and their losses."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from cnn2gnn_jax import losses, networks


class LossInputs(NamedTuple):
    """What a loss is computed from in one step, on this device's part of the batch.

    student: the student's Outputs.
    teacher: the teacher's, under stop_gradient, with at least what `Distiller.teacher` asks for; None without one.
    batch: `label`, `index` (the training index) and `mask`, (b,) each.
    epoch: from 0.
    rng: the same on every device.
    """

    student: networks.Outputs
    teacher: networks.Outputs | None
    batch: Mapping[str, jax.Array]
    epoch: jax.Array
    rng: jax.Array


# (params, memory, inputs) -> (loss, memory, metrics)
Loss = Callable[[Any, Any, LossInputs], tuple[jax.Array, Any, dict[str, jax.Array]]]


def everything(path: tuple[str, ...]) -> bool:
    """The `trains` of a stage that trains all parameters."""
    del path
    return True


class Stage(NamedTuple):
    """One stage of training.

    name: of its checkpoints and metrics.
    loss: called as `loss(params, memory, inputs) -> (loss, memory, metrics)`, where params and memory are the method's
      own and `inputs` are `LossInputs`. The loss and every metric are this device's share of the global batch's: the
      shares of all devices sum to it.
    epochs: None for the recipe's.
    learning_rate: None for the recipe's.
    trains: which parameters this stage changes, by their path, as ("student", "stem", "kernel") or
      ("distiller", ...); BatchNorm statistics of the student stay with it if it trains nothing of the student.
    """

    name: str
    loss: Loss
    epochs: int | None = None
    learning_rate: float | None = None
    trains: Callable[[tuple[str, ...]], bool] = everything


class Distiller(NamedTuple):
    """A method.

    teacher: the fields of the teacher's Outputs that it needs: () for none; `logits` and `pooled` can come from disk,
      and `features` under `attention`.
    init: `init(rng, student, teacher) -> (params, memory)` from the shapes of both networks' Outputs.
    stages: in the order in which they are trained; the last is the recipe's own.
    student: the fields of the student's Outputs that it needs; a graph student has `logits` and `pooled`.
    second_view: None, or `second_view(keys_b, images_bxHxWxC) -> images`, uint8: both networks then see 2b images,
      the plain ones and after them these, and Outputs have 2b rows; batch keeps (b,).
    attention: of the teacher's features it reads the mean squares over channels alone, so that `maps.one_channel` of
      each stage's, stored once, gives the same loss where none is larger than the student's (`maps.none_larger`).
    """

    teacher: tuple[str, ...]
    init: Callable[[jax.Array, networks.Outputs, networks.Outputs | None], tuple[Any, Any]]
    stages: tuple[Stage, ...]
    student: tuple[str, ...] = ("logits",)
    second_view: Callable[[jax.Array, jax.Array], jax.Array] | None = None
    attention: bool = False


def nothing(rng: jax.Array, student: networks.Outputs, teacher: networks.Outputs | None) -> tuple[Any, Any]:
    """The `init` of a method without parameters or memory."""
    del rng, student, teacher
    return {}, {}


class Setting(NamedTuple):
    """What some published hyperparameters depend on: the names of both networks and of the data set."""

    teacher: str
    student: str
    data: str


def cross_entropy(inputs: LossInputs) -> jax.Array:
    """This device's share of the batch's mean cross-entropy."""
    batch = inputs.batch
    return losses.batch_mean(losses.cross_entropy(inputs.student.logits, batch["label"]), batch["mask"])


def weighted(
    hyper: Mapping[str, Any], labels: jax.Array, distillation: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """`ce_weight` * the cross-entropy `labels` + `weight` * `distillation`, and both as metrics."""
    metrics = {"cross_entropy": labels, "distillation": distillation}
    return hyper["ce_weight"] * labels + hyper["weight"] * distillation, metrics
