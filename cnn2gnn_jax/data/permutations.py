"""Seeded permutations that no version of NumPy changes, and ranks within a class."""

import enum

import numpy as np

_WORD = (1 << 64) - 1


class Stream(enum.IntEnum):
    """Independent streams of random numbers under one seed, one for each use."""

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
    """A permutation of 0..n-1, (n,) int32, a pure function of its arguments.

    It sorts raw Philox numbers: NumPy keeps those the same for good, which it does not promise of `permutation`.

    Args:
      n: how many.
      stream: the use it is for.
      seed: any integer, taken modulo 2**64.
      part: a second number to tell permutations apart, e.g. the epoch; taken modulo 2**64.
    """
    return np.argsort(random_raw(n, stream, seed, part), kind="stable").astype(np.int32)


def random_raw(n: int, stream: Stream, seed: int, part: int = 0) -> np.ndarray:
    """n raw Philox numbers, (n,) uint64, a pure function of the arguments of `permutation`; fewer are the first."""
    key = np.array([seed & _WORD, part & _WORD], np.uint64)
    philox = np.random.Philox(key=key, counter=np.array([0, 0, 0, stream], np.uint64))
    return philox.random_raw(n)


def rank_in_class(labels: np.ndarray) -> np.ndarray:
    """How many earlier entries have the same label, (n,) int64: 0 for the first of each class, 1 for the second."""
    order = np.argsort(labels, kind="stable")
    _, first, counts = np.unique(labels[order], return_index=True, return_counts=True)
    rank = np.empty(len(labels), np.int64)
    rank[order] = np.arange(len(labels)) - np.repeat(first, counts)
    return rank
