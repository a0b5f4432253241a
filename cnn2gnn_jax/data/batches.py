"""Which images form a batch: epochs, evaluation batches and the anchors' batch, all pure functions of seeds."""

import numpy as np

from cnn2gnn_jax.data.permutations import Stream, permutation, rank_in_class
from cnn2gnn_jax.errors import UserError


def epoch_order(seed: int, epoch: int, n: int) -> np.ndarray:
    """The order of the n training images in an epoch, (n,) int32: resuming needs no iterator's state."""
    return permutation(n, Stream.EPOCH, seed, epoch)


def grouped_order(labels: np.ndarray, classes: int, size: int, seed: int, epoch: int) -> np.ndarray:
    """The order of the training images in an epoch whose batches hold `classes` classes, (n,) int32.

    Each class is cut, at random, into groups of ceil(size / classes) images; groups follow each other at random, and
    images that fill no group come last.
    """
    order = epoch_order(seed, epoch, len(labels))
    group = -(-size // classes)
    rank = rank_in_class(labels[order])
    counts = np.bincount(labels)
    whole = rank < (counts // group * group)[labels[order]]
    # Groups by class, then shuffled as blocks.
    inside = order[whole]
    blocks = inside[np.lexsort((rank[whole], labels[inside]))].reshape(-1, group)
    blocks = blocks[permutation(len(blocks), Stream.GROUPS, seed, epoch)]
    return np.concatenate([blocks.ravel(), order[~whole]]).astype(np.int32)


def shuffled_order(n: int, seed: int) -> np.ndarray:
    """A seeded order of n images for evaluation, (n,) int32."""
    return permutation(n, Stream.EVALUATION, seed)


def class_sorted_order(labels: np.ndarray) -> np.ndarray:
    """The order that puts class after class and keeps the order within a class, (n,) int32.

    A graph over such batches leaks the labels: it is an audit, not a protocol.
    """
    return np.argsort(labels, kind="stable").astype(np.int32)


def evaluation_batches(n: int, size: int, order: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Splits n images into K = ceil(n / size) batches whose numbers of images differ by at most one.

    Args:
      n: number of images, at least 1.
      size: the most images that a batch may hold, at least 1.
      order: a permutation of 0..n-1, cut from front to back; as they stand where None.

    Returns:
      indices (K, B) int32 and mask (K, B) bool, with B = ceil(n / K) <= size. A batch that holds fewer than B repeats
      its last image where the mask is False.
    """
    assert n >= 1 and size >= 1, (n, size)
    order = np.arange(n, dtype=np.int32) if order is None else np.asarray(order, np.int32)
    assert order.shape == (n,), (order.shape, n)
    batches = -(-n // size)
    starts = np.arange(batches + 1) * n // batches
    width = -(-n // batches)
    positions = starts[:-1, None] + np.arange(width)
    mask = positions < starts[1:, None]
    return order[np.minimum(positions, starts[1:, None] - 1)], mask


def balanced_batch(labels: np.ndarray, size: int, seed: int) -> np.ndarray:
    """A seeded batch without repeats in which the counts of the classes differ by at most one.

    Args:
      labels: (n,) labels; the classes are those that occur.
      size: images in the batch.
      seed: chooses the images, their order and, where classes do not divide `size`, those that get one more.

    Returns:
      (size,) int32 indices into `labels`, in no order of class.

    Raises:
      UserError: there are too few images, in all or in a class.
    """
    _, class_of, counts = np.unique(labels, return_inverse=True, return_counts=True)
    if not 1 <= size <= len(labels):
        raise UserError(f"a class-balanced batch of {size} of {len(labels)} images: choose 1 to {len(labels)}")
    base, extra = divmod(size, len(counts))
    with_more = np.flatnonzero(counts > base)
    if counts.min() < base or len(with_more) < extra:
        raise UserError(
            f"a class-balanced batch of {size} needs {base + bool(extra)} images a class, but the smallest class has "
            f"{counts.min()}: choose at most {counts.min() * len(counts)}"
        )
    quota = np.full(len(counts), base)
    quota[with_more[permutation(len(with_more), Stream.BATCH_CLASSES, seed)[:extra]]] += 1
    order = permutation(len(labels), Stream.BATCH_ORDER, seed)
    return order[rank_in_class(class_of[order]) < quota[class_of[order]]]
