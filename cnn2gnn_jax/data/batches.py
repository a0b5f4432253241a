"""Which images form a batch: epochs, evaluation batches and the anchors' batch, all pure functions of seeds."""

from typing import Any

import numpy as np

from cnn2gnn_jax.data.permutations import Stream, permutation, random_raw, rank_in_class
from cnn2gnn_jax.runtime.errors import UserError


def epoch_order(seed: int, epoch: int, n: int) -> np.ndarray:
    """The order of the n training images in an epoch, (n,) int32: resuming needs no iterator's state."""
    return permutation(n, Stream.EPOCH, seed, epoch)


def grouped_order(labels: np.ndarray, classes: int, size: int, seed: int, epoch: int) -> np.ndarray:
    """The order of the training images in an epoch of batches of exactly `classes` classes.

    Each batch holds the same number of images of each of its classes, or one more, and no image twice. A class goes on
    in each epoch where it stopped in the one before, so that over the epochs all images of a class are used equally
    often. Classes are drawn in proportion to their images; a class that holds more than the `classes`-th part of all
    images is in every batch, and its images are used less often than the others.

    Args:
      labels: (n,) labels; the classes are those that occur.
      classes: how many classes a batch holds.
      size: images in a batch.
      seed: chooses the classes and images of each batch.
      epoch: from 0.

    Returns:
      (n // size * size,) int32: the batches one after another.

    Raises:
      UserError: see `check_groups`.
    """
    check_groups(labels, classes, size)
    _, class_of, counts = np.unique(labels, return_inverse=True, return_counts=True)
    steps = len(labels) // size
    order, groups, used = _epoch_groups(counts, classes, size, steps, seed, epoch)
    # Slot i is a group of images for batch i % steps. A class has at most `steps` slots, which follow each other, so
    # that no batch gets two of them.
    slots = np.arange(classes * steps)
    shares = size // classes + (slots < size % classes * steps)
    class_of_entry = np.repeat(np.repeat(order, groups[order]), shares)
    images = _images_to_use(class_of, counts, used, seed, epoch)
    entries = images[
        np.cumsum(counts)[class_of_entry]
        - counts[class_of_entry]
        + rank_in_class(class_of_entry) % counts[class_of_entry]
    ]
    by_batch = np.argsort(np.repeat(slots % steps, shares), kind="stable").reshape(steps, size)
    return entries[by_batch[permutation(steps, Stream.GROUPS, seed, epoch)]].ravel().astype(np.int32)


def check_groups(labels: np.ndarray, classes: int, size: int) -> None:
    """Checks that there can be batches of `size` images of exactly `classes` classes that use all classes.

    Raises:
      UserError: there are fewer classes, or one has fewer images than a batch takes of it.
    """
    names, counts = np.unique(labels, return_counts=True)
    if classes > len(names):
        raise UserError(
            f"student.classes_per_batch is {classes}, but the training images have {len(names)} classes: choose at "
            "most that"
        )
    share = -(-size // classes)
    if counts.min() < share:
        smallest = counts.min()
        raise UserError(
            f"student.classes_per_batch is {classes}: a batch of {size} takes {share} images of each of its classes, "
            f"but class {names[counts.argmin()]} has {smallest} training images: raise student.classes_per_batch to at "
            f"least {-(-size // smallest)}, or lower student.train.batch_size to at most {classes * smallest}"
        )


def _epoch_groups(
    counts: np.ndarray, classes: int, size: int, steps: int, seed: int, epoch: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How the classes share an epoch's groups of images.

    Returns:
      The order in which the classes take their groups, (C,); how many each takes, (C,) with the sum classes * steps
      and each at most `steps`; and how many images each has used before this epoch and after it, (2, C).
    """
    epochs = np.arange(epoch + 1)[:, None]
    always = _in_every_batch(counts, classes)
    weights = np.where(always, 0, counts)
    total, free = int(weights.sum()), (classes - int(always.sum())) * steps
    # The fair numbers of groups, laid end to end, are fractions. Each takes the whole numbers in its stretch after a
    # shift that differs between epochs, so that over the epochs each gets its fraction.
    stride = round(total * 0.6180339887498949)
    while np.gcd(stride, total) != 1:
        stride += 1
    bounds = -((epochs * stride % total - free * np.concatenate([[0], np.cumsum(weights)])) // total)
    groups = np.where(always, steps, np.diff(bounds, axis=1))
    keys = random_raw(groups.size, Stream.GROUP_CLASSES, seed).reshape(groups.shape)
    orders = np.argsort(keys, axis=1, kind="stable")
    # The first slots hold one image more.
    ends = np.cumsum(np.take_along_axis(groups, orders, 1), axis=1)
    images = size // classes * ends + np.minimum(ends, size % classes * steps)
    taken = np.empty_like(groups)
    np.put_along_axis(taken, orders, np.diff(images, axis=1, prepend=0), 1)
    before = taken[:-1].sum(0)
    return orders[-1], groups[-1], np.stack([before, before + taken[-1]])


def _in_every_batch(counts: np.ndarray, classes: int) -> np.ndarray:
    """Which classes are too large for their part of the batches even if they are in every one, (C,) bool."""
    always = np.zeros(len(counts), bool)
    while True:
        left = classes - always.sum()
        more = ~always & (counts * left > counts[~always].sum())
        if not more.any():
            return always
        always |= more


def _images_to_use(class_of: np.ndarray, counts: np.ndarray, used: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """The images class by class; those of a class are to be used from front to back, over and over.

    Within a class come first those that this epoch uses once more than the rest, which are the next in a fixed cycle
    through the class. Both parts are shuffled in each epoch.
    """
    cycle = permutation(len(class_of), Stream.GROUP_CYCLE, seed)
    place = np.empty(len(class_of), np.int64)
    place[cycle] = rank_in_class(class_of[cycle])
    before, after = used
    waiting = (place - before[class_of]) % counts[class_of]
    rest = waiting >= ((after - before) % counts)[class_of]
    rank = np.argsort(epoch_order(seed, epoch, len(class_of)))
    return np.lexsort((rank, rest, class_of))


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


def anchor_sets(labels: np.ndarray, protocol: Any, seed: int) -> list[np.ndarray]:
    """The class-balanced, seeded batches of training indices that an `evaluate` section of a config asks for.

    They change with the student's `seed`, so that the spread over seeds is that of the anchors too. No two seeds share
    a batch.
    """
    first = protocol.anchor_seed + seed * protocol.anchor_batches
    return [balanced_batch(labels, protocol.anchors, first + k) for k in range(protocol.anchor_batches)]


def order_seed(protocol: Any, seed: int) -> int:
    """The seed of the shuffled order of the evaluated images, for the student of `seed`, with which it changes."""
    return protocol.order_seed + seed
