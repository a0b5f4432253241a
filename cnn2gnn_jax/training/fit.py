"""Training that survives: tasks trained from their newest checkpoints on, with their metrics recorded."""

import contextlib
import dataclasses
import functools
import itertools
import operator
import os
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cnn2gnn_jax.runtime import processes
from cnn2gnn_jax.runtime.console import say
from cnn2gnn_jax.runtime.devices import ONE, Devices, on_first_device
from cnn2gnn_jax.training import loop
from cnn2gnn_jax.training.checkpoint import Checkpoints, recover
from cnn2gnn_jax.training.metrics import Recorder, not_finite
from cnn2gnn_jax.training.state import TrainState, init_state, state_axes
from cnn2gnn_jax.training.step import teacher_shapes
from cnn2gnn_jax.training.task import Task, with_stage

Load = Callable[[], TrainState]  # reads a trained state from disk, once
_DEVICE_SHARE = 0.5  # the part of a device's memory that the training set may fill; the rest is for the step
_HOST_SHARE = 0.25  # likewise where the device is the CPU, whose memory is everyone's


class Job(NamedTuple):
    """A task with its name in the records, the folder of its checkpoints, and what these are marked with.

    Each stage has a folder of its own there.
    """

    task: Task
    name: str
    checkpoints: pathlib.Path
    owner: str


def fit_on_disk(
    jobs: Sequence[Job],
    *,
    records: pathlib.Path,
    load_data: Callable[[], dict[str, np.ndarray]],
    score: Callable[[Task, TrainState], float],
    every_seconds: float,
    residency: str = "auto",
    teacher_variables: Callable[[], Any] = lambda: None,
    tensorboard: pathlib.Path | None = None,
    devices: Devices = ONE,
) -> list[Load]:
    """Trains all stages of each job from its newest checkpoint on; nothing of those whose last one is complete.

    Args:
      jobs: their tasks differ in the seed alone; those equally far train side by side, see `loop.make_chunk`. A
        task's stage is replaced by each of its distiller's in turn.
      records: the JSON lines file.
      load_data: the training set, see `loop.make_chunk`; not called where nothing is to be trained or loaded.
      score: percent right on the held-out images, for the epoch rule `best`.
      every_seconds: between checkpoints; 0 for one after each chunk.
      residency: where the training set is kept: `device`, `host` (gathered a chunk ahead), `auto` by its size.
      teacher_variables: of the teacher in the step.
      tensorboard: folder for events.
      devices: to train on.

    Returns:
      For each job a function that reads its trained state: the last one, or the best under that rule. It is on this
      process's first device but for the head's table, which is where training left it, see `state.head_rows`.
    """
    arrays = functools.cache(load_data)
    last = jobs[0].task.distiller.stages[-1]

    def fresh(task: Task, seed: int | jax.Array | None = None) -> TrainState:
        rows = devices.padded(task.rows) if devices.shards_head else None
        return init_state(task, arrays()["input"], teacher_shapes(task, arrays()), seed, rows)

    def reader(job: Job) -> Load:
        @functools.cache
        def load() -> TrainState:
            folder = job.checkpoints / last.name / ("best" if job.task.recipe.epoch == "best" else "last")
            with Checkpoints(folder, job.owner) as found:
                return _local(found.restore(_shapes(with_stage(job.task, last), fresh, devices)))

        return load

    unfinished = []
    for job in jobs:
        progress = _progress(job)
        if progress == (len(job.task.distiller.stages) - 1, with_stage(job.task, last).total_steps):
            say(f"{job.name}: already trained")
        else:
            unfinished.append((progress, job))
    if unfinished:
        resident, host = place(arrays(), residency, devices)
        variables = devices.replicate(teacher_variables())
        recording = functools.partial(Recorder, records if processes.is_first() else None, tensorboard=tensorboard)
        unfinished.sort(key=operator.itemgetter(0))
        for progress, group in itertools.groupby(unfinished, key=operator.itemgetter(0)):
            together = [job for _, job in group]
            used = dataclasses.replace(devices, spreads_seeds=devices.spreads_seeds and len(together) > 1)
            with processes.stopping_between_chunks():
                _train(together, progress, fresh, resident, host, variables, recording, score, every_seconds, used)
    return [reader(job) for job in jobs]


def _shapes(task: Task, fresh: Callable[..., TrainState], devices: Devices) -> TrainState:
    """What one task's state looks like and where it is kept: the same whether seeds are spread or not."""
    whole = dataclasses.replace(devices, spreads_seeds=False)
    return whole.shaped(jax.eval_shape(lambda: fresh(task)), state_axes(task, 1, whole))


def _local(state: TrainState) -> TrainState:
    return on_first_device(state.replace(table=None)).replace(table=state.table)


def place(
    arrays: Mapping[str, np.ndarray], residency: str, devices: Devices = ONE
) -> tuple[dict[str, jax.Array], dict[str, np.ndarray]]:
    """The training set by place: what is put on each device, and what stays with the host.

    Args:
      arrays: (N, ...) each.
      residency: `device`, `host`, or `auto`: the device if it has room.
      devices: to train on.
    """
    size = sum(array.nbytes for array in arrays.values())
    facts = jax.local_devices()[0].memory_stats() or {}  # None on the CPU
    if "bytes_limit" in facts:
        room = int(_DEVICE_SHARE * facts["bytes_limit"])
    else:
        room = int(_HOST_SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / devices.local_count)
    if residency == "auto":
        residency = "device" if processes.agreed(size <= room) else "host"
    say(f"{size / 1e6:.0f} MB of training data stay on the {residency} (room on the device: {room / 1e6:.0f} MB)")
    if residency == "host":
        return {}, dict(arrays)
    return devices.replicate(dict(arrays)), {}


def _newest(job: Job, stage: str) -> int:
    """The steps that are done of a stage, 0 without a sound checkpoint."""
    step = 0

    def look() -> None:
        nonlocal step
        step = recover(job.checkpoints / stage / "last", job.owner)

    processes.on_first(look)
    return processes.agreed(step)


def _progress(job: Job) -> tuple[int, int]:
    """The stage that a job is in, and the steps of it that are done."""
    for k, stage in reversed(list(enumerate(job.task.distiller.stages))):
        if step := _newest(job, stage.name):
            return k, step
    return 0, 0


def _train(
    jobs: Sequence[Job],
    progress: tuple[int, int],
    fresh: Callable[..., TrainState],
    resident: dict[str, jax.Array],
    host: dict[str, np.ndarray],
    teacher_variables: Any,
    recording: Callable[..., Recorder],
    score: Callable[[Task, TrainState], float],
    every_seconds: float,
    devices: Devices,
) -> None:
    """Trains the stages that are left of jobs which are equally far: the stage they are in, and its steps."""
    begun, start = progress
    stages = jobs[0].task.distiller.stages
    before: list[TrainState] | None = None
    for stage in stages[begun:]:
        tasks = [with_stage(job.task, stage) for job in jobs]
        task = tasks[0]
        shapes = _shapes(task, fresh, devices)
        seeds = _Seeds(task, shapes, len(tasks), devices)
        names = [job.name if len(stages) == 1 else f"{job.name} {stage.name}" for job in jobs]
        with contextlib.ExitStack() as opened:
            folders = [(job.checkpoints / stage.name, job.owner) for job in jobs]
            newest = [opened.enter_context(Checkpoints(folder / "last", owner)) for folder, owner in folders]
            if start:
                say(f"{', '.join(names)}: resuming at step {start} of {task.total_steps}")
                states = [checkpoints.restore(shapes) for checkpoints in newest]
            else:
                first = jax.jit(functools.partial(fresh, task), out_shardings=seeds.apart_on)
                states = [first(np.int32(task.seed)) for task in tasks]
                if before is not None:
                    states = [
                        state.replace(params=old.params, stats=old.stats, memory=old.memory)
                        for state, old in zip(states, before, strict=True)
                    ]
            recorder = opened.enter_context(
                recording(names, start, task.total_steps, task.steps_per_epoch, task.recipe.batch_size)
            )
            if task.recipe.epoch == "best" and stage is stages[-1]:
                best = [opened.enter_context(Checkpoints(folder / "best", owner, keep=1)) for folder, owner in folders]
                saver: _Saver = _BestSaver(best, score, names, tasks, newest, every_seconds, seeds, start)
            else:
                saver = _Saver(names, tasks, newest, every_seconds, seeds, start)
            # Where seeds are spread, copies of the last one fill up what some devices lack; nothing of them is kept.
            copies = devices.padded(len(tasks)) - len(tasks) if devices.spreads_seeds else 0
            state = loop.fit(
                tasks + tasks[-1:] * copies,
                seeds.stack(states + states[-1:] * copies),
                resident,
                teacher_variables,
                functools.partial(_record, recorder, copies, saver),
                saver,
                host,
                devices,
            )
            before = seeds.apart(state)
        start = 0


def _record(recorder: Recorder, copies: int, saver: "_Saver", first: int, metrics: Mapping[str, np.ndarray]) -> None:
    """Records what is no copy's."""
    own = {name: values[:-copies] for name, values in metrics.items()} if copies else metrics
    recorder.chunk(first, own, saver.saved_step)


class _Seeds:
    """The states of tasks that train side by side: stacked for training, apart on disk; one state as it is.

    Args:
      task: one of them.
      shape: of one state, with its sharding.
      count: of tasks.
      devices: to train on.
    """

    def __init__(self, task: Task, shape: TrainState, count: int, devices: Devices) -> None:
        self.count = count
        self.apart_on = jax.tree.map(lambda leaf: leaf.sharding, shape)
        whole = dataclasses.replace(devices, spreads_seeds=False)
        self.stacked_on = whole.shardings(state_axes(task, count, whole), shape)
        self._apart = jax.jit(
            lambda state: [jax.tree.map(lambda leaf, k=k: leaf[k], state) for k in range(count)],
            out_shardings=[self.apart_on] * count,
        )

    def stack(self, states: Sequence[TrainState]) -> TrainState:
        if len(states) == 1:
            return states[0]
        stack = jax.jit(
            lambda *states: jax.tree.map(lambda *leaves: jnp.stack(leaves), *states), out_shardings=self.stacked_on
        )
        return stack(*states)

    def apart(self, state: TrainState) -> list[TrainState]:
        """Of the first `count` states; more are copies."""
        return [state] if self.count == 1 else self._apart(state)


@jax.jit
def _finite(state: TrainState) -> jax.Array:
    """Whether all numbers of a state are finite."""
    numbers = [leaf for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in numbers]))


class _Saver:
    """Saves the newest states, every so often, at the end, and where the run is to stop.

    Raises:
      Stopped: from `save`, after SIGTERM or Ctrl-C.
      UserError: from `save`, where a state is not finite.
    """

    def __init__(
        self,
        names: Sequence[str],
        tasks: Sequence[Task],
        newest: Sequence[Checkpoints],
        every_seconds: float,
        seeds: _Seeds,
        start: int,
    ) -> None:
        self.names = names
        self.tasks, self.newest, self.every_seconds, self.seeds = tasks, newest, every_seconds, seeds
        self.saved_at, self.saved_step, self.look_at = time.monotonic(), start, start
        self.stopping = self.saves_newest = False

    def due(self, step: int) -> bool:
        self.stopping = processes.must_stop()
        self.saves_newest = self.stopping or step == self.tasks[0].total_steps or self._long_ago(step)
        return self.saves_newest

    def _sound(self, step: int, state: TrainState) -> list[TrainState]:
        """The states of the tasks, apart, all of whose numbers are finite.

        The loss of a step is that before its update, so a state can be broken whose losses were not.
        """
        states = self.seeds.apart(state)
        for name, one in zip(self.names, states, strict=True):
            if not _finite(one):
                raise not_finite(name, "the weights became NaN or infinite", step, self.saved_step)
        return states

    def _long_ago(self, step: int) -> bool:
        """Whether the last save is too long ago by the first process's clock.

        Asking it makes the processes wait for each other, so they do when it may be time, at the speed up to now.
        """
        if step < self.look_at:
            return False
        elapsed = processes.agreed(time.monotonic() - self.saved_at)
        if jax.process_count() > 1 and 0 < elapsed < self.every_seconds:
            done = step - self.saved_step
            self.look_at = step + int(done * (self.every_seconds - elapsed) / elapsed)
        return elapsed >= self.every_seconds

    def save(self, step: int, state: TrainState) -> None:
        self._keep(step, self._sound(step, state))
        if self.stopping and step < self.tasks[0].total_steps:
            raise processes.stopped(f"after step {step} of {self.tasks[0].total_steps}")

    def _keep(self, step: int, states: Sequence[TrainState]) -> None:
        if self.saves_newest:
            for checkpoints, one in zip(self.newest, states, strict=True):
                checkpoints.save(step, one)
            self.saved_at, self.saved_step, self.look_at = time.monotonic(), step, step


class _BestSaver(_Saver):
    """Also saves, apart, the state of the epoch with the highest score; the first of equals."""

    def __init__(self, best: Sequence[Checkpoints], score: Callable[[Task, TrainState], float], *common: Any) -> None:
        super().__init__(*common)
        self.best, self.score = best, score
        self.highest = [-1.0 if chosen.newest() is None else chosen.facts()["accuracy"] for chosen in best]

    def due(self, step: int) -> bool:
        return super().due(step) or step % self.tasks[0].steps_per_epoch == 0

    def _keep(self, step: int, states: Sequence[TrainState]) -> None:
        if step % self.tasks[0].steps_per_epoch == 0:
            for k, (task, one) in enumerate(zip(self.tasks, states, strict=True)):
                accuracy = self.score(task, _local(one))
                if accuracy > self.highest[k]:
                    self.highest[k] = accuracy
                    self.best[k].save(step, one, {"accuracy": accuracy})
                    self.best[k].wait()  # a resumed run must find it, whichever state is the newest
        super()._keep(step, states)
