"""The interface of a distillation method: its inputs, its parameters and memory, its stages and their losses."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from cnn2gnn_jax import losses, networks


class LossInputs(NamedTuple):
    """The inputs of a loss in one step, for this device's part of the batch.

    student: the outputs of the student.
    teacher: the outputs of the teacher, without gradient. They contain at least the fields in `Distiller.teacher`. None
      if there is no teacher.
    batch: a dictionary with `label`, `index` (the position among the training images) and `mask`, (b,) each.
    epoch: the epoch, a scalar that starts at 0.
    rng: a key, which is the same on all devices.
    """

    student: networks.Outputs
    teacher: networks.Outputs | None
    batch: Mapping[str, jax.Array]
    epoch: jax.Array
    rng: jax.Array


# (params, memory, inputs) -> (loss, memory, metrics)
Loss = Callable[[Any, Any, LossInputs], tuple[jax.Array, Any, dict[str, jax.Array]]]


def trains_everything(path: tuple[str, ...]) -> bool:
    """The function `trains` of a stage that trains all parameters."""
    del path
    return True


class Stage(NamedTuple):
    """One stage of training.

    name: the name in checkpoints and metrics.
    loss: called as `loss(params, memory, inputs) -> (loss, memory, metrics)`, where params and memory belong to the
      method and `inputs` are `LossInputs`. The loss and every metric are this device's share; the shares of all devices
      add up to the value for the global batch.
    epochs: number of epochs; None to use the recipe's.
    learning_rate: learning rate; None to use the recipe's.
    trains: returns whether the stage trains the parameter with a path, such as ("student", "stem", "kernel") or
      ("distiller", ...). If it trains no parameter of the student, the student's BatchNorm statistics do not change.
    """

    name: str
    loss: Loss
    epochs: int | None = None
    learning_rate: float | None = None
    trains: Callable[[tuple[str, ...]], bool] = trains_everything


class Distiller(NamedTuple):
    """A distillation method.

    teacher: the fields of the teacher's outputs that the method needs; () for none. `logits` and `pooled` can be read
      from disk, and `features` too if `attention` is True.
    init: `init(rng, student, teacher) -> (params, memory)`, given the shapes of the outputs of both networks.
    stages: the stages in the order of training. The last one uses the epochs and learning rate of the recipe.
    student: the fields of the student's outputs that the method needs. A graph student has `logits` and `pooled`.
    second_view: `second_view(keys_b, images_bxHxWxC) -> images`, uint8, or None. If given, both networks compute
      outputs for 2b images: first the original ones, then the second views. The entries of `batch` keep b rows.
    attention: whether the loss uses only the mean square over channels of the teacher's feature maps. Then the loss can
      be computed from the stored `maps.one_channel` of each stage, unless a feature map of the teacher is larger than
      the student's (`maps.teacher_maps_not_larger`).
    """

    teacher: tuple[str, ...]
    init: Callable[[jax.Array, networks.Outputs, networks.Outputs | None], tuple[Any, Any]]
    stages: tuple[Stage, ...]
    student: tuple[str, ...] = ("logits",)
    second_view: Callable[[jax.Array, jax.Array], jax.Array] | None = None
    attention: bool = False


def no_params(rng: jax.Array, student: networks.Outputs, teacher: networks.Outputs | None) -> tuple[Any, Any]:
    """The function `init` of a method without parameters and memory."""
    del rng, student, teacher
    return {}, {}


class Setting(NamedTuple):
    """The names of the networks and of the data set, which some published hyperparameters depend on."""

    teacher: str
    student: str
    data: str


def cross_entropy(inputs: LossInputs) -> jax.Array:
    """This device's share of the mean cross-entropy over the global batch."""
    batch = inputs.batch
    return losses.batch_mean(losses.cross_entropy(inputs.student.logits, batch["label"]), batch["mask"])


def weighted(
    hyper: Mapping[str, Any], cross_entropy: jax.Array, distillation: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss `ce_weight` * `cross_entropy` + `weight` * `distillation`, and both terms as metrics."""
    metrics = {"cross_entropy": cross_entropy, "distillation": distillation}
    return hyper["ce_weight"] * cross_entropy + hyper["weight"] * distillation, metrics
