"""Describes the training images that the training-set graph links a new image to."""

from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from cnn2gnn_jax import neighbors
from cnn2gnn_jax.neighbors import Neighbors
from cnn2gnn_jax.serving.trained import Trained


def describe_neighbors(student: Trained, image: np.ndarray, nearest: Neighbors) -> Iterator[dict[str, Any]]:
    """Describes the training images whose weight in Eq. 3 is positive, nearest first.

    Args:
      student: the student with its bank.
      image: (H, W, C) uint8.
      nearest: the nearest columns of this image, arrays (s + 1,).

    Yields:
      For each training image its `class`, `index` and `weight`, and its file as `image` if the data set has files.
    """
    assert student.bank is not None
    labels, files = student.bank.bank.labels, student.bank.files
    for column, weight in zip(*_weighted_columns(student, image, nearest), strict=True):
        yield {
            **({} if files is None else {"image": files[column]}),
            "class": student.recorded.classes[int(labels[column])],
            "index": int(column),
            "weight": float(weight),
        }


def _weighted_columns(student: Trained, image: np.ndarray, nearest: Neighbors) -> tuple[np.ndarray, np.ndarray]:
    """The columns with positive weight, and their weights."""
    assert student.bank is not None
    weights, columns, distances = map(np.asarray, nearest)
    if distances[-1] > distances[0]:
        return columns[weights > 0], weights[weights > 0]
    # All columns at the smallest distance have the same weight. There may be more of them than the search returns.
    bank = student.bank.bank
    queries = neighbors.queries(bank, student.model.feature_spaces(jnp.asarray(image[None]))[bank.settings.space])
    d = np.asarray(neighbors.distances(queries, bank.keys))[0]
    tied = np.flatnonzero(d == d.min())
    # Distances may be rounded differently here than in the search. If ties are missing, its result is kept.
    tied = tied if len(tied) >= len(columns) else columns
    return tied, np.full(len(tied), 1 / len(tied))
