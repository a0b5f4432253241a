"""States on the way to disk: of tasks that train side by side, the newest of each and the best of each."""

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
    """A state on this process's first device but for the head's table, which stays where training left it."""
    return on_first_device(state.replace(table=None)).replace(table=state.table)


class Seeds:
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


class NewestSaver:
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
        seeds: Seeds,
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


class BestSaver(NewestSaver):
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
                accuracy = self.score(task, local(one))
                if accuracy > self.highest[k]:
                    self.highest[k] = accuracy
                    self.best[k].save(step, one, {"accuracy": accuracy})
                    self.best[k].wait()  # a resumed run must find it, whichever state is the newest
        super()._keep(step, states)
