"""The training images to which the training-set graph links a new image."""

from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from cnn2gnn_jax import neighbors
from cnn2gnn_jax.neighbors import Neighbors
from cnn2gnn_jax.serving.trained import Trained


def links(student: Trained, image: np.ndarray, nearest: Neighbors) -> Iterator[dict[str, Any]]:
    """Yields the training images that have a weight by Eq. 3, nearest first.

    Args:
      student: a student with its bank.
      image: (H, W, C) uint8.
      nearest: its row of the result of `neighbors.search`, arrays (s + 1,).

    Yields:
      For each training image its `class`, `index` and `weight`; for an image folder also its file as `image`.
    """
    assert student.bank is not None
    labels, files = student.bank.bank.labels, student.bank.files
    for column, weight in zip(*_weighted(student, image, nearest), strict=True):
        yield {
            **({} if files is None else {"image": files[column]}),
            "class": student.recorded.classes[int(labels[column])],
            "index": int(column),
            "weight": float(weight),
        }


def _weighted(student: Trained, image: np.ndarray, nearest: Neighbors) -> tuple[np.ndarray, np.ndarray]:
    """The columns that have a weight, and their weights."""
    assert student.bank is not None
    weights, columns, distances = map(np.asarray, nearest)
    if distances[-1] > distances[0]:
        return columns[weights > 0], weights[weights > 0]
    # All columns at the smallest distance have the same weight. There may be more of them than the search returns.
    bank = student.bank.bank
    queries = neighbors.queries(bank, student.model.feature_spaces(jnp.asarray(image[None]))[bank.settings.space])
    d = np.asarray(neighbors.distances(queries, bank.keys))[0]
    tied = np.flatnonzero(d == d.min())
    if len(tied) < len(columns):  # distances may be rounded differently here than in the search
        tied = columns
    return tied, np.full(len(tied), 1 / len(tied))
