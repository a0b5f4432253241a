"""The state of training: how it begins, how it is spread over devices, and the head's rows in it."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from cnn2gnn_jax import gnn, networks
from cnn2gnn_jax.runtime.devices import ONE, Devices, on_first_device
from cnn2gnn_jax.training import head_table
from cnn2gnn_jax.training.head_table import HeadTable, Sgd
from cnn2gnn_jax.training.inputs import prepare_plain
from cnn2gnn_jax.training.task import Task, learning_rate, optimizer


class TrainState(flax.struct.PyTreeNode):
    """Everything that a step changes.

    step: steps taken in this stage.
    params: `student`, `distiller`, and `table` where the head's decision layer is updated densely.
    stats: the student's BatchNorm statistics.
    opt_state: Optax's.
    table: the head's decision layer where it is updated row by row, otherwise None.
    memory: the distiller's.
    """

    step: jax.Array
    params: dict[str, Any]
    stats: Any
    opt_state: Any
    table: HeadTable | None
    memory: Any

    @property
    def variables(self) -> dict[str, Any]:
        """The student's, for `module.apply`."""
        return {"params": self.params["student"], "batch_stats": self.stats}


def updates_rows(task: Task) -> bool:
    """Whether the head's decision layer is updated row by row; otherwise the optimiser updates it densely."""
    return task.has_head and task.recipe.head_update == "rows"


def sgd(task: Task) -> Sgd:
    return Sgd(task.recipe.momentum, task.recipe.weight_decay)


def apply_student(
    task: Task, params: Any, stats: Any, rows: gnn.HeadRows | None, inputs: jax.Array, mask: jax.Array
) -> tuple[networks.Outputs, jax.Array | None, Any]:
    """The student in training mode: its outputs, the batch's adjacency or None, and the new statistics."""
    variables = {"params": params, "batch_stats": stats}
    arguments = (inputs, rows) if task.is_graph else (inputs,)
    answer, changed = task.module.apply(variables, *arguments, train=True, mask=mask, mutable=["batch_stats"])
    outputs, adjacency = answer if task.is_graph else (answer, None)
    return outputs, adjacency, changed.get("batch_stats", {})


def init_state(
    task: Task,
    inputs: Any,
    teacher: networks.Outputs | None,
    seed: int | jax.Array | None = None,
    table_rows: int | None = None,
) -> TrainState:
    """A fresh state.

    Args:
      task: what is trained.
      inputs: raw inputs (n, ...), or their shapes; no value is read.
      teacher: the teacher's Outputs, or their shapes, as far as the distiller needs them.
      seed: instead of the task's, so that one compiled function serves many.
      table_rows: of the head's table where it is to have more than n_train, so that devices can share them evenly.
    """
    # Of all generators this one compiles fastest by far, and an initialisation draws for hundreds of parameters.
    rng = jax.random.key(task.seed if seed is None else seed, impl="rbg")
    student_rng, table_rng, distiller_rng = jax.random.split(rng, 3)
    batch = jnp.zeros((task.recipe.batch_size, *inputs.shape[1:]), inputs.dtype)
    images = prepare_plain(task, batch)
    table = rows = None
    if task.has_head:
        table = head_table.init(table_rng, table_rows or task.rows, task.module.head_widths[-1])  # type: ignore[attr-defined]
        rows = jax.tree.map(lambda leaf: jnp.zeros((len(images), *leaf.shape[1:]), leaf.dtype), table.values)
    variables = task.module.init(student_rng, *((images, rows) if task.is_graph else (images,)))
    params, stats = variables["params"], variables.get("batch_stats", {})
    shapes = jax.eval_shape(lambda: apply_student(task, params, stats, rows, images, jnp.ones(len(images), bool))[0])
    extra, memory = task.distiller.init(distiller_rng, shapes, teacher)
    every = {"student": params, "distiller": extra}
    if table is not None and not updates_rows(task):
        every["table"], table = table.values, None
    return TrainState(jnp.zeros((), jnp.int32), every, stats, optimizer(task).init(every), table, memory)


def over_seeds(function: Callable, count: int, in_axes: Any = 0) -> Callable:
    """`function` for `count` tasks at once: their states and metrics have a leading axis if there are several."""
    return function if count == 1 else jax.vmap(function, in_axes)


def state_axes(task: Task, seeds: int = 1, devices: Devices = ONE) -> Any:
    """How a state, or the stacked states of several seeds, is spread over devices, see `runtime.devices.Devices`."""
    if devices.spreads_seeds:
        return 0
    table = (0 if seeds == 1 else 1) if devices.shards_head and updates_rows(task) else None
    return TrainState(step=None, params=None, stats=None, opt_state=None, table=table, memory=None)  # type: ignore[arg-type]


def catch_up(task: Task, state: TrainState, step: int, seeds: int = 1, devices: Devices = ONE) -> TrainState:
    """The state with all head rows caught up at the rate that held before `step`: call where the rate changes."""
    if state.table is None:
        return state
    rate, axes = learning_rate(task)(step - 1), state_axes(task, seeds, devices)
    move = over_seeds(lambda table: head_table.catch_up(table, jnp.int32(step), rate, sgd(task)), seeds)
    whole = devices.collect(state, axes)
    return devices.place(whole.replace(table=jax.jit(move)(whole.table)), axes)


def head_rows(task: Task, state: TrainState, index: np.ndarray, devices: Devices = ONE) -> gnn.HeadRows | None:
    """The head rows of the training images `index`, caught up; None without a head."""
    if not task.has_head:
        return None
    if state.table is None:
        return jax.tree.map(lambda leaf: leaf[index], state.params["table"])

    def rows(table: HeadTable, step: jax.Array) -> gnn.HeadRows:
        rate = learning_rate(task)(jnp.maximum(step - 1, 0))
        return head_table.gather(table, jnp.asarray(index), step, rate, sgd(task)).values

    return on_first_device(devices.everywhere(rows)(state.table, np.asarray(state.step)))
