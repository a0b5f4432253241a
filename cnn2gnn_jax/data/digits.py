"""The digits data set of scikit-learn: 1,797 gray images of 8 x 8 pixels. It needs no download."""

import numpy as np
import sklearn.datasets

from cnn2gnn_jax.data.permutations import Stream, permutation, rank_in_class

CLASSES = tuple("0123456789")
_MAX_PIXEL = 16  # largest pixel value in scikit-learn's arrays
_TEST_FRACTION = 0.2


def load() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns images (N, 8, 8, 1) uint8 and labels (N,) int32 of `train` and `test`.

    The published data have no test split. A fixed random fifth of each class is used as `test`.
    """
    data = sklearn.datasets.load_digits()
    images = np.rint(data.images * (255 / _MAX_PIXEL)).astype(np.uint8)[..., None]
    labels = data.target.astype(np.int32)
    order = permutation(len(labels), Stream.DIGITS_SPLIT, seed=0)
    is_test = np.zeros(len(labels), bool)
    is_test[order] = rank_in_class(labels[order]) < np.rint(_TEST_FRACTION * np.bincount(labels))[labels[order]]
    return {"train": (images[~is_test], labels[~is_test]), "test": (images[is_test], labels[is_test])}
