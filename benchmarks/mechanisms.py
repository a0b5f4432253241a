"""Both inference mechanisms on 10,000 test images, over a small and a large backbone (paper: 1.79 s and 1.39 s)."""

from collections.abc import Callable

import jax
import numpy as np

from benchmarks import students
from benchmarks.timing import Row, milliseconds, take_turns
from cnn2gnn_jax import inference
from cnn2gnn_jax.training.inputs import prepare_plain
from cnn2gnn_jax.training.state import head_rows

TEST = 10_000
TARGETS = {"resnet18": "at most 1.3", "pixels": "at most 4"}


def over_batches(mechanism: Callable, backbone: str) -> Callable[[], jax.Array]:
    """Makes a function that classifies the next batch of test images; after the last batch it starts again."""
    task, data = students.student(backbone, 5_000), students.images(TEST)
    state, module, size = students.start(task, data), task.module, students.BATCH
    columns = inference.anchors(
        module,  # type: ignore[arg-type]
        state.variables,
        prepare_plain(task, data["input"][:size]),
        head_rows(task, state, np.arange(size)),
    )
    classify = jax.jit(lambda v, c, x: mechanism(module, v, c, prepare_plain(task, x)).logits)
    batches = iter(range(0, TEST, size))

    def run() -> jax.Array:
        nonlocal batches
        first = next(batches, None)
        if first is None:
            batches = iter(range(size, TEST, size))
            first = 0
        return classify(state.variables, columns, data["input"][first : first + size])

    return run


def rows() -> list[Row]:
    """The rows of the table."""
    table_rows = []
    for backbone, target in TARGETS.items():
        functions = {
            mechanism.__name__: over_batches(mechanism, backbone)
            for mechanism in (inference.one_by_one, inference.batch_by_batch)
        }
        seconds = take_turns(functions, rounds=TEST // students.BATCH)
        table_rows.append(
            Row(
                f"one by one : batch by batch, {TEST:,} images over `{backbone}`",
                seconds["one_by_one"] / seconds["batch_by_batch"],
                target,
                f"median of {TEST // students.BATCH} batches of {students.BATCH}: {milliseconds(seconds)}",
            )
        )
    return table_rows
