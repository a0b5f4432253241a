"""Scikit-learn's digits: 1,797 grey images of 8 x 8 that need no download."""

import numpy as np
import sklearn.datasets

from cnn2gnn_jax.data.permutations import Stream, permutation, rank_in_class

CLASSES = tuple("0123456789")
_LEVELS = 16  # the brightest value in the file
_TEST_SHARE = 0.2


def load() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Images (N, 8, 8, 1) uint8 and labels (N,) int32 of `train` and `test`.

    The published data has no such split: a fifth of each class, chosen once and for all, is `test`.
    """
    data = sklearn.datasets.load_digits()
    images = np.rint(data.images * (255 / _LEVELS)).astype(np.uint8)[..., None]
    labels = data.target.astype(np.int32)
    order = permutation(len(labels), Stream.DIGITS_SPLIT, seed=0)
    is_test = np.zeros(len(labels), bool)
    is_test[order] = rank_in_class(labels[order]) < np.rint(_TEST_SHARE * np.bincount(labels))[labels[order]]
    return {"train": (images[~is_test], labels[~is_test]), "test": (images[is_test], labels[is_test])}
