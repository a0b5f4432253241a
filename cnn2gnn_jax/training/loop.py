"""The training loop: chunks of steps, their inputs, and when their metrics are read.

A *chunk* is a number of consecutive steps of an epoch that are dispatched together. Its *feed* is what the host sends
for it: the indices of the images of each batch, and the images themselves if they are not on the device.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cnn2gnn_jax.data import batches
from cnn2gnn_jax.runtime.devices import ONE, SEEDS, Devices
from cnn2gnn_jax.training.state import TrainState, catch_up, over_seeds, state_axes
from cnn2gnn_jax.training.step import Batch, Metrics, make_step
from cnn2gnn_jax.training.task import Task, learning_rate

_StepResult = tuple[TrainState, Metrics]


def make_chunk(task: Task, seeds: int = 1, devices: Devices = ONE) -> Callable[..., _StepResult]:
    """Makes a function of K steps: `chunk(state, data, teacher_variables, feed, seed) -> (state, metrics)`.

    `data` holds the arrays of the training set that are on the device, (N, ...) each. The arrays are `input` (uint8
    images or features), `label`, and the teacher's cached outputs; see `make_step`. `feed` has `index` and `mask`,
    (K, B), and batches of the arrays that are not in `data`, (K, B, ...). `state` is donated. The metrics are those of
    the K steps, (K,) each.

    Args:
      task: the task.
      seeds: the number of students that train side by side. If it is over 1, the arrays of state, feed, seed and
        metrics have a leading axis of that size.
      devices: the devices to train on. Each has a part of the batch. If they spread seeds, each has whole batches of a
        part of the seeds, whose number must then be a multiple of the number of devices.
    """
    step = make_step(task, devices.shards_head)

    def gather_and_step(state: TrainState, data: Batch, teacher_variables: Any, batch: Batch, seed: Any) -> _StepResult:
        rows = {name: array[batch["index"]] for name, array in data.items()}
        return step(state, {**rows, **batch}, teacher_variables, seed)

    def scanned_steps(state: TrainState, data: Batch, teacher_variables: Any, feed: Batch, seed: Any) -> _StepResult:
        return lax.scan(lambda state, batch: gather_and_step(state, data, teacher_variables, batch, seed), state, feed)

    def step_of_chunk(
        state: TrainState, data: Batch, teacher_variables: Any, feed: Batch, seed: Any, k: jax.Array
    ) -> _StepResult:
        batch = jax.tree.map(lambda array: lax.dynamic_index_in_dim(array, k, keepdims=False), feed)
        return gather_and_step(state, data, teacher_variables, batch, seed)

    if scans_steps(task):
        return _map_over_devices(scanned_steps, task, seeds, devices)
    mapped = _map_over_devices(step_of_chunk, task, seeds, devices, extra_arguments=1)

    def looped_steps(state: TrainState, data: Batch, teacher_variables: Any, feed: Batch, seed: Any) -> _StepResult:
        feed, metrics = jax.tree.map(jnp.asarray, feed), []  # moves it to the device once, not in every step
        for k in range(feed["mask"].shape[_step_axis(seeds, devices)]):
            state, step_metrics = mapped(state, data, teacher_variables, feed, seed, np.int32(k))
            metrics.append(step_metrics)
        return state, jax.tree.map(lambda *steps: jnp.stack(steps, axis=-1), *metrics)

    return looped_steps


def scans_steps(task: Task) -> bool:
    """Whether the steps of a chunk are one `lax.scan`: on accelerators always, on CPUs only without convolutions.

    XLA's CPU backend compiles convolutions to their fast form only outside of loops.
    """
    has_convolutions = not task.is_dense or task.teacher is not None
    return jax.default_backend() != "cpu" or not has_convolutions


def _map_over_devices(
    function: Callable, task: Task, seeds: int, devices: Devices, extra_arguments: int = 0
) -> Callable[..., _StepResult]:
    """Compiles `function(state, data, teacher_variables, feed, seed, ...)` for all seeds and devices.

    The `extra_arguments` after `seed` are shared by all seeds and devices. See `make_chunk`.
    """
    axes, shared = state_axes(task, seeds, devices), (None,) * extra_arguments
    seed_axes = (0, None, None, 0, 0, *shared)
    if not devices.spreads_seeds:
        in_axes = (axes, None, None, _batch_axis(seeds), None, *shared)
        return devices.map(over_seeds(function, seeds, seed_axes), in_axes, (axes, None), donate_argnums=0)

    def local_seeds(*arguments: Any) -> tuple[TrainState, Metrics]:
        state, metrics = jax.vmap(function, seed_axes)(*arguments)
        return state, jax.tree.map(lambda x: lax.all_gather(x, SEEDS, tiled=True), metrics)

    return devices.map(local_seeds, seed_axes, (axes, None), donate_argnums=0)


def _batch_axis(seeds: int) -> int:
    """The axis of the images in a feed, (K, B, ...) or (seeds, K, B, ...)."""
    return 1 if seeds == 1 else 2


def _step_axis(seeds: int, devices: Devices) -> int:
    """The axis of the K steps in a feed: (K, B, ...), (seeds, K, B, ...), or with pmap (devices, seeds, K, B, ...)."""
    if seeds == 1:
        return 0
    return 2 if devices.spreads_seeds and devices.backend == "pmap" else 1


def chunk_bounds(step: int, total: int, per_epoch: int, max_size: int) -> Iterator[tuple[int, int]]:
    """Yields the (first, last + 1) steps of the chunks from `step` to `total`.

    The bounds do not depend on `step`, so a resumed run has the same chunks. No chunk crosses the end of an epoch or
    has more than `max_size` steps. An epoch is divided into chunks of equal size if at most twice the smallest possible
    number of chunks allows it.
    """
    fewest = -(-per_epoch // max_size)
    count = next((k for k in range(fewest, 2 * fewest + 1) if per_epoch % k == 0), fewest)
    size = -(-per_epoch // count)
    while step < total:
        epoch_end = (step // per_epoch + 1) * per_epoch
        start = step - (step % per_epoch) % size  # the first step of the chunk that contains `step`
        end = min(start + size, epoch_end, total)
        yield step, end
        step = end


def epoch_indices(task: Task, first: int, last: int) -> np.ndarray:
    """The positions in the training set, (K, B) int32, of the images of the steps first..last-1 of one epoch."""
    size = task.recipe.batch_size
    epoch, offset = divmod(first, task.steps_per_epoch)
    if task.grouped is None:
        order = batches.epoch_order(task.seed, epoch, task.rows)
    else:
        order = batches.grouped_order(*task.grouped, size, task.seed, epoch)
    return order[offset * size : (offset + last - first) * size].reshape(last - first, size).astype(np.int32)


def feed(
    tasks: Sequence[Task], first: int, last: int, host: Mapping[str, np.ndarray], devices: Devices = ONE
) -> dict[str, Any]:
    """Makes the feed of a chunk of the steps first..last-1, see `make_chunk`.

    Each process reads the rows of its own devices only. If the number of devices does not divide the batch size, the
    batches are padded, with False in `mask`.

    Args:
      tasks: the tasks that train side by side.
      first: the first step.
      last: the step after the last one.
      host: the arrays of the training set that are on the host, (N, ...) each.
      devices: the devices to train on.
    """
    index = np.stack([epoch_indices(task, first, last) for task in tasks])
    mask, axis = np.ones(index.shape, bool), 0
    if devices.spreads_seeds:
        index, mask = (array[devices.local_slice(len(tasks))] for array in (index, mask))
    else:
        if len(tasks) == 1:
            index, mask = index[0], mask[0]
        axis, size = _batch_axis(len(tasks)), index.shape[-1]
        padding = [(0, 0)] * axis + [(0, devices.padded(size) - size)]
        local = devices.local_slice(devices.padded(size))
        index, mask = (np.pad(array, padding)[..., local] for array in (index, mask))
    return devices.split({"index": index, "mask": mask, **{name: rows[index] for name, rows in host.items()}}, axis)


class TrainingData(NamedTuple):
    """The arrays that training reads.

    resident: the arrays of the training set that are on the device, see `make_chunk`.
    host: the other arrays of the training set, (N, ...) each, whose batches are sent chunk by chunk.
    teacher_variables: the variables of the teacher that runs in the step, or None.
    """

    resident: Batch
    host: Mapping[str, np.ndarray] = {}
    teacher_variables: Any = None


class Saver(Protocol):
    """What `fit` asks for: it decides when states are saved, and saves them."""

    def due(self, step: int) -> bool:
        """Whether the state after `step` steps must be saved; called once at the end of each chunk."""

    def save(self, step: int, state: TrainState) -> None:
        """Saves the state after `step` steps."""


def fit(
    tasks: Sequence[Task],
    state: TrainState,
    data: TrainingData,
    on_chunk: Callable[[int, Mapping[str, np.ndarray]], None],
    saver: Saver,
    devices: Devices = ONE,
) -> TrainState:
    """Trains from `state.step` to the end of the stage.

    JAX dispatches a chunk and returns before it has run. The host prepares the feed of the next chunk and dispatches it
    before it reads the metrics of this one, so the device does not wait for the host. Where a state is saved, the
    metrics of its own chunk are read first, so that no state with an infinite loss is saved.

    Args:
      tasks: the tasks; several of them differ only in their seed and train side by side.
      state: the initial state, which is donated. The states of several tasks are stacked on a leading axis.
      data: the training set, and the variables of the teacher in the step.
      on_chunk: called with the first step of a chunk and its metrics on the host, (K,) each, or (tasks, K) for several
        tasks. It raises an exception to stop training.
      saver: asked at the end of each chunk whether to save the state. It must not keep a reference to the state.
      devices: the devices of the state and of `data`.

    Returns:
      The state after the last step.
    """
    task, count = tasks[0], len(tasks)
    chunk, rate_at, axes = make_chunk(task, count, devices), learning_rate(task), state_axes(task, count, devices)
    seed = _place_seeds(tasks, devices)
    start = int(np.max(jax.device_get(state.step)))
    state = devices.place(state, axes)
    unread: tuple[int, Metrics] | None = None
    for first, last in chunk_bounds(start, task.total_steps, task.steps_per_epoch, task.recipe.chunk_steps):
        if first and float(rate_at(first)) != float(rate_at(first - 1)):
            state = catch_up(task, state, first, count, devices)
        chunk_feed = feed(tasks, first, last, data.host, devices)
        state, metrics = chunk(state, data.resident, data.teacher_variables, chunk_feed, seed)
        if unread is not None:
            on_chunk(unread[0], jax.device_get(unread[1]))
        unread = (first, metrics)
        if saver.due(last):
            on_chunk(first, jax.device_get(metrics))
            unread = None
            saver.save(last, devices.collect(state, axes))
    if unread is not None:
        on_chunk(unread[0], jax.device_get(unread[1]))
    return devices.collect(state, axes)


def _place_seeds(tasks: Sequence[Task], devices: Devices) -> Any:
    """The seeds of the tasks as the argument `seed` of a chunk."""
    seeds = np.asarray([task.seed for task in tasks], np.int32)
    if devices.spreads_seeds:
        return devices.split(seeds[devices.local_slice(len(tasks))], 0)
    return devices.replicate(seeds if len(tasks) > 1 else seeds[0])
