"""Training with checkpoints: tasks continue from their newest checkpoints, and their metrics are recorded."""

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
from cnn2gnn_jax.runtime.console import log
from cnn2gnn_jax.runtime.devices import ONE, Devices
from cnn2gnn_jax.training import loop
from cnn2gnn_jax.training.checkpoint import Checkpoints, recover
from cnn2gnn_jax.training.metrics import Recorder
from cnn2gnn_jax.training.saving import BestSaver, NewestSaver, Seeds, local
from cnn2gnn_jax.training.state import TrainState, init_state, state_axes
from cnn2gnn_jax.training.step import teacher_shapes
from cnn2gnn_jax.training.task import Task, with_stage

Load = Callable[[], TrainState]  # reads a trained state from disk; later calls return the same state
_DEVICE_FRACTION = 0.5  # the part of a device's memory that the training set may fill; the step needs the rest
_CPU_FRACTION = 0.25  # the same on the CPU, whose memory other processes share


class Job(NamedTuple):
    """A task to train.

    task: the task.
    name: its name in the records.
    checkpoints: the folder of its checkpoints, with a folder for each stage.
    owner: the fingerprint in the manifests of its checkpoints, which are refused if they have another one.
    """

    task: Task
    name: str
    checkpoints: pathlib.Path
    owner: str


class Setting(NamedTuple):
    """Where and how to train, which does not change the trained state.

    records: the JSON lines file for metrics.
    every_seconds: the seconds between checkpoints; 0 for a checkpoint after each chunk.
    residency: where the training set is kept: `device`, `host` (gathered one chunk ahead), or `auto` by its size.
    tensorboard: the folder for TensorBoard events, or None.
    devices: the devices to train on.
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
    """Trains all stages of each job from its newest checkpoint, and skips jobs that are complete.

    Args:
      jobs: jobs whose tasks differ only in the seed; those with equal progress train side by side, see
        `loop.make_chunk`. The stage of a task is replaced by each stage of its distiller in turn.
      load_data: returns the training set, see `loop.make_chunk`; not called if nothing is trained or loaded.
      score: returns the accuracy in percent of a task's state on the held-out images, for the epoch rule `best`.
      setting: where and how to train.
      teacher_variables: returns the variables of the teacher that runs in the step, or None.

    Returns:
      For each job a function that reads its trained state: the last one, or the best one under the epoch rule `best`.
      `saving.local` describes on which devices it is.

    Raises:
      Diverged: a loss or a weight is not finite.
      Stopped: SIGTERM or Ctrl-C was received; the state is saved.
      UserError: a checkpoint is damaged or has another owner.
    """
    training = _Training(functools.cache(load_data), score, setting)
    unfinished = []
    for job in jobs:
        progress = _progress(job)
        if progress == (len(job.task.distiller.stages) - 1, _last_stage(job).total_steps):
            log(f"{job.name}: already trained")
        else:
            unfinished.append((progress, job))
    if unfinished:
        resident, host = place_training_set(training.load_data(), setting.residency, setting.devices)
        data = loop.TrainingData(resident, host, setting.devices.replicate(teacher_variables()))
        unfinished.sort(key=operator.itemgetter(0))  # by progress, as groupby needs it
        for progress, group in itertools.groupby(unfinished, key=operator.itemgetter(0)):
            with processes.stopping_between_chunks():
                training.train([job for _, job in group], progress, data)
    return [functools.cache(functools.partial(training.load, job)) for job in jobs]


def _last_stage(job: Job) -> Task:
    """The job's task at its last stage."""
    return with_stage(job.task, job.task.distiller.stages[-1])


def place_training_set(
    arrays: Mapping[str, np.ndarray], residency: str, devices: Devices = ONE
) -> tuple[dict[str, jax.Array], dict[str, np.ndarray]]:
    """Places the training set on the devices or on the host.

    Args:
      arrays: the training set, (N, ...) each.
      residency: `device`, `host`, or `auto`: on the devices if they have room.
      devices: the devices to train on.

    Returns:
      The arrays that are on every device, and those that stay on the host.
    """
    size = sum(array.nbytes for array in arrays.values())
    memory = jax.local_devices()[0].memory_stats() or {}  # None on the CPU
    if "bytes_limit" in memory:
        room = int(_DEVICE_FRACTION * memory["bytes_limit"])
    else:
        room = int(_CPU_FRACTION * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / devices.local_count)
    if residency == "auto":
        residency = "device" if processes.agreed(size <= room) else "host"
    log(f"{size / 1e6:.0f} MB of training data stay on the {residency} (room on the device: {room / 1e6:.0f} MB)")
    if residency == "host":
        return {}, dict(arrays)
    return devices.replicate(dict(arrays)), {}


def _newest_step(job: Job, stage: str) -> int:
    """The step of a stage's newest intact checkpoint; 0 without one."""
    steps: list[int] = []  # empty except in the first process
    processes.on_first(lambda: steps.append(recover(job.checkpoints / stage / "last", job.owner)))
    return processes.agreed(steps[0] if steps else 0)


def _progress(job: Job) -> tuple[int, int]:
    """The position of the stage that a job is in, and the number of steps done in it."""
    for k, stage in reversed(list(enumerate(job.task.distiller.stages))):
        if step := _newest_step(job, stage.name):
            return k, step
    return 0, 0


class _Training(NamedTuple):
    """The training of jobs, with arguments of `fit_on_disk`. `load_data` returns the same arrays in each call."""

    load_data: Callable[[], dict[str, np.ndarray]]
    score: Callable[[Task, TrainState], float]
    setting: Setting

    def initial(self, task: Task, seed: int | jax.Array | None = None) -> TrainState:
        """The initial state of a task; see `init_state`."""
        devices, data = self.setting.devices, self.load_data()
        table_rows = devices.padded(task.rows) if devices.shards_head else None
        return init_state(task, data["input"], teacher_shapes(task, data), seed, table_rows)

    def shapes(self, task: Task) -> TrainState:
        """The shapes and shardings of one task's state, which are the same whether seeds are spread or not."""
        devices = dataclasses.replace(self.setting.devices, spreads_seeds=False)
        return devices.shaped(jax.eval_shape(lambda: self.initial(task)), state_axes(task, 1, devices))

    def load(self, job: Job) -> TrainState:
        """Reads the trained state of a job from disk."""
        task = _last_stage(job)
        folder = job.checkpoints / task.stage.name / ("best" if task.recipe.epoch == "best" else "last")
        with Checkpoints(folder, job.owner) as checkpoints:
            return local(checkpoints.restore(self.shapes(task)))

    def train(self, jobs: Sequence[Job], progress: tuple[int, int], data: loop.TrainingData) -> None:
        """Trains the remaining stages of jobs with equal `progress`, as `_progress` returns it."""
        first_stage, start = progress
        previous: list[TrainState] | None = None
        for stage in jobs[0].task.distiller.stages[first_stage:]:
            previous = self._train_stage(jobs, stage, start, previous, data)
            start = 0

    def _train_stage(
        self,
        jobs: Sequence[Job],
        stage: Stage,
        start: int,
        previous: list[TrainState] | None,
        data: loop.TrainingData,
    ) -> list[TrainState]:
        """Trains a stage from step `start`. If that is 0, the stage continues from the states `previous`, if any."""
        tasks, stages = [with_stage(job.task, stage) for job in jobs], jobs[0].task.distiller.stages
        task, setting, devices = tasks[0], self.setting, self.setting.devices
        devices = dataclasses.replace(devices, spreads_seeds=devices.spreads_seeds and len(tasks) > 1)
        shapes = self.shapes(task)
        seeds = Seeds(task, shapes, len(tasks), devices)
        names = [job.name if len(stages) == 1 else f"{job.name} {stage.name}" for job in jobs]
        with contextlib.ExitStack() as stack:

            def checkpoints(name: str, **keep: int) -> list[Checkpoints]:
                folders = [(job.checkpoints / stage.name / name, job.owner) for job in jobs]
                return [stack.enter_context(Checkpoints(folder, owner, **keep)) for folder, owner in folders]

            newest = checkpoints("last")
            if start:
                log(f"{', '.join(names)}: resuming at step {start} of {task.total_steps}")
                states = [folder.restore(shapes) for folder in newest]
            else:
                states = self._initial_states(tasks, seeds, previous)
            records = setting.records if processes.is_first() else None
            recorder = stack.enter_context(Recorder(records, names, start, task, setting.tensorboard))
            saver_arguments = (names, tasks, newest, setting.every_seconds, seeds, start)
            if task.recipe.epoch == "best" and stage is stages[-1]:
                saver: NewestSaver = BestSaver(checkpoints("best", keep=1), self.score, *saver_arguments)
            else:
                saver = NewestSaver(*saver_arguments)
            # Seeds are spread in equal numbers. Copies of the last task fill the last device; they are not saved.
            copies = devices.padded(len(tasks)) - len(tasks) if devices.spreads_seeds else 0
            on_chunk = functools.partial(_record, recorder, copies, saver)
            stacked = seeds.stack(states + states[-1:] * copies)
            state = loop.fit(tasks + tasks[-1:] * copies, stacked, data, on_chunk, saver, devices)
            return seeds.split(state)

    def _initial_states(
        self, tasks: Sequence[Task], seeds: Seeds, previous: list[TrainState] | None
    ) -> list[TrainState]:
        """The initial states of a stage, with the parameters of the previous stage."""
        initial = jax.jit(functools.partial(self.initial, tasks[0]), out_shardings=seeds.split_on)
        states = [initial(np.int32(task.seed)) for task in tasks]
        if previous is None:
            return states
        return [
            state.replace(params=trained.params, stats=trained.stats, memory=trained.memory)
            for state, trained in zip(states, previous, strict=True)
        ]


def _record(recorder: Recorder, copies: int, saver: NewestSaver, first: int, metrics: Mapping[str, np.ndarray]) -> None:
    """Records the metrics of a chunk, without those of the last `copies` tasks."""
    if copies:
        metrics = {name: values[:-copies] for name, values in metrics.items()}
    recorder.chunk(first, metrics, saver.saved_step)
