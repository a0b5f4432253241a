"""The training step, which the teacher, the CNN students and the graph student share."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from cnn2gnn_jax import graph, networks
from cnn2gnn_jax.distillers.base import LossInputs
from cnn2gnn_jax.runtime.collectives import all_gather, psum
from cnn2gnn_jax.training import head_table
from cnn2gnn_jax.training.inputs import image_keys, prepare, prepare_plain
from cnn2gnn_jax.training.state import TrainState, apply_student, sgd
from cnn2gnn_jax.training.task import Task, learning_rate, optimizer, trained_mask

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]


def make_step(
    task: Task, shards_head: bool = False
) -> Callable[[TrainState, Batch, Any, jax.Array | int], tuple[TrainState, Metrics]]:
    """Makes the training step `step(state, batch, teacher_variables, seed) -> (state, metrics)`, a pure function.

    The batch is this device's part of the global batch: `input` (b, ...), and `label`, `index` (the position in the
    training set) and `mask`, (b,) each. It also holds the teacher's outputs that the distiller needs, if they are
    cached: `teacher_logits` (b, C), `teacher_pooled` (b, F), and for each stage `teacher_features1`, ... (b, H, W, 1).
    The task's seed is an argument, so that tasks which differ only in their seed share the compiled step.

    Gradients, metrics and BatchNorm statistics are those of the global batch, and so equal on all devices.

    Args:
      task: the task.
      shards_head: whether the state's table holds only this device's rows.

    Returns:
      The step. Its metrics are scalars: `loss`, `accuracy` in percent, those of the distiller's loss, and with a graph
      `self_weight` and `label_agreement` of `graph.diagnostics`.
    """
    return functools.partial(_step, task, shards_head)


def _step(
    task: Task, shards_head: bool, state: TrainState, batch: Batch, teacher_variables: Any, seed: jax.Array | int
) -> tuple[TrainState, Metrics]:
    view_rng, loss_rng = jax.random.split(jax.random.fold_in(jax.random.key(seed), state.step))
    epoch, rate = state.step // task.steps_per_epoch, learning_rate(task)(state.step)
    images, mask = _views(task, batch, view_rng)
    teacher = _teacher_outputs(task, batch, images, teacher_variables)
    index = all_gather(batch["index"])
    table = batch_table = None  # the head's table, and its rows for the batch
    if state.table is not None:
        batch_table = head_table.gather(state.table, index, state.step, rate, sgd(task), shards_head)

    def loss_of(outputs: networks.Outputs, params: Any, memory: Any) -> tuple[jax.Array, Any, Metrics]:
        return task.stage.loss(params, memory, LossInputs(outputs, teacher, batch, epoch, loss_rng))

    def objective(params: Any, head_rows: Any) -> tuple[jax.Array, Any]:
        if "table" in params:
            head_rows = jax.tree.map(lambda leaf: leaf[index], params["table"])
        outputs, adjacency, stats = apply_student(task, params["student"], state.stats, head_rows, images, mask)
        loss, memory, metrics = loss_of(outputs, params["distiller"], state.memory)
        if task.off_weight:
            task_off = dataclasses.replace(task, module=task.module.clone(graph="off"))
            outputs_off, _, _ = apply_student(task_off, params["student"], state.stats, None, images, mask)
            loss_off, _, _ = loss_of(outputs_off, params["distiller"], memory)
            # A weighted mean, since a sum would act as a higher learning rate.
            loss = (loss + task.off_weight * loss_off) / (1 + task.off_weight)
        return loss, (memory, metrics, stats, outputs.logits, adjacency)

    (loss, aux), (gradients, row_gradients) = jax.value_and_grad(objective, argnums=(0, 1), has_aux=True)(
        state.params, None if batch_table is None else batch_table.values
    )
    gradients, row_gradients = psum((gradients, row_gradients))
    updates, opt_state = optimizer(task).update(gradients, state.opt_state, state.params)
    if state.table is not None and batch_table is not None:
        batch_table = head_table.sgd_step(batch_table, row_gradients, rate, sgd(task))
        table = head_table.scatter(state.table, index, batch_table, all_gather(batch["mask"]), shards_head)
    memory, metrics, stats, logits, adjacency = aux
    metrics = _metrics(task, batch, logits, adjacency, {"loss": loss, **metrics})
    if not any(jax.tree.leaves(trained_mask(task, {"student": state.params["student"]}))):
        stats = state.stats  # a stage that trains no parameter of the student leaves its statistics, too
    params = optax.apply_updates(state.params, updates)
    return TrainState(state.step + 1, params, stats, opt_state, table, memory), metrics


def _metrics(task: Task, batch: Batch, logits: jax.Array, adjacency: jax.Array | None, shares: Metrics) -> Metrics:
    """The metrics of the global batch: the sums of the devices' `shares`, the accuracy, and graph diagnostics."""
    label, mask = batch["label"], batch["mask"]
    count = jnp.maximum(psum(jnp.sum(mask)), 1)
    correct = jnp.sum((jnp.argmax(logits[: len(mask)], -1) == label) & mask) / count  # without the second views
    metrics = psum({"accuracy": 100 * correct, **shares})
    if adjacency is None:
        return metrics
    if task.module.self_loops:  # type: ignore[attr-defined]
        adjacency = graph.add_self_loops(adjacency)
    labels, global_mask = all_gather(label), all_gather(mask)
    diagnostics = graph.diagnostics(adjacency, jnp.arange(len(labels)), labels, labels, global_mask, global_mask)
    return metrics | {name: diagnostics[name] for name in ("self_weight", "label_agreement")}


def _views(task: Task, batch: Batch, rng: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The network inputs of a batch, (b, ...), and their mask, (b,).

    For a method with a second view of each image, both have 2b rows: the second views follow the images.
    """
    images, index, mask = batch["input"], batch["index"], batch["mask"]
    plain_rng, crop_rng, view_rng = jax.random.split(rng, 3)
    plain = prepare(task, images, plain_rng, index)
    if task.distiller.second_view is None:
        return plain, mask
    view = functools.partial(task.distiller.second_view, image_keys(view_rng, index))
    second = prepare(task, images, crop_rng, index, view)
    return jnp.concatenate([plain, second]), jnp.concatenate([mask, mask])


def teacher_shapes(task: Task, data: Mapping[str, Any]) -> networks.Outputs | None:
    """The shapes of the teacher's outputs for one image, as the step passes them to the distiller."""

    def outputs() -> networks.Outputs | None:
        batch = {name: jnp.zeros((1, *array.shape[1:]), array.dtype) for name, array in data.items()}
        inputs = prepare_plain(task, batch["input"])
        variables = None if task.teacher is None else task.teacher.init(jax.random.key(0), inputs)
        return _teacher_outputs(task, batch, inputs, variables)

    return jax.eval_shape(outputs)


def _teacher_outputs(task: Task, batch: Batch, inputs: jax.Array, variables: Any) -> networks.Outputs | None:
    """The teacher's outputs for a batch, computed from `inputs` or read from the batch; None without a teacher."""
    if not task.distiller.teacher:
        return None
    if task.teacher is not None:
        outputs: Any = task.teacher.apply(variables, inputs, train=False)
        return lax.stop_gradient(outputs)
    cached: dict[str, Any] = {name: batch.get(f"teacher_{name}") for name in ("logits", "pooled")}
    stages = [batch[name] for name in sorted(batch) if name.startswith("teacher_features")]
    cached["features"] = (None, *stages) if stages else ()  # None stands for the stem's map, which no loss reads
    return networks.Outputs(preactivations=(), **cached)
