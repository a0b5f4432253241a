"""Which images of a split are used: the first of each class, and a class-balanced part held out."""

from collections.abc import Sequence

import numpy as np

from cnn2gnn_jax.data.permutations import Stream, permutation, rank_in_class
from cnn2gnn_jax.runtime.errors import UserError


def first_of_each_class(labels: np.ndarray, limit: int, classes: int = 0) -> np.ndarray:
    """Positions of the first `limit` images of each of the first `classes`, in order, (M,) int64; 0 stands for all."""
    return np.flatnonzero((rank_in_class(labels) < (limit or len(labels))) & (labels < (classes or np.inf)))


def hold_out(
    labels: np.ndarray,
    fraction: float,
    seed: int,
    stream: Stream = Stream.HOLDOUT,
    names: Sequence[str] = (),
) -> tuple[np.ndarray, np.ndarray]:
    """Splits positions in two, class by class, at random: what stays and what is held out, each in order, int64.

    Of n images of a class, round(fraction * n) are held out, but at least 1 and at most n - 1.

    Args:
      labels: (n,).
      fraction: of each class.
      seed: chooses the images.
      stream: the use it is for.
      names: of the classes, by label, for errors.

    Raises:
      UserError: a class has a single image.
    """
    classes, class_of, counts = np.unique(labels, return_inverse=True, return_counts=True)
    if counts.min() < 2:
        smallest = classes[counts.argmin()]
        name = names[smallest] if names else smallest
        raise UserError(
            f"data.holdout={fraction}: class {name} has 1 training image, expected at least 2: add images of it or "
            "raise data.limit, or set data.holdout to 0 (and evaluate.training_set.enabled to False)"
        )
    quota = np.clip(np.rint(fraction * counts).astype(np.int64), 1, counts - 1)
    order = permutation(len(labels), stream, seed)
    held = np.zeros(len(labels), bool)
    held[order] = rank_in_class(class_of[order]) < quota[class_of[order]]
    return np.flatnonzero(~held), np.flatnonzero(held)
