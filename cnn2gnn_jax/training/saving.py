"""Savers, which write the newest and the best state of tasks that train side by side."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from cnn2gnn_jax.runtime import processes
from cnn2gnn_jax.runtime.devices import Devices, on_first_device
from cnn2gnn_jax.training.checkpoint import Checkpoints
from cnn2gnn_jax.training.metrics import not_finite
from cnn2gnn_jax.training.state import TrainState, state_axes
from cnn2gnn_jax.training.task import Task


def local(state: TrainState) -> TrainState:
    """Moves a state to this process's first device, except for the head's table, which stays as it is sharded."""
    return on_first_device(state.replace(table=None)).replace(table=state.table)


class Seeds:
    """Stacks the states of tasks that train side by side, and splits them for disk; a single state stays as it is.

    Args:
      task: one of the tasks.
      shape: the shapes of one state, with its shardings.
      count: the number of tasks.
      devices: the devices to train on.
    """

    def __init__(self, task: Task, shape: TrainState, count: int, devices: Devices) -> None:
        self.count = count
        self.split_on = jax.tree.map(lambda leaf: leaf.sharding, shape)
        whole = dataclasses.replace(devices, spreads_seeds=False)
        self.stacked_on = whole.shardings(state_axes(task, count, whole), shape)
        self._split = jax.jit(
            lambda state: [jax.tree.map(lambda leaf, k=k: leaf[k], state) for k in range(count)],
            out_shardings=[self.split_on] * count,
        )

    def stack(self, states: Sequence[TrainState]) -> TrainState:
        """Stacks states along a new leading axis."""
        if len(states) == 1:
            return states[0]
        stack = jax.jit(
            lambda *states: jax.tree.map(lambda *leaves: jnp.stack(leaves), *states), out_shardings=self.stacked_on
        )
        return stack(*states)

    def split(self, state: TrainState) -> list[TrainState]:
        """Splits stacked states; those after the first `count` are copies and are dropped."""
        return [state] if self.count == 1 else self._split(state)


@jax.jit
def _finite(state: TrainState) -> jax.Array:
    """Whether all floating-point numbers of a state are finite."""
    numbers = [leaf for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in numbers]))


class NewestSaver:
    """Saves the newest states: every `every_seconds`, at the end, and when the run must stop.

    Raises:
      Stopped: from `save`, after SIGTERM or Ctrl-C.
      UserError: from `save`, if a state is not finite.
    """

    def __init__(
        self,
        names: Sequence[str],
        tasks: Sequence[Task],
        newest: Sequence[Checkpoints],
        every_seconds: float,
        seeds: Seeds,
        start: int,
    ) -> None:
        self.names = names
        self.tasks, self.newest, self.every_seconds, self.seeds = tasks, newest, every_seconds, seeds
        self.saved_at, self.saved_step, self.check_step = time.monotonic(), start, start
        self.stopping = self.saves_newest = False

    def due(self, step: int) -> bool:
        """See `loop.Saver`."""
        self.stopping = processes.must_stop()
        self.saves_newest = self.stopping or step == self.tasks[0].total_steps or self._is_overdue(step)
        return self.saves_newest

    def _checked_states(self, step: int, state: TrainState) -> list[TrainState]:
        """Splits the states of the tasks and checks that they are finite.

        The loss of a step is computed before its update, so a state may not be finite although all losses are.
        """
        states = self.seeds.split(state)
        for name, task_state in zip(self.names, states, strict=True):
            if not _finite(task_state):
                raise not_finite(name, "the weights became NaN or infinite", step, self.saved_step)
        return states

    def _is_overdue(self, step: int) -> bool:
        """Whether the last save is more than `every_seconds` ago by the first process's clock.

        The processes wait for each other to agree on this, so they ask only at the step at which, at the present
        speed, the time may have passed.
        """
        if step < self.check_step:
            return False
        elapsed = processes.agreed(time.monotonic() - self.saved_at)
        if jax.process_count() > 1 and 0 < elapsed < self.every_seconds:
            done = step - self.saved_step
            self.check_step = step + int(done * (self.every_seconds - elapsed) / elapsed)
        return elapsed >= self.every_seconds

    def save(self, step: int, state: TrainState) -> None:
        """See `loop.Saver`."""
        self._write(step, self._checked_states(step, state))
        if self.stopping and step < self.tasks[0].total_steps:
            raise processes.stopped(f"after step {step} of {self.tasks[0].total_steps}")

    def _write(self, step: int, states: Sequence[TrainState]) -> None:
        if self.saves_newest:
            for checkpoints, state in zip(self.newest, states, strict=True):
                checkpoints.save(step, state)
            self.saved_at, self.saved_step, self.check_step = time.monotonic(), step, step


class BestSaver(NewestSaver):
    """Also saves the state of the epoch with the highest score, and the earliest of several equal ones."""

    def __init__(self, best: Sequence[Checkpoints], score: Callable[[Task, TrainState], float], *common: Any) -> None:
        super().__init__(*common)
        self.best, self.score = best, score
        self.highest = [-1.0 if folder.newest() is None else folder.facts()["accuracy"] for folder in best]

    def due(self, step: int) -> bool:
        """Also true at the end of each epoch."""
        return super().due(step) or step % self.tasks[0].steps_per_epoch == 0

    def _write(self, step: int, states: Sequence[TrainState]) -> None:
        if step % self.tasks[0].steps_per_epoch == 0:
            for k, (task, state) in enumerate(zip(self.tasks, states, strict=True)):
                accuracy = self.score(task, local(state))
                if accuracy > self.highest[k]:
                    self.highest[k] = accuracy
                    self.best[k].save(step, state, {"accuracy": accuracy})
                    self.best[k].wait()  # a resumed run must find it, whichever state is the newest
        super()._write(step, states)
