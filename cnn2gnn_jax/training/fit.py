"""Training that survives: tasks trained from their newest checkpoints on, with their metrics recorded."""

import contextlib
import dataclasses
import functools
import itertools
import operator
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from cnn2gnn_jax.distillers import Stage
from cnn2gnn_jax.runtime import processes
from cnn2gnn_jax.runtime.console import say
from cnn2gnn_jax.runtime.devices import ONE, Devices
from cnn2gnn_jax.training import loop
from cnn2gnn_jax.training.checkpoint import Checkpoints, recover
from cnn2gnn_jax.training.metrics import Recorder
from cnn2gnn_jax.training.saving import BestSaver, NewestSaver, Seeds, local
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


class Setting(NamedTuple):
    """Where and how jobs are trained: all that does not change what comes out.

    records: the JSON lines file.
    every_seconds: between checkpoints; 0 for one after each chunk.
    residency: where the training set is kept: `device`, `host` (gathered a chunk ahead), `auto` by its size.
    tensorboard: folder for events.
    devices: to train on.
    """

    records: pathlib.Path
    every_seconds: float
    residency: str = "auto"
    tensorboard: pathlib.Path | None = None
    devices: Devices = ONE


def fit_on_disk(
    jobs: Sequence[Job],
    load_data: Callable[[], dict[str, np.ndarray]],
    score: Callable[[Task, TrainState], float],
    setting: Setting,
    teacher_variables: Callable[[], Any] = lambda: None,
) -> list[Load]:
    """Trains all stages of each job from its newest checkpoint on; nothing of those whose last one is complete.

    Args:
      jobs: their tasks differ in the seed alone; those equally far train side by side, see `loop.make_chunk`. A
        task's stage is replaced by each of its distiller's in turn.
      load_data: the training set, see `loop.make_chunk`; not called where nothing is to be trained or loaded.
      score: percent right on the held-out images, for the epoch rule `best`.
      setting: where and how.
      teacher_variables: of the teacher in the step.

    Returns:
      For each job a function that reads its trained state: the last one, or the best under that rule. See
      `saving.local` for where it is.
    """
    training = _Training(functools.cache(load_data), score, setting)
    unfinished = []
    for job in jobs:
        progress = _progress(job)
        if progress == (len(job.task.distiller.stages) - 1, _last(job).total_steps):
            say(f"{job.name}: already trained")
        else:
            unfinished.append((progress, job))
    if unfinished:
        resident, host = place(training.arrays(), setting.residency, setting.devices)
        source = loop.Source(resident, host, setting.devices.replicate(teacher_variables()))
        unfinished.sort(key=operator.itemgetter(0))
        for progress, group in itertools.groupby(unfinished, key=operator.itemgetter(0)):
            with processes.stopping_between_chunks():
                training.train([job for _, job in group], progress, source)
    return [functools.cache(functools.partial(training.load, job)) for job in jobs]


def _last(job: Job) -> Task:
    """The job's task at its last stage."""
    return with_stage(job.task, job.task.distiller.stages[-1])


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


class _Training(NamedTuple):
    """The training of jobs: their training set, what chooses an epoch, and the setting, see `fit_on_disk`."""

    arrays: Callable[[], dict[str, np.ndarray]]
    score: Callable[[Task, TrainState], float]
    setting: Setting

    def fresh(self, task: Task, seed: int | jax.Array | None = None) -> TrainState:
        """The state that a task begins with."""
        devices, arrays = self.setting.devices, self.arrays()
        rows = devices.padded(task.rows) if devices.shards_head else None
        return init_state(task, arrays["input"], teacher_shapes(task, arrays), seed, rows)

    def shapes(self, task: Task) -> TrainState:
        """What one task's state looks like and where it is kept: the same whether seeds are spread or not."""
        whole = dataclasses.replace(self.setting.devices, spreads_seeds=False)
        return whole.shaped(jax.eval_shape(lambda: self.fresh(task)), state_axes(task, 1, whole))

    def load(self, job: Job) -> TrainState:
        """The trained state of a job, from disk."""
        task = _last(job)
        folder = job.checkpoints / task.stage.name / ("best" if task.recipe.epoch == "best" else "last")
        with Checkpoints(folder, job.owner) as found:
            return local(found.restore(self.shapes(task)))

    def train(self, jobs: Sequence[Job], progress: tuple[int, int], source: loop.Source) -> None:
        """Trains the stages that are left of jobs which are equally far: the stage they are in, and its steps."""
        begun, start = progress
        before: list[TrainState] | None = None
        for stage in jobs[0].task.distiller.stages[begun:]:
            before = self._train_stage(jobs, stage, start, before, source)
            start = 0

    def _train_stage(
        self, jobs: Sequence[Job], stage: Stage, start: int, before: list[TrainState] | None, source: loop.Source
    ) -> list[TrainState]:
        """The states after a stage, of which `start` steps are done; `before` are those after the stage before it."""
        tasks, stages = [with_stage(job.task, stage) for job in jobs], jobs[0].task.distiller.stages
        task, setting, devices = tasks[0], self.setting, self.setting.devices
        devices = dataclasses.replace(devices, spreads_seeds=devices.spreads_seeds and len(tasks) > 1)
        shapes = self.shapes(task)
        seeds = Seeds(task, shapes, len(tasks), devices)
        names = [job.name if len(stages) == 1 else f"{job.name} {stage.name}" for job in jobs]
        with contextlib.ExitStack() as opened:

            def checkpoints(which: str, **keep: int) -> list[Checkpoints]:
                folders = [(job.checkpoints / stage.name / which, job.owner) for job in jobs]
                return [opened.enter_context(Checkpoints(folder, owner, **keep)) for folder, owner in folders]

            newest = checkpoints("last")
            if start:
                say(f"{', '.join(names)}: resuming at step {start} of {task.total_steps}")
                states = [folder.restore(shapes) for folder in newest]
            else:
                states = self._begin(tasks, seeds, before)
            records = setting.records if processes.is_first() else None
            recorder = opened.enter_context(Recorder(records, names, start, task, setting.tensorboard))
            common = (names, tasks, newest, setting.every_seconds, seeds, start)
            if task.recipe.epoch == "best" and stage is stages[-1]:
                saver: NewestSaver = BestSaver(checkpoints("best", keep=1), self.score, *common)
            else:
                saver = NewestSaver(*common)
            # Where seeds are spread, copies of the last one fill up what some devices lack; nothing of them is kept.
            copies = devices.padded(len(tasks)) - len(tasks) if devices.spreads_seeds else 0
            on_chunk = functools.partial(_record, recorder, copies, saver)
            stacked = seeds.stack(states + states[-1:] * copies)
            state = loop.fit(tasks + tasks[-1:] * copies, stacked, source, on_chunk, saver, devices)
            return seeds.apart(state)

    def _begin(self, tasks: Sequence[Task], seeds: Seeds, before: list[TrainState] | None) -> list[TrainState]:
        """Fresh states of a stage, with the parameters of the stage before it."""
        first = jax.jit(functools.partial(self.fresh, tasks[0]), out_shardings=seeds.apart_on)
        states = [first(np.int32(task.seed)) for task in tasks]
        if before is None:
            return states
        return [
            state.replace(params=old.params, stats=old.stats, memory=old.memory)
            for state, old in zip(states, before, strict=True)
        ]


def _record(recorder: Recorder, copies: int, saver: NewestSaver, first: int, metrics: Mapping[str, np.ndarray]) -> None:
    """Records what is no copy's."""
    own = {name: values[:-copies] for name, values in metrics.items()} if copies else metrics
    recorder.chunk(first, own, saver.saved_step)
