"""Ten dense students that train side by side, compared with one."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from benchmarks import students
from benchmarks.timing import Row, milliseconds, take_turns
from cnn2gnn_jax.training import loop

STEPS, SEEDS = 20, 10


def side_by_side(count: int, size: int, rows: int) -> Callable[[], jax.Array]:
    """Makes a function that takes STEPS steps of `count` students over the backbone `pixels`."""
    first, data = students.student("pixels", rows, classes=10), students.images(rows, size, 10)
    tasks = [dataclasses.replace(first, seed=seed) for seed in range(count)]
    states = [students.start(task, data) for task in tasks]
    state = [states[0] if count == 1 else jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)]
    chunk = loop.make_chunk(first, count)
    seed = jnp.arange(count) if count > 1 else jnp.int32(0)

    def run() -> jax.Array:
        state[0], metrics = chunk(state[0], data, None, loop.feed(tasks, 0, STEPS, {}), seed)
        return metrics["loss"]

    return run


def rows() -> list[Row]:
    """The rows of the table."""
    table_rows = []
    for size in (8, 32):
        functions = {"ten": side_by_side(SEEDS, size, 5_000), "one": side_by_side(1, size, 5_000)}
        seconds = take_turns(functions, rounds=7)
        target = "at most 3 on a GPU" if jax.default_backend() == "gpu" else ""
        what = f"ten seeds side by side : one, `pixels` at {size}x{size}"
        table_rows.append(Row(what, seconds["ten"] / seconds["one"], target, milliseconds(seconds, STEPS) + " a step"))
    return table_rows
