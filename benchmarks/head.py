"""The cost of a step does not depend on n_train, since the head's decision layer is a table updated by rows."""

import functools
import subprocess
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks import students
from benchmarks.timing import Row, milliseconds, take_turns
from cnn2gnn_jax.training.state import TrainState
from cnn2gnn_jax.training.step import Batch, Metrics, make_step

RESIDENT = 5_000
SMALL, LARGE = 5_000, 500_000
STEPS = 20


def make_run(rows: int, update: str = "rows") -> Callable[[], jax.Array]:
    """Makes a function that takes STEPS steps of the `pixels` student with `rows` head rows on RESIDENT images."""
    task, data = students.student("pixels", rows, head_update=update), students.images(RESIDENT)
    step = make_step(task)

    @functools.partial(jax.jit, donate_argnums=0)
    def chunk(state: TrainState, data: Batch, index: jax.Array) -> tuple[TrainState, Metrics]:
        def body(state: TrainState, index: jax.Array) -> tuple[TrainState, Metrics]:
            batch = {name: array[index % RESIDENT] for name, array in data.items()}
            return step(state, batch | {"index": index, "mask": jnp.ones(index.shape, bool)}, None, 0)

        return lax.scan(body, state, index)

    state = [students.start(task, data)]
    rng = np.random.default_rng(0)

    def run() -> jax.Array:
        index = np.stack([rng.choice(rows, students.BATCH, replace=False) for _ in range(STEPS)]).astype(np.int32)
        state[0], metrics = chunk(state[0], data, index)
        return metrics["loss"]

    return run


def rows() -> list[Row]:
    """The rows of the table."""
    # First, while this process uses little memory: a child process inherits the peak of its parent.
    peaks = {count: _peak(count) for count in (SMALL, LARGE)}
    seconds = take_turns({"500,000 rows": make_run(LARGE), "5,000 rows": make_run(SMALL)}, rounds=15)
    large, small = seconds.values()
    dense = take_turns({"dense": make_run(50_000, "dense"), "rows": make_run(50_000)}, rounds=5)
    growth = peaks[LARGE] - peaks[SMALL]
    table = 2 * 4 * 257 * (LARGE - SMALL)  # weights, biases and their momenta, float32
    return [
        Row(
            "a step of `pixels` at n_train 500,000 : at 5,000",
            large / small,
            "at most 1.15",
            milliseconds(seconds, STEPS),
        ),
        Row(
            "growth of its peak memory : table and momentum",
            growth / table,
            "at most 1",
            f"{growth / 1e6:.0f} MB, {table / 1e6:.0f} MB",
        ),
        Row(
            "the dense update's step : that by rows, n_train 50,000",
            dense["dense"] / dense["rows"],
            "",
            milliseconds(dense, STEPS),
        ),
    ]


def _peak(count: int) -> int:
    """The peak resident memory in bytes of a separate process that trains with `count` rows."""
    command = [sys.executable, "-m", "benchmarks.head", str(count)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    import resource

    take_steps = make_run(int(sys.argv[1]))
    for _ in range(3):
        jax.block_until_ready(take_steps())
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
