"""What the training-set graph needs: how many training images, neighbors and labels, and which features.

    python -m studies.bank WORKDIR OUT.jsonl

WORKDIR is the workdir of a run; see `studies.student.load`. In each row, everything except what the row names is chosen
on the held-out images, and the test images are then evaluated once.
"""

import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from cnn2gnn_jax.data.permutations import rank_in_class
from studies import student as students
from studies.student import Student

SIZES = (500, 1_000, 2_500, 5_000, 10_000, 25_000)
DRAWS = 5
LABELS_PER_CLASS = (5, 10, 25, 100, 450)


def in_class_order(student: Student, draw: int) -> tuple[np.ndarray, np.ndarray]:
    """A random order of the training images, (N,), and the rank of each of them in its class."""
    order = np.random.default_rng(draw).permutation(len(student.train.labels))
    return order, rank_in_class(student.train.labels[order])


def rows(student: Student) -> Iterator[dict[str, Any]]:
    """Yields the rows of the study."""
    grid = student.grid
    everything = students.measure(student, grid)
    yield {"study": "chosen", **everything}
    for space in ("backbone", "hidden", "logits"):
        for signal in ("labels", "teacher"):
            narrowed = grid._replace(spaces=(space,), signals=(signal,))
            yield {"study": "space", **students.measure(student, narrowed)}
    # The other studies keep the best space, and labels as signals.
    grid = grid._replace(spaces=(everything["space"],), signals=("labels",))
    for sparsity in grid.sparsities:
        yield {"study": "sparsity", **students.measure(student, grid._replace(sparsities=(sparsity,)))}
    for draw in range(DRAWS):
        order, rank = in_class_order(student, draw)
        for size in SIZES:
            columns = order[np.argsort(rank, kind="stable")[:size]]
            yield {"study": "images", "draw": draw, **students.measure(student, grid, np.sort(columns))}
    order, rank = in_class_order(student, 0)
    for count in LABELS_PER_CLASS:
        is_labelled = np.zeros(len(order), bool)
        is_labelled[order[rank < count]] = True
        row = {"study": "labels", "labels_per_class": count}
        yield {**row, "unlabelled": "left out", **students.measure(student, grid, np.flatnonzero(is_labelled))}
        signals = np.where(is_labelled[:, None], students.one_hot(student), student.train.teacher)
        yield {**row, "unlabelled": "teacher", **students.measure(student, grid, signals=signals)}


if __name__ == "__main__":
    trained = students.load(pathlib.Path(sys.argv[1]))
    students.write(pathlib.Path(sys.argv[2]), trained, rows(trained))
