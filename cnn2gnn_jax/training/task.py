"""A training task: network, losses, recipe, and the optimizer that follows from them."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax

from cnn2gnn_jax import distillers, gnn
from cnn2gnn_jax.distillers import Distiller, Stage
from cnn2gnn_jax.distillers.base import trains_everything

_RISE = 0.2  # the fraction of the steps in which the schedule `one_cycle` raises the learning rate to its peak


@dataclasses.dataclass(frozen=True)
class Task:
    """A training task.

    module: a CNN of the zoo, or a `gnn.GraphStudent`.
    distiller, stage: the losses; `stage` is one of the distiller's stages.
    recipe: a resolved `train` section of the config.
    steps_per_epoch: the number of full batches in the training images.
    rows: n_train, the number of training images.
    seed: the seed of initialization, batch order and augmentation.
    mean, std: the channel statistics of the images; empty where the inputs are stored features.
    grouped: the class of each training image, and the number of classes in a batch; None for batches drawn at random.
    off_weight: the weight w of a graph student's loss without its graph; the loss is (with + w * without) / (1 + w).
    teacher: the network that runs in the step; None where its outputs come with the batch or are not needed.
    """

    module: nn.Module
    distiller: Distiller
    stage: Stage
    recipe: Any
    steps_per_epoch: int
    rows: int
    seed: int
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    grouped: tuple[np.ndarray, int] | None = None
    off_weight: float = 0.0
    teacher: nn.Module | None = None

    @property
    def is_graph(self) -> bool:
        return isinstance(self.module, gnn.GraphStudent)

    @property
    def has_head(self) -> bool:
        return isinstance(self.module, gnn.GraphStudent) and self.module.graph == "learned"

    @property
    def is_dense(self) -> bool:
        """Whether the network has no convolution."""
        return isinstance(self.module, gnn.GraphStudent) and isinstance(self.module.backbone, gnn.Flatten)

    @property
    def epochs(self) -> int:
        return self.recipe.epochs if self.stage.epochs is None else self.stage.epochs

    @property
    def total_steps(self) -> int:
        return self.epochs * self.steps_per_epoch


def with_stage(task: Task, stage: Stage) -> Task:
    """Returns the task at another stage of its distiller."""
    return dataclasses.replace(task, stage=stage)


def with_labels_only(task: Task) -> Task:
    """Returns the task with cross-entropy as its only loss."""
    labels = distillers.create("none", {})
    return dataclasses.replace(task, distiller=labels, stage=labels.stages[0], teacher=None)


def learning_rate(task: Task) -> Callable[[jax.Array | int], jax.Array]:
    """The learning rate as a function of the step: constant, divided at milestones, a cosine to zero, or one cycle."""
    recipe, base = task.recipe, task.recipe.learning_rate
    if task.stage.learning_rate is not None:
        return optax.schedules.constant_schedule(task.stage.learning_rate)
    if recipe.schedule == "constant":
        return optax.schedules.constant_schedule(base)
    if recipe.schedule == "cosine":
        return optax.schedules.cosine_decay_schedule(base, task.total_steps)
    if recipe.schedule == "one_cycle":
        return optax.schedules.cosine_onecycle_schedule(task.total_steps, base, _RISE)
    drops: dict[int, float] = {}
    for fraction in recipe.milestones:
        step = round(fraction * task.epochs) * task.steps_per_epoch
        # In a short training, several milestones may round to the same epoch; each applies its factor.
        drops[step] = drops.get(step, 1.0) * recipe.milestone_factor
    return optax.schedules.piecewise_constant_schedule(base, drops)


def optimizer(task: Task) -> optax.GradientTransformation:
    """The optimizer: SGD with momentum and L2 weight decay on every parameter, or AdamW."""
    recipe, rate = task.recipe, learning_rate(task)
    if recipe.optimizer == "adamw":
        tx = optax.adamw(rate, weight_decay=recipe.weight_decay)
    else:
        tx = optax.chain(optax.add_decayed_weights(recipe.weight_decay), optax.sgd(rate, recipe.momentum))
    if task.stage.trains is trains_everything:
        return tx
    return optax.multi_transform({True: tx, False: optax.set_to_zero()}, functools.partial(trained_mask, task))


def trained_mask(task: Task, params: Any) -> Any:
    """A pytree of the structure of `params` with a bool for each parameter: whether the stage trains it."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: task.stage.trains(tuple(str(getattr(key, "key", key)) for key in path)), params
    )
