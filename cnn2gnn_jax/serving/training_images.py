"""The training images that a new image is linked to by the training-set graph."""

from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from cnn2gnn_jax import neighbors
from cnn2gnn_jax.neighbors import Neighbors
from cnn2gnn_jax.serving.trained import Trained


def links(student: Trained, image: np.ndarray, row: Neighbors) -> Iterator[dict[str, Any]]:
    """The training images that Eq. 3 gives weight to, nearest first.

    Args:
      student: with its bank.
      image: (H, W, C) uint8.
      row: what the search found for it, arrays (s + 1,).

    Yields:
      Of each, its `class`, its `index`, its `weight`, and of an image folder its file as `image`.
    """
    assert student.bank is not None
    labels, files = student.bank.bank.labels, student.bank.files
    for column, weight in zip(*_weighted(student, image, row), strict=True):
        yield {
            **({} if files is None else {"image": files[column]}),
            "class": student.recorded.classes[int(labels[column])],
            "index": int(column),
            "weight": float(weight),
        }


def _weighted(student: Trained, image: np.ndarray, row: Neighbors) -> tuple[np.ndarray, np.ndarray]:
    """The columns with weight, and their weights."""
    assert student.bank is not None
    weights, nearest, distances = map(np.asarray, row)
    if distances[-1] > distances[0]:
        return nearest[weights > 0], weights[weights > 0]
    # All columns at the smallest distance share the row, more of them perhaps than the search lists.
    bank = student.bank.bank
    queries = neighbors.queries(bank, student.model.feature_spaces(jnp.asarray(image[None]))[bank.settings.space])
    d = np.asarray(neighbors.distances(queries, bank.keys))[0]
    columns = np.flatnonzero(d == d.min())
    if len(columns) < len(nearest):  # their distances are rounded otherwise here
        columns = nearest
    return columns, np.full(len(columns), 1 / len(columns))
