"""Selection of images: the first ones of each class, and a random fraction of each class to hold out."""

from collections.abc import Sequence

import numpy as np

from cnn2gnn_jax.data.permutations import Stream, permutation, rank_in_class
from cnn2gnn_jax.runtime.errors import UserError


def first_of_each_class(labels: np.ndarray, limit: int, classes: int = 0) -> np.ndarray:
    """Positions of the first `limit` images of the first `classes` classes, in order, (M,) int64. 0 stands for all."""
    return np.flatnonzero((rank_in_class(labels) < (limit or len(labels))) & (labels < (classes or np.inf)))


def hold_out(
    labels: np.ndarray,
    fraction: float,
    seed: int,
    stream: Stream = Stream.HOLDOUT,
    names: Sequence[str] = (),
) -> tuple[np.ndarray, np.ndarray]:
    """Randomly holds out a fraction of each class.

    Of n images of a class, round(fraction * n) are held out, but at least 1 and at most n - 1.

    Args:
      labels: (n,) labels.
      fraction: the fraction of each class.
      seed: the seed that chooses the images.
      stream: the purpose, which gives independent random numbers.
      names: the class names, by label, for errors.

    Returns:
      The positions that remain and those that are held out, both int64 in ascending order.

    Raises:
      UserError: a class has only one image.
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
    is_held_out = np.zeros(len(labels), bool)
    is_held_out[order] = rank_in_class(class_of[order]) < quota[class_of[order]]
    return np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)
