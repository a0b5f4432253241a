"""Training that survives: tasks trained from their newest checkpoints on, with their metrics recorded."""

import contextlib
import functools
import itertools
import os
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cnn2gnn_jax import train
from cnn2gnn_jax.checkpoint import Checkpoints
from cnn2gnn_jax.metrics import Recorder, say
from cnn2gnn_jax.task import Task, with_stage
from cnn2gnn_jax.train import TrainState

Load = Callable[[], TrainState]  # reads a trained state from disk, once
_DEVICE_SHARE = 0.5  # the part of a device's memory that the training set may fill; the rest is for the step
_HOST_SHARE = 0.25  # likewise where the device is the CPU, whose memory is everyone's


class Job(NamedTuple):
    """A task with its name in the records and the folder of its checkpoints; each stage has one of its own there."""

    task: Task
    name: str
    checkpoints: pathlib.Path


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
) -> list[Load]:
    """Trains all stages of each job from its newest checkpoint on; nothing of those whose last one is complete.

    Args:
      jobs: their tasks differ in the seed alone; those equally far train side by side, see `train.make_chunk`. A
        task's stage is replaced by each of its distiller's in turn.
      records: the JSON lines file.
      load_data: the training set, see `train.make_chunk`; not called where nothing is to be trained or loaded.
      score: percent right on the held-out images, for the epoch rule `best`.
      every_seconds: between checkpoints; 0 for one after each chunk.
      residency: where the training set is kept: `device`, `host` (gathered a chunk ahead), `auto` by its size.
      teacher_variables: of the teacher in the step.
      tensorboard: folder for events.

    Returns:
      For each job a function that reads its trained state: the last one, or the best under that rule.
    """
    arrays = functools.cache(load_data)
    last = jobs[0].task.distiller.stages[-1]

    def fresh(task: Task, seed: int | jax.Array | None = None) -> TrainState:
        return train.init_state(task, arrays()["input"], train.teacher_shapes(task, arrays()), seed)

    def reader(job: Job) -> Load:
        @functools.cache
        def load() -> TrainState:
            folder = job.checkpoints / last.name / ("best" if job.task.recipe.epoch == "best" else "last")
            with Checkpoints(folder) as found:
                return found.restore(jax.eval_shape(lambda: fresh(with_stage(job.task, last))))

        return load

    unfinished = []
    for job in jobs:
        if _newest(job, last.name) == with_stage(job.task, last).total_steps:
            say(f"{job.name}: already trained")
        else:
            unfinished.append(job)
    if unfinished:
        resident, host = place(arrays(), residency)
        variables = teacher_variables()
        recording = functools.partial(Recorder, records, tensorboard=tensorboard)
        for _, group in itertools.groupby(sorted(unfinished, key=_progress), key=_progress):
            _train(list(group), fresh, resident, host, variables, recording, score, every_seconds)
    return [reader(job) for job in jobs]


def place(arrays: Mapping[str, np.ndarray], residency: str) -> tuple[dict[str, jax.Array], dict[str, np.ndarray]]:
    """The training set by place: what is put on the device, and what stays with the host.

    Args:
      arrays: (N, ...) each.
      residency: `device`, `host`, or `auto`: the device if it has room.
    """
    size = sum(array.nbytes for array in arrays.values())
    facts = jax.local_devices()[0].memory_stats() or {}  # None on the CPU
    if "bytes_limit" in facts:
        room = int(_DEVICE_SHARE * facts["bytes_limit"])
    else:
        room = int(_HOST_SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    if residency == "auto":
        residency = "device" if size <= room else "host"
    say(f"{size / 1e6:.0f} MB of training data stay on the {residency} (room on the device: {room / 1e6:.0f} MB)")
    if residency == "host":
        return {}, dict(arrays)
    return {name: jnp.asarray(array) for name, array in arrays.items()}, {}


def _newest(job: Job, stage: str) -> int | None:
    folder = job.checkpoints / stage / "last"
    if not folder.is_dir():
        return None
    with Checkpoints(folder) as checkpoints:
        return checkpoints.newest()


def _progress(job: Job) -> tuple[int, int]:
    """The stage that a job is in, and the steps of it that are done."""
    newest = [_newest(job, stage.name) for stage in job.task.distiller.stages]
    begun = max((k for k, step in enumerate(newest) if step is not None), default=0)
    return begun, newest[begun] or 0


def _train(
    jobs: Sequence[Job],
    fresh: Callable[..., TrainState],
    resident: dict[str, jax.Array],
    host: dict[str, np.ndarray],
    teacher_variables: Any,
    recording: Callable[..., Recorder],
    score: Callable[[Task, TrainState], float],
    every_seconds: float,
) -> None:
    """Trains the stages that are left of jobs which are equally far."""
    begun, start = _progress(jobs[0])
    stages = jobs[0].task.distiller.stages
    before: list[TrainState] | None = None
    for stage in stages[begun:]:
        tasks = [with_stage(job.task, stage) for job in jobs]
        task = tasks[0]
        names = [job.name if len(stages) == 1 else f"{job.name} {stage.name}" for job in jobs]
        with contextlib.ExitStack() as opened:
            folders = [job.checkpoints / stage.name for job in jobs]
            newest = [opened.enter_context(Checkpoints(folder / "last")) for folder in folders]
            if start:
                say(f"{', '.join(names)}: going on after step {start} of {task.total_steps}")
                shapes = jax.eval_shape(functools.partial(fresh, task))
                states = [checkpoints.restore(shapes) for checkpoints in newest]
            else:
                first = jax.jit(functools.partial(fresh, task))
                states = [first(jnp.int32(task.seed)) for task in tasks]
                if before is not None:
                    states = [
                        state.replace(params=old.params, stats=old.stats, memory=old.memory)
                        for state, old in zip(states, before, strict=True)
                    ]
            recorder = opened.enter_context(
                recording(names, start, task.total_steps, task.steps_per_epoch, task.recipe.batch_size)
            )
            if task.recipe.epoch == "best" and stage is stages[-1]:
                best = [opened.enter_context(Checkpoints(folder / "best", keep=1)) for folder in folders]
                saver: _Saver = _BestSaver(tasks, newest, every_seconds, best, score)
            else:
                saver = _Saver(tasks, newest, every_seconds)
            state = train.fit(tasks, _stack(states), resident, teacher_variables, recorder.chunk, saver, host)
            before = _unstack(state, len(tasks))
        start = 0


def _stack(states: Sequence[TrainState]) -> TrainState:
    return states[0] if len(states) == 1 else jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)


def _unstack(state: TrainState, count: int) -> list[TrainState]:
    return [state] if count == 1 else [jax.tree.map(lambda leaf, k=k: leaf[k], state) for k in range(count)]


class _Saver:
    """Saves the newest states, every so often and at the end."""

    def __init__(self, tasks: Sequence[Task], newest: Sequence[Checkpoints], every_seconds: float) -> None:
        self.tasks, self.newest, self.every_seconds = tasks, newest, every_seconds
        self.saved_at = time.monotonic()

    def due(self, step: int) -> bool:
        return step == self.tasks[0].total_steps or time.monotonic() - self.saved_at >= self.every_seconds

    def save(self, step: int, state: TrainState) -> None:
        if _Saver.due(self, step):
            for checkpoints, one in zip(self.newest, _unstack(state, len(self.tasks)), strict=True):
                checkpoints.save(step, one)
            self.saved_at = time.monotonic()


class _BestSaver(_Saver):
    """Also saves, apart, the state of the epoch with the highest score; the first of equals."""

    def __init__(
        self,
        tasks: Sequence[Task],
        newest: Sequence[Checkpoints],
        every_seconds: float,
        best: Sequence[Checkpoints],
        score: Callable[[Task, TrainState], float],
    ) -> None:
        super().__init__(tasks, newest, every_seconds)
        self.best, self.score = best, score
        self.highest = [-1.0 if chosen.newest() is None else chosen.facts()["accuracy"] for chosen in best]

    def due(self, step: int) -> bool:
        return super().due(step) or step % self.tasks[0].steps_per_epoch == 0

    def save(self, step: int, state: TrainState) -> None:
        if step % self.tasks[0].steps_per_epoch == 0:
            for k, (task, one) in enumerate(zip(self.tasks, _unstack(state, len(self.tasks)), strict=True)):
                accuracy = self.score(task, one)
                if accuracy > self.highest[k]:
                    self.highest[k] = accuracy
                    self.best[k].save(step, one, {"accuracy": accuracy})
                    self.best[k].wait()  # a resumed run must find it, whichever state is the newest
        super().save(step, state)
