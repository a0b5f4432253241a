"""One training step, the same for the teacher, the CNN students and the graph student."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from cnn2gnn_jax import graph, networks
from cnn2gnn_jax.runtime.collectives import all_gather, psum
from cnn2gnn_jax.training import head_table
from cnn2gnn_jax.training.inputs import image_keys, prepare, prepare_plain
from cnn2gnn_jax.training.state import TrainState, apply_student, sgd
from cnn2gnn_jax.training.task import Task, learning_rate, optimizer, trained

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]


def make_step(
    task: Task, shards_head: bool = False
) -> Callable[[TrainState, Batch, Any, jax.Array | int], tuple[TrainState, Metrics]]:
    """The training step `step(state, batch, teacher_variables, seed) -> (state, metrics)`, a pure function.

    `seed`, the task's, is an argument so that tasks which differ in it alone can share the step. The batch, this
    device's part, holds `input` (b, ...), `label`, `index` (the training index) and `mask` (b,), and what the distiller
    needs of the teacher, if it is cached, as `teacher_logits` (b, C), `teacher_pooled` (b, F), `teacher_features1`,
    `teacher_features2`, ... (b, H, W, 1) of the stages.
    With `shards_head` the state's table holds this device's rows alone.
    """
    tx, rate_at = optimizer(task), learning_rate(task)

    def step(
        state: TrainState, batch: Batch, teacher_variables: Any, seed: jax.Array | int
    ) -> tuple[TrainState, Metrics]:
        step_rng = jax.random.fold_in(jax.random.key(seed), state.step)
        image_rng, loss_rng = jax.random.split(step_rng)
        epoch, mask, rate = state.step // task.steps_per_epoch, batch["mask"], rate_at(state.step)
        inputs, seen = _views(task, batch, image_rng)
        teacher = _teacher_outputs(task, batch, inputs, teacher_variables)
        index = all_gather(batch["index"])
        trains_student = any(jax.tree.leaves(trained(task, {"student": state.params["student"]})))
        gathered = None
        if state.table is not None:
            gathered = head_table.gather(state.table, index, state.step, rate, sgd(task), shards_head)

        def objective(params, values):
            rows = jax.tree.map(lambda leaf: leaf[index], params["table"]) if "table" in params else values
            outputs, adjacency, stats = apply_student(task, params["student"], state.stats, rows, inputs, seen)
            loss, memory, metrics = task.stage.loss(
                params["distiller"], state.memory, outputs, teacher, batch, epoch, loss_rng
            )
            if task.off_weight:
                off = dataclasses.replace(task, module=task.module.clone(graph="off"))
                alone, _, _ = apply_student(off, params["student"], state.stats, None, inputs, seen)
                off_loss = task.stage.loss(params["distiller"], memory, alone, teacher, batch, epoch, loss_rng)[0]
                # A mean and not a sum, which would act as a higher learning rate.
                loss = (loss + task.off_weight * off_loss) / (1 + task.off_weight)
            return loss, (memory, metrics, stats, outputs.logits, adjacency)

        (loss, aux), (gradients, row_gradients) = jax.value_and_grad(objective, argnums=(0, 1), has_aux=True)(
            state.params, None if gathered is None else gathered.values
        )
        memory, metrics, stats, logits, adjacency = aux
        gradients, row_gradients = psum((gradients, row_gradients))
        updates, opt_state = tx.update(gradients, state.opt_state, state.params)
        table = state.table
        if table is not None and gathered is not None:
            everyone = all_gather(mask)
            table = head_table.update(table, index, gathered, row_gradients, rate, sgd(task), everyone, shards_head)
        count = jnp.maximum(psum(jnp.sum(mask)), 1)
        correct = jnp.sum((jnp.argmax(logits[: len(mask)], -1) == batch["label"]) & mask) / count
        metrics = psum({"loss": loss, "accuracy": 100 * correct, **metrics})
        if adjacency is not None:
            looped = graph.add_self_loops(adjacency) if task.module.self_loops else adjacency  # type: ignore[attr-defined]
            labels, real = all_gather(batch["label"]), all_gather(mask)
            found = graph.diagnostics(looped, jnp.arange(len(labels)), labels, labels, real, real)
            metrics |= {name: found[name] for name in ("self_weight", "label_agreement")}
        if not trains_student:
            stats = state.stats
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, stats, opt_state, table, memory), metrics

    return step


def _views(task: Task, batch: Batch, rng: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The network inputs of a batch and their mask: (b, ...), or (2b, ...) for a method with a second view."""
    images, index, mask = batch["input"], batch["index"], batch["mask"]
    plain_rng, crop_rng, view_rng = jax.random.split(rng, 3)
    plain = prepare(task, images, plain_rng, index)
    if task.distiller.second_view is None:
        return plain, mask
    view = functools.partial(task.distiller.second_view, image_keys(view_rng, index))
    second = prepare(task, images, crop_rng, index, view)
    return jnp.concatenate([plain, second]), jnp.concatenate([mask, mask])


def teacher_shapes(task: Task, data: Mapping[str, Any]) -> networks.Outputs | None:
    """The shapes of what the step gives the distiller of the teacher, for one image."""

    def outputs() -> networks.Outputs | None:
        batch = {name: jnp.zeros((1, *array.shape[1:]), array.dtype) for name, array in data.items()}
        inputs = prepare_plain(task, batch["input"])
        variables = None if task.teacher is None else task.teacher.init(jax.random.key(0), inputs)
        return _teacher_outputs(task, batch, inputs, variables)

    return jax.eval_shape(outputs)


def _teacher_outputs(task: Task, batch: Batch, inputs: jax.Array, variables: Any) -> networks.Outputs | None:
    if not task.distiller.teacher:
        return None
    if task.teacher is not None:
        live: Any = task.teacher.apply(variables, inputs, train=False)
        return lax.stop_gradient(live)
    cached: dict[str, Any] = {name: batch.get(f"teacher_{name}") for name in ("logits", "pooled")}
    stages = [batch[name] for name in sorted(batch) if name.startswith("teacher_features")]
    cached["features"] = (None, *stages) if stages else ()  # in place of the stem's map, which no loss reads
    return networks.Outputs(preactivations=(), **cached)
