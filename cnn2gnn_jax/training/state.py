"""The state of training: its initialization, its sharding over devices, and the head's rows in it."""

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

    step: the number of steps taken in this stage.
    params: the parameters `student` and `distiller`, and `table` where the head's decision layer is updated densely.
    stats: the student's BatchNorm statistics.
    opt_state: the state of the Optax optimizer.
    table: the head's decision layer where it is updated row by row; otherwise None.
    memory: the distiller's memory.
    """

    step: jax.Array
    params: dict[str, Any]
    stats: Any
    opt_state: Any
    table: HeadTable | None
    memory: Any

    @property
    def variables(self) -> dict[str, Any]:
        """The student's variables, for `module.apply`."""
        return {"params": self.params["student"], "batch_stats": self.stats}


def updates_rows(task: Task) -> bool:
    """Whether the head's decision layer is updated row by row, and not densely by the optimizer."""
    return task.has_head and task.recipe.head_update == "rows"


def sgd(task: Task) -> Sgd:
    """The SGD hyperparameters of a task."""
    return Sgd(task.recipe.momentum, task.recipe.weight_decay)


def apply_student(
    task: Task, params: Any, stats: Any, rows: gnn.HeadRows | None, inputs: jax.Array, mask: jax.Array
) -> tuple[networks.Outputs, jax.Array | None, Any]:
    """Applies the student in training mode.

    Args:
      task: the task.
      params: the student's parameters.
      stats: its BatchNorm statistics.
      rows: the head rows of the batch, or None.
      inputs: network inputs, (B, ...).
      mask: (B,), False for padding.

    Returns:
      The outputs, the adjacency of the batch (B, B) or None, and the new statistics.
    """
    variables = {"params": params, "batch_stats": stats}
    arguments = (inputs, rows) if task.is_graph else (inputs,)
    result, updated = task.module.apply(variables, *arguments, train=True, mask=mask, mutable=["batch_stats"])
    outputs, adjacency = result if task.is_graph else (result, None)
    return outputs, adjacency, updated.get("batch_stats", {})


def init_state(
    task: Task,
    inputs: Any,
    teacher: networks.Outputs | None,
    seed: int | jax.Array | None = None,
    table_rows: int | None = None,
) -> TrainState:
    """Initializes a state.

    Args:
      task: the task.
      inputs: raw inputs (n, ...), or their shapes; no value is read.
      teacher: the teacher's outputs that the distiller needs, or their shapes.
      seed: replaces the task's seed, so that one compiled function serves several tasks.
      table_rows: the number of rows of the head's table, if more than n_train, so that it divides by the devices.
    """
    # This generator compiles much faster than the others, and an initialization draws hundreds of parameters.
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
    distiller_params, memory = task.distiller.init(distiller_rng, shapes, teacher)
    all_params = {"student": params, "distiller": distiller_params}
    if table is not None and not updates_rows(task):
        all_params["table"], table = table.values, None
    return TrainState(jnp.zeros((), jnp.int32), all_params, stats, optimizer(task).init(all_params), table, memory)


def over_seeds(function: Callable, count: int, in_axes: Any = 0) -> Callable:
    """Maps `function` over `count` tasks: if there are several, states and metrics have a leading axis."""
    return function if count == 1 else jax.vmap(function, in_axes)


def state_axes(task: Task, seeds: int = 1, devices: Devices = ONE) -> Any:
    """The axes along which a state, or the stacked states of several seeds, is split, see `runtime.devices.Devices`."""
    if devices.spreads_seeds:
        return 0
    table = (0 if seeds == 1 else 1) if devices.shards_head and updates_rows(task) else None
    return TrainState(step=None, params=None, stats=None, opt_state=None, table=table, memory=None)  # type: ignore[arg-type]


def catch_up(task: Task, state: TrainState, step: int, seeds: int = 1, devices: Devices = ONE) -> TrainState:
    """Catches up all head rows at the learning rate before `step`; call it at each step where the rate changes."""
    if state.table is None:
        return state
    rate, axes = learning_rate(task)(step - 1), state_axes(task, seeds, devices)
    catch_up_table = over_seeds(lambda table: head_table.catch_up(table, jnp.int32(step), rate, sgd(task)), seeds)
    collected = devices.collect(state, axes)
    return devices.place(collected.replace(table=jax.jit(catch_up_table)(collected.table)), axes)


def head_rows(task: Task, state: TrainState, index: np.ndarray, devices: Devices = ONE) -> gnn.HeadRows | None:
    """The head rows of the training images `index`, (B,), caught up; None without a head."""
    if not task.has_head:
        return None
    if state.table is None:
        return jax.tree.map(lambda leaf: leaf[index], state.params["table"])

    def rows(table: HeadTable, step: jax.Array) -> gnn.HeadRows:
        rate = learning_rate(task)(jnp.maximum(step - 1, 0))
        return head_table.gather(table, jnp.asarray(index), step, rate, sgd(task)).values

    return on_first_device(devices.everywhere(rows)(state.table, np.asarray(state.step)))
