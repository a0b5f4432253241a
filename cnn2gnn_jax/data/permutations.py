"""Seeded permutations that do not depend on the version of NumPy, and ranks within a class."""

import enum

import numpy as np

_MASK64 = (1 << 64) - 1


class Stream(enum.IntEnum):
    """Independent streams of random numbers with the same seed, one for each purpose."""

    EPOCH = 0
    EVALUATION = 1
    HOLDOUT = 2
    BATCH_ORDER = 3
    BATCH_CLASSES = 4
    DIGITS_SPLIT = 5
    FOLDER_SPLIT = 6
    GROUPS = 7
    GROUP_CLASSES = 8
    GROUP_CYCLE = 9
    BANK = 10


def permutation(n: int, stream: Stream, seed: int, part: int = 0) -> np.ndarray:
    """A random permutation of 0..n-1, (n,) int32, which depends only on the arguments.

    It sorts raw Philox numbers, which NumPy guarantees to be stable. NumPy does not guarantee this for `permutation`.

    Args:
      n: the number of elements.
      stream: the purpose.
      seed: any integer, taken modulo 2**64.
      part: a second number that distinguishes permutations, such as the epoch, taken modulo 2**64.
    """
    return np.argsort(random_raw(n, stream, seed, part), kind="stable").astype(np.int32)


def random_raw(n: int, stream: Stream, seed: int, part: int = 0) -> np.ndarray:
    """n raw Philox numbers, (n,) uint64. The arguments are those of `permutation`. A smaller n gives a prefix."""
    key = np.array([seed & _MASK64, part & _MASK64], np.uint64)
    philox = np.random.Philox(key=key, counter=np.array([0, 0, 0, stream], np.uint64))
    return philox.random_raw(n)


def rank_in_class(labels: np.ndarray) -> np.ndarray:
    """The number of earlier entries with the same label, (n,) int64: 0 for the first of a class, 1 for the second."""
    order = np.argsort(labels, kind="stable")
    _, first, counts = np.unique(labels[order], return_index=True, return_counts=True)
    rank = np.empty(len(labels), np.int64)
    rank[order] = np.arange(len(labels)) - np.repeat(first, counts)
    return rank
