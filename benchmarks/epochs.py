"""200 epochs of the graph student on 50,000 images, only on a GPU; the paper reports 2,300 to 5,000 s."""

import time

import jax

from benchmarks import students
from benchmarks.timing import Row
from cnn2gnn_jax.training import loop
from cnn2gnn_jax.training.state import TrainState

IMAGES, PAPER = 50_000, 2_300.0


class _NoSaver:
    """A `loop.Saver` that saves nothing."""

    def due(self, step: int) -> bool:
        return False

    def save(self, step: int, state: TrainState) -> None:
        raise AssertionError


def rows() -> list[Row]:
    """The rows of the table."""
    if jax.default_backend() == "cpu":
        return []
    table_rows = []
    for backbone in ("pixels", "stem", "resnet18"):
        task, data = students.student(backbone, IMAGES), students.images(IMAGES)
        start = time.perf_counter()
        state = loop.fit(
            [task], students.start(task, data), loop.TrainingData(data), lambda first, metrics: None, _NoSaver()
        )
        jax.block_until_ready(state)
        seconds = time.perf_counter() - start
        what = f"200 epochs of `{backbone}` on {IMAGES:,} images, compilation included : the paper's 2,300 s"
        target = "at most 0.026 (60 s)" if backbone == "pixels" else ""
        table_rows.append(Row(what, seconds / PAPER, target, f"{seconds:.0f} s"))
    return table_rows
