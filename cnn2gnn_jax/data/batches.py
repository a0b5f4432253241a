"""The order of the images in epochs, evaluation batches and batches of anchors. All are pure functions of seeds."""

from typing import Any

import numpy as np

from cnn2gnn_jax.data.permutations import Stream, permutation, random_raw, rank_in_class
from cnn2gnn_jax.runtime.errors import UserError


def epoch_order(seed: int, epoch: int, n: int) -> np.ndarray:
    """The order of the n training images in an epoch, (n,) int32. It depends only on the arguments."""
    return permutation(n, Stream.EPOCH, seed, epoch)


def grouped_order(labels: np.ndarray, classes: int, size: int, seed: int, epoch: int) -> np.ndarray:
    """The order of the training images in an epoch whose batches have images of exactly `classes` classes.

    The numbers of images of the classes in a batch differ by at most one, and no image occurs twice. An epoch continues
    with the images of a class where the previous epoch stopped, so that in the long run all images of a class are used
    equally often. Classes are drawn in proportion to their number of images. A class with more than 1 / `classes` of
    all images is in every batch, and its images are used less often than those of other classes.

    Args:
      labels: (n,) labels. Classes are the labels that occur.
      classes: the number of classes in a batch.
      size: the number of images in a batch.
      seed: the seed that chooses the classes and images of each batch.
      epoch: the epoch, from 0.

    Returns:
      (n // size * size,) int32, the batches one after another.

    Raises:
      UserError: see `check_groups`.
    """
    check_groups(labels, classes, size)
    _, class_of, counts = np.unique(labels, return_inverse=True, return_counts=True)
    steps = len(labels) // size
    order, groups, used = _epoch_groups(counts, classes, size, steps, seed, epoch)
    # Slot i is a group of images of one class in batch i % steps. The slots of a class are consecutive and at most
    # `steps`, so no batch gets two groups of the same class.
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
    """Checks that batches of `size` images of exactly `classes` classes are possible.

    Raises:
      UserError: there are fewer classes, or a class has fewer images than a batch needs of it.
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
    """Distributes the groups of images of an epoch over the classes.

    Returns:
      The order in which the classes get their groups, (C,). The number of groups of each class, (C,), which is at most
      `steps`, with the sum classes * steps. The number of images of each class that are used before this epoch and up
      to its end, (2, C).
    """
    epochs = np.arange(epoch + 1)[:, None]
    always = _in_every_batch(counts, classes)
    weights = np.where(always, 0, counts)
    total, free = int(weights.sum()), (classes - int(always.sum())) * steps
    # The fair number of groups of a class is a fraction. The fractions are laid end to end, and a class gets one group
    # for each integer in its interval, after a shift that differs between epochs. Over the epochs, each class gets its
    # fair share.
    stride = round(total * 0.6180339887498949)
    while np.gcd(stride, total) != 1:
        stride += 1
    bounds = -((epochs * stride % total - free * np.concatenate([[0], np.cumsum(weights)])) // total)
    groups = np.where(always, steps, np.diff(bounds, axis=1))
    keys = random_raw(groups.size, Stream.GROUP_CLASSES, seed).reshape(groups.shape)
    orders = np.argsort(keys, axis=1, kind="stable")
    # The first slots have one more image.
    ends = np.cumsum(np.take_along_axis(groups, orders, 1), axis=1)
    images = size // classes * ends + np.minimum(ends, size % classes * steps)
    taken = np.empty_like(groups)
    np.put_along_axis(taken, orders, np.diff(images, axis=1, prepend=0), 1)
    before = taken[:-1].sum(0)
    return orders[-1], groups[-1], np.stack([before, before + taken[-1]])


def _in_every_batch(counts: np.ndarray, classes: int) -> np.ndarray:
    """The classes that must be in every batch because their fair share is one group per batch or more, (C,) bool."""
    always = np.zeros(len(counts), bool)
    while True:
        remaining = classes - always.sum()
        additional = ~always & (counts * remaining > counts[~always].sum())
        if not additional.any():
            return always
        always |= additional


def _images_to_use(class_of: np.ndarray, counts: np.ndarray, used: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """The images sorted by class. The images of a class are used in this order, repeatedly.

    In each class, the images that this epoch uses once more than the others come first. They are the next ones in a
    fixed cycle through the class. Both parts of a class are shuffled in each epoch.
    """
    cycle = permutation(len(class_of), Stream.GROUP_CYCLE, seed)
    position = np.empty(len(class_of), np.int64)
    position[cycle] = rank_in_class(class_of[cycle])
    used_before, used_after = used
    distance = (position - used_before[class_of]) % counts[class_of]
    is_last = distance >= ((used_after - used_before) % counts)[class_of]
    rank = np.argsort(epoch_order(seed, epoch, len(class_of)))
    return np.lexsort((rank, is_last, class_of))


def shuffled_order(n: int, seed: int) -> np.ndarray:
    """A random order of n images for evaluation, (n,) int32."""
    return permutation(n, Stream.EVALUATION, seed)


def class_sorted_order(labels: np.ndarray) -> np.ndarray:
    """The order that sorts images by class and is stable within a class, (n,) int32.

    A graph over such batches leaks the labels. Accuracies in this order are therefore only an audit.
    """
    return np.argsort(labels, kind="stable").astype(np.int32)


def evaluation_batches(n: int, size: int, order: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Splits n images into K = ceil(n / size) batches whose sizes differ by at most one.

    Args:
      n: number of images, at least 1.
      size: largest number of images in a batch, at least 1.
      order: a permutation of 0..n-1, which is divided into batches; None for the order 0..n-1.

    Returns:
      Indices (K, B) int32 and mask (K, B) bool, with B = ceil(n / K) <= size. A smaller batch is padded with its last
      image, where the mask is False.
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
    """A random class-balanced batch of distinct images: the numbers of images of the classes differ by at most one.

    Args:
      labels: (n,) labels. Classes are the labels that occur.
      size: number of images in the batch.
      seed: the seed that chooses the images, their order, and the classes with one more image.

    Returns:
      (size,) int32, indices into `labels` in random order.

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
    """The batches of anchors: class-balanced batches of training indices.

    They depend on the student's seed, so that the spread over seeds includes the choice of anchors. Different seeds
    use different batches.

    Args:
      labels: (n,), the labels of the training images.
      protocol: the section `evaluate` of a config.
      seed: the student's seed.
    """
    first = protocol.anchor_seed + seed * protocol.anchor_batches
    return [balanced_batch(labels, protocol.anchors, first + k) for k in range(protocol.anchor_batches)]


def order_seed(protocol: Any, seed: int) -> int:
    """The seed that shuffles the evaluated images for the student with this seed."""
    return protocol.order_seed + seed
