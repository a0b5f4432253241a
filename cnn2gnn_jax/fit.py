"""Training that survives: a task trained from its newest checkpoint on, with its metrics recorded."""

import functools
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cnn2gnn_jax import train
from cnn2gnn_jax.checkpoint import Checkpoints
from cnn2gnn_jax.metrics import Recorder, say
from cnn2gnn_jax.task import Task, with_stage
from cnn2gnn_jax.train import TrainState

Load = Callable[[], TrainState]  # reads a trained state from disk, once


def fit_on_disk(
    task: Task,
    *,
    name: str,
    checkpoints: pathlib.Path,
    records: pathlib.Path,
    load_data: Callable[[], dict[str, np.ndarray]],
    score: Callable[[TrainState], float],
    every_seconds: float,
    teacher_variables: Callable[[], Any] = lambda: None,
    tensorboard: pathlib.Path | None = None,
) -> Load:
    """Trains all stages of a task from the newest checkpoint on; nothing if the last one is complete.

    Args:
      task: what is trained; its stage is replaced by each of its distiller's in turn.
      name: in the records.
      checkpoints: folder; each stage has one of its own in it.
      records: the JSON lines file.
      load_data: the training set, see `train.make_chunk`; not called where nothing is to be trained or loaded.
      score: percent right on the held-out images, for the epoch rule `best`.
      every_seconds: between checkpoints; 0 for one after each chunk.
      teacher_variables: of the teacher in the step.
      tensorboard: folder for events.

    Returns:
      A function that reads the trained state: the last one, or the best under that rule.
    """
    tasks = [with_stage(task, stage) for stage in task.distiller.stages]
    best = task.recipe.epoch == "best"
    final = checkpoints / tasks[-1].stage.name
    arrays = functools.cache(load_data)

    def fresh(task: Task) -> TrainState:
        return train.init_state(task, arrays()["input"], train.teacher_shapes(task, arrays()))

    @functools.cache
    def load() -> TrainState:
        with Checkpoints(final / ("best" if best else "last")) as found:
            return found.restore(jax.eval_shape(lambda: fresh(tasks[-1])))

    if _newest(final) == tasks[-1].total_steps:
        say(f"{name}: already trained")
        return load
    resident = {key: jnp.asarray(array) for key, array in arrays().items()}
    variables = teacher_variables()
    begun = [k for k, stage in enumerate(tasks) if _newest(checkpoints / stage.stage.name) is not None]
    state: TrainState | None = None
    for stage in tasks[max(begun, default=0) :]:
        stage_name = name if len(tasks) == 1 else f"{name} {stage.stage.name}"
        folder = checkpoints / stage.stage.name
        with Checkpoints(folder / "last") as newest:
            start = newest.newest() or 0
            first = functools.partial(fresh, stage)
            if start:
                say(f"{stage_name}: going on after step {start} of {stage.total_steps}")
                state = newest.restore(jax.eval_shape(first))
            else:
                before, state = state, jax.jit(first)()
                if before is not None:
                    state = state.replace(params=before.params, stats=before.stats, memory=before.memory)
            with Recorder(
                records,
                stage_name,
                start,
                stage.total_steps,
                stage.steps_per_epoch,
                stage.recipe.batch_size,
                tensorboard,
            ) as recorder:
                saver = _Saver(stage, newest, every_seconds)
                if best and stage is tasks[-1]:
                    with Checkpoints(folder / "best", keep=1) as chosen:
                        saver = _BestSaver(stage, newest, every_seconds, chosen, score)
                        state = train.fit(stage, state, resident, variables, recorder.chunk, saver)
                else:
                    state = train.fit(stage, state, resident, variables, recorder.chunk, saver)
    return load


def _newest(folder: pathlib.Path) -> int | None:
    if not (folder / "last").is_dir():
        return None
    with Checkpoints(folder / "last") as checkpoints:
        return checkpoints.newest()


class _Saver:
    """Saves the newest state, every so often and at the end."""

    def __init__(self, task: Task, newest: Checkpoints, every_seconds: float) -> None:
        self.task, self.newest, self.every_seconds = task, newest, every_seconds
        self.saved_at = time.monotonic()

    def due(self, step: int) -> bool:
        return step == self.task.total_steps or time.monotonic() - self.saved_at >= self.every_seconds

    def save(self, step: int, state: TrainState) -> None:
        if _Saver.due(self, step):
            self.newest.save(step, state)
            self.saved_at = time.monotonic()


class _BestSaver(_Saver):
    """Also saves, apart, the state of the epoch with the highest score; the first of equals."""

    def __init__(
        self,
        task: Task,
        newest: Checkpoints,
        every_seconds: float,
        chosen: Checkpoints,
        score: Callable[[TrainState], float],
    ) -> None:
        super().__init__(task, newest, every_seconds)
        self.chosen, self.score = chosen, score
        self.highest = -1.0 if chosen.newest() is None else chosen.facts()["accuracy"]

    def due(self, step: int) -> bool:
        return super().due(step) or step % self.task.steps_per_epoch == 0

    def save(self, step: int, state: TrainState) -> None:
        if step % self.task.steps_per_epoch == 0:
            accuracy = self.score(state)
            if accuracy > self.highest:
                self.highest = accuracy
                self.chosen.save(step, state, {"accuracy": accuracy})
                self.chosen.wait()  # a resumed run must find it, whichever state is the newest
        super().save(step, state)
