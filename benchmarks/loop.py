"""Chunks of steps on data on the device, compared with a Python loop that feeds NumPy batches to the same step."""

from collections.abc import Callable

import jax
import numpy as np

from benchmarks import students
from benchmarks.timing import Row, milliseconds, take_turns
from cnn2gnn_jax.training import loop
from cnn2gnn_jax.training.step import make_step

STEPS = 50


def chunked(rows: int, size: int, host: bool = False) -> Callable[[], jax.Array]:
    """Makes a function that takes STEPS steps in one chunk, with the data on the device or on the host."""
    task, data = students.student("pixels", rows, classes=10), students.images(rows, size, 10)
    chunk, state = loop.make_chunk(task), [students.start(task, data)]
    resident, on_host = ({}, {name: np.asarray(array) for name, array in data.items()}) if host else (data, {})

    def run() -> jax.Array:
        state[0], metrics = chunk(state[0], resident, None, loop.feed([task], 0, STEPS, on_host), 0)
        return metrics["loss"]

    return run


def looped(rows: int, size: int, donate: bool) -> Callable[[], float]:
    """Makes a function that takes STEPS steps in a Python loop, which feeds NumPy batches and reads each loss."""
    task, data = students.student("pixels", rows, classes=10), students.images(rows, size, 10)
    step = jax.jit(make_step(task), donate_argnums=0 if donate else ())
    state, host = [students.start(task, data)], {name: np.asarray(array) for name, array in data.items()}

    def run() -> float:
        loss = 0.0
        for index in loop.epoch_indices(task, 0, STEPS):
            batch = {name: array[index] for name, array in host.items()}
            batch |= {"index": index, "mask": np.ones(len(index), bool)}
            state[0], metrics = step(state[0], batch, None, 0)
            loss = float(metrics["loss"])
        return loss

    return run


def rows() -> list[Row]:
    """The rows of the table."""
    table_rows = []
    for images, size in ((50_000, 8), (50_000, 32)):
        seconds = take_turns(
            {
                "loop": looped(images, size, donate=False),
                "loop, state donated": looped(images, size, donate=True),
                "chunk": chunked(images, size),
                "chunk fed by the host": chunked(images, size, host=True),
            },
            rounds=5,
        )
        what = f"`pixels` at {size}x{size}, n_train {images:,}"
        detail = milliseconds(seconds, STEPS) + " a step"
        table_rows += [
            Row(f"a plain loop : a chunk, {what}", seconds["loop"] / seconds["chunk"], "at least 3", detail),
            Row(f"the same with the state donated, {what}", seconds["loop, state donated"] / seconds["chunk"], "", ""),
            Row(
                f"data on the host : on the device, {what}", seconds["chunk fed by the host"] / seconds["chunk"], "", ""
            ),
        ]
    return table_rows
