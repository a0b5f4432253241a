"""One state, one step and one loop for the teacher, the CNN students and the graph student."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from cnn2gnn_jax import gnn, graph, head_table, networks, parallel
from cnn2gnn_jax.data import augment, batches
from cnn2gnn_jax.head_table import HeadTable, Sgd
from cnn2gnn_jax.parallel import AXIS, ONE, Devices, all_gather, psum
from cnn2gnn_jax.task import Task, learning_rate, on_one_shard, optimizer, trained

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]


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


def _sgd(task: Task) -> Sgd:
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


def _image_keys(rng: jax.Array, index: jax.Array) -> jax.Array:
    """A key of each image's own, so that a batch is augmented alike however it is spread over devices."""
    return jax.vmap(functools.partial(jax.random.fold_in, rng))(index)


def prepare(
    task: Task,
    images: jax.Array,
    rng: jax.Array,
    index: jax.Array,
    view: Callable[[jax.Array], jax.Array] = lambda images: images,
) -> jax.Array:
    """Network inputs of raw uint8 images: cropped and flipped if the recipe says so, seen through `view`, normalised.

    Stored features pass through.
    """
    if task.mean and task.recipe.augment:
        images = augment.crop_and_flip(_image_keys(rng, index), images)
    return prepare_plain(task, view(images))


def prepare_plain(task: Task, images: jax.Array) -> jax.Array:
    """Network inputs of raw uint8 images without augmentation; stored features pass through."""
    return augment.normalize(images, task.mean, task.std) if task.mean else images


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
    tx, rate_at, axis = optimizer(task), learning_rate(task), task.axis_name
    table_axis = axis if shards_head else None

    def step(
        state: TrainState, batch: Batch, teacher_variables: Any, seed: jax.Array | int
    ) -> tuple[TrainState, Metrics]:
        step_rng = jax.random.fold_in(jax.random.key(seed), state.step)
        image_rng, loss_rng = jax.random.split(step_rng)
        epoch, mask, rate = state.step // task.steps_per_epoch, batch["mask"], rate_at(state.step)
        inputs, seen = _views(task, batch, image_rng)
        teacher = _teacher_outputs(task, batch, inputs, teacher_variables)
        index = all_gather(batch["index"], axis)
        trains_student = any(jax.tree.leaves(trained(task, {"student": state.params["student"]})))
        gathered = None
        if state.table is not None:
            gathered = head_table.gather(state.table, index, state.step, rate, _sgd(task), table_axis)

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
        gradients, row_gradients = psum((gradients, row_gradients), axis)
        updates, opt_state = tx.update(gradients, state.opt_state, state.params)
        table = state.table
        if table is not None and gathered is not None:
            everyone = all_gather(mask, axis)
            table = head_table.update(table, index, gathered, row_gradients, rate, _sgd(task), everyone, table_axis)
        count = jnp.maximum(psum(jnp.sum(mask), axis), 1)
        correct = jnp.sum((jnp.argmax(logits[: len(mask)], -1) == batch["label"]) & mask) / count
        metrics = psum({"loss": loss, "accuracy": 100 * correct, **metrics}, axis)
        if adjacency is not None:
            looped = graph.add_self_loops(adjacency) if task.module.self_loops else adjacency  # type: ignore[attr-defined]
            labels, real = all_gather(batch["label"], axis), all_gather(mask, axis)
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
    view = functools.partial(task.distiller.second_view, _image_keys(view_rng, index))
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


def over_seeds(function: Callable, count: int, in_axes: Any = 0) -> Callable:
    """`function` for `count` tasks at once: their states and metrics have a leading axis if there are several."""
    return function if count == 1 else jax.vmap(function, in_axes)


def state_axes(task: Task, seeds: int = 1, devices: Devices = ONE) -> Any:
    """How a state, or the stacked states of several seeds, is spread over devices, see `parallel.Devices`."""
    if devices.spreads_seeds:
        return 0
    table = (0 if seeds == 1 else 1) if devices.shards_head and updates_rows(task) else None
    return TrainState(step=None, params=None, stats=None, opt_state=None, table=table, memory=None)  # type: ignore[arg-type]


def make_chunk(task: Task, seeds: int = 1, devices: Devices = ONE) -> Callable[..., tuple[TrainState, Metrics]]:
    """K steps: `chunk(state, data, teacher_variables, feed, seed) -> (state, metrics of K steps)`.

    `data` holds what is on the device of the training set, (N, ...) each: `input` (uint8 images or features), `label`,
    the teacher's cached outputs. `feed` has `index` and `mask`, (K, B), and the batches of what is not in `data`,
    (K, B, ...). With `seeds` > 1 the arrays of state, feed, seed and metrics have a leading axis of that size, and
    the students train side by side. `state` is donated. On several `devices` each has a part of the batch or, if they
    spread seeds, of the seeds, whose number is a multiple of theirs.
    """
    step = make_step(on_one_shard(task, devices.batch_axis), devices.shards_head)

    def one_step(
        state: TrainState, data: Batch, teacher_variables: Any, batch: Batch, seed: jax.Array
    ) -> tuple[TrainState, Metrics]:
        rows = {name: array[batch["index"]] for name, array in data.items()}
        return step(state, {**rows, **batch}, teacher_variables, seed)

    def scanned_steps(
        state: TrainState, data: Batch, teacher_variables: Any, feed: Batch, seed: jax.Array
    ) -> tuple[TrainState, Metrics]:
        return lax.scan(lambda state, batch: one_step(state, data, teacher_variables, batch, seed), state, feed)

    def step_of_feed(
        state: TrainState, data: Batch, teacher_variables: Any, feed: Batch, seed: jax.Array, k: jax.Array
    ) -> tuple[TrainState, Metrics]:
        batch = jax.tree.map(lambda array: lax.dynamic_index_in_dim(array, k, keepdims=False), feed)
        return one_step(state, data, teacher_variables, batch, seed)

    if scans_steps(task):
        return _map_over_devices(scanned_steps, task, seeds, devices)
    mapped = _map_over_devices(step_of_feed, task, seeds, devices, extra_arguments=1)

    def looped_steps(
        state: TrainState, data: Batch, teacher_variables: Any, feed: Batch, seed: jax.Array
    ) -> tuple[TrainState, Metrics]:
        feed, metrics = jax.tree.map(jnp.asarray, feed), []  # put on the device once, not in every step
        for k in range(feed["mask"].shape[_step_axis(seeds, devices)]):
            state, metrics_of_step = mapped(state, data, teacher_variables, feed, seed, np.int32(k))
            metrics.append(metrics_of_step)
        return state, jax.tree.map(lambda *steps: jnp.stack(steps, axis=-1), *metrics)

    return looped_steps


def scans_steps(task: Task) -> bool:
    """Whether the steps of a chunk are one `lax.scan`. On the CPU they are not if there are convolutions among them.

    XLA's CPU backend brings a convolution into its fast form outside of loops alone.
    """
    has_convolutions = not task.is_dense or task.teacher is not None
    return jax.default_backend() != "cpu" or not has_convolutions


def _map_over_devices(
    function: Callable, task: Task, seeds: int, devices: Devices, extra_arguments: int = 0
) -> Callable[..., tuple[TrainState, Metrics]]:
    """`function(state, data, teacher_variables, feed, seed, ...)` compiled for all seeds and devices, see `make_chunk`.

    The `extra_arguments` after `seed` are the same for all.
    """
    axes, shared = state_axes(task, seeds, devices), (None,) * extra_arguments
    seed_axes = (0, None, None, 0, 0, *shared)
    if not devices.spreads_seeds:
        in_axes = (axes, None, None, _batch_axis(seeds), None, *shared)
        return devices.map(over_seeds(function, seeds, seed_axes), in_axes, (axes, None), donate_argnums=0)

    def own_seeds(*arguments: Any) -> tuple[TrainState, Metrics]:
        state, metrics = jax.vmap(function, seed_axes)(*arguments)
        return state, jax.tree.map(lambda x: all_gather(x, AXIS), metrics)

    return devices.map(own_seeds, seed_axes, (axes, None), donate_argnums=0)


def _batch_axis(seeds: int) -> int:
    """Where the images of a feed are, (K, B, ...) or (seeds, K, B, ...)."""
    return 1 if seeds == 1 else 2


def _step_axis(seeds: int, devices: Devices) -> int:
    """Where the K steps of a feed are: (K, B, ...), (seeds, K, B, ...), or with pmap (devices, seeds, K, B, ...)."""
    if seeds == 1:
        return 0
    return 2 if devices.spreads_seeds and devices.backend == "pmap" else 1


def chunk_bounds(step: int, total: int, per_epoch: int, longest: int) -> Iterator[tuple[int, int]]:
    """The (first, last + 1) steps of the chunks from `step` to `total`; a pure function of the other arguments.

    Chunks end at epochs and are at most `longest`; an epoch is cut into equal ones if up to twice the fewest do.
    """
    fewest = -(-per_epoch // longest)
    pieces = next((k for k in range(fewest, 2 * fewest + 1) if per_epoch % k == 0), fewest)
    size = -(-per_epoch // pieces)
    while step < total:
        epoch_end = (step // per_epoch + 1) * per_epoch
        start = step - (step % per_epoch) % size  # where a chunk that holds `step` begins
        end = min(start + size, epoch_end, total)
        yield step, end
        step = end


def epoch_indices(task: Task, first: int, last: int) -> np.ndarray:
    """The training indices (K, B) of the steps first..last-1 of one epoch."""
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
    """What a chunk of the steps first..last-1 is fed, see `make_chunk`; the rows of `host`, (N, ...) each, with it.

    Each process reads the rows of its own devices alone. Batches that do not divide by the devices are padded.
    """
    index = np.stack([epoch_indices(task, first, last) for task in tasks])
    mask, axis = np.ones(index.shape, bool), 0
    if devices.spreads_seeds:
        index, mask = (array[devices.own(len(tasks))] for array in (index, mask))
    else:
        if len(tasks) == 1:
            index, mask = index[0], mask[0]
        axis, size = _batch_axis(len(tasks)), index.shape[-1]
        missing = [(0, 0)] * axis + [(0, devices.padded(size) - size)]
        own = devices.own(devices.padded(size))
        index, mask = (np.pad(array, missing)[..., own] for array in (index, mask))
    return devices.split({"index": index, "mask": mask, **{name: rows[index] for name, rows in host.items()}}, axis)


def catch_up(task: Task, state: TrainState, step: int, seeds: int = 1, devices: Devices = ONE) -> TrainState:
    """The state with all head rows caught up at the rate that held before `step`: call where the rate changes."""
    if state.table is None:
        return state
    rate, axes = learning_rate(task)(step - 1), state_axes(task, seeds, devices)
    move = over_seeds(lambda table: head_table.catch_up(table, jnp.int32(step), rate, _sgd(task)), seeds)
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
        return head_table.gather(table, jnp.asarray(index), step, rate, _sgd(task)).values

    return parallel.local(devices.everywhere(rows)(state.table, np.asarray(state.step)))


class Saver(Protocol):
    """Keeps states on the way."""

    def due(self, step: int) -> bool:
        """Whether `save` is to be called after `step` steps."""

    def save(self, step: int, state: TrainState) -> None:
        """Saves the state after `step` steps."""


def fit(
    tasks: Sequence[Task],
    state: TrainState,
    data: Batch,
    teacher_variables: Any,
    on_chunk: Callable[[int, Mapping[str, np.ndarray]], None],
    saver: Saver,
    host: Mapping[str, np.ndarray] | None = None,
    devices: Devices = ONE,
) -> TrainState:
    """Trains from `state.step` to the end of the stage.

    The next chunk is dispatched before the last one's metrics are read, and gathered from `host` while the last one
    runs; except where a state is to be saved: its own metrics are read first, so that no state is kept whose loss was
    not finite.

    Args:
      tasks: what is trained; several differ in their seed alone and train side by side.
      state: where to start; donated. Of several tasks, stacked on a leading axis.
      data: what is on the device of the training set, see `make_chunk`.
      teacher_variables: of the teacher in the step, or None.
      on_chunk: called with the first step of a chunk and its metrics, each (K,), on the host; of several tasks
        (tasks, K). It raises to stop.
      saver: asked at the end of each chunk whether to save the state, which it must not keep.
      host: the rest of the training set, gathered chunk by chunk.
      devices: what the state and `data` are on.
    """
    task, count = tasks[0], len(tasks)
    chunk, rate_at, axes = make_chunk(task, count, devices), learning_rate(task), state_axes(task, count, devices)
    seed = _seeds(tasks, devices)
    start = int(np.max(jax.device_get(state.step)))
    state = devices.place(state, axes)
    pending: tuple[int, Metrics] | None = None
    for first, last in chunk_bounds(start, task.total_steps, task.steps_per_epoch, task.recipe.chunk_steps):
        if first and float(rate_at(first)) != float(rate_at(first - 1)):
            state = catch_up(task, state, first, count, devices)
        state, metrics = chunk(state, data, teacher_variables, feed(tasks, first, last, host or {}, devices), seed)
        if pending is not None:
            on_chunk(pending[0], jax.device_get(pending[1]))
        pending = (first, metrics)
        if saver.due(last):
            on_chunk(first, jax.device_get(metrics))
            pending = None
            saver.save(last, devices.collect(state, axes))
    if pending is not None:
        on_chunk(pending[0], jax.device_get(pending[1]))
    return devices.collect(state, axes)


def _seeds(tasks: Sequence[Task], devices: Devices) -> Any:
    seeds = np.asarray([task.seed for task in tasks], np.int32)
    if devices.spreads_seeds:
        return devices.split(seeds[devices.own(len(tasks))], 0)
    return devices.replicate(seeds if len(tasks) > 1 else seeds[0])
