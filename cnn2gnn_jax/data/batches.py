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

    The images of one class in one batch are a *group*, so a batch has `classes` groups. The sizes of the groups of a
    batch differ by at most one, and no image occurs twice in a batch. An epoch continues with the images of a class
    where the previous epoch stopped, so that in the long run all images of a class are used equally often. The number
    of groups of a class is proportional to its number of images. A class with more than 1 / `classes` of all images is
    in every batch, and its images are used less often than those of other classes.

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
    # Group i is in batch i % steps. The groups of a class are consecutive and at most `steps`, so no batch gets two
    # groups of the same class. The first groups have one more image if `classes` does not divide `size`.
    group = np.arange(classes * steps)
    group_sizes = size // classes + (group < size % classes * steps)
    drawn_class = np.repeat(np.repeat(order, groups[order]), group_sizes)  # the class of each image that is drawn
    images = _images_to_use(class_of, counts, used, seed, epoch)
    first_of_class = np.cumsum(counts) - counts  # the position in `images` of each class
    drawn = images[first_of_class[drawn_class] + rank_in_class(drawn_class) % counts[drawn_class]]
    by_batch = np.argsort(np.repeat(group % steps, group_sizes), kind="stable").reshape(steps, size)
    return drawn[by_batch[permutation(steps, Stream.GROUPS, seed, epoch)]].ravel().astype(np.int32)


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
    """Distributes the classes * steps groups of an epoch over the C classes; see `grouped_order`.

    Returns:
      The order in which the classes get their groups, (C,). The number of groups of each class, (C,), which is at most
      `steps`. The numbers of images of each class that are drawn before this epoch and up to its end, (2, C).
    """
    epochs = np.arange(epoch + 1)[:, None]
    in_every_batch = _in_every_batch(counts, classes)
    weights = np.where(in_every_batch, 0, counts)
    total, shared_groups = int(weights.sum()), (classes - int(in_every_batch.sum())) * steps
    # The other classes share the remaining groups. The fair share of a class, shared_groups * weight / total, is a
    # fraction. The shares are intervals that follow one another on the number line, and a class gets one group for each
    # integer in its interval. All intervals are shifted by a multiple of 1 / total, which differs between epochs: a
    # stride that is coprime with the total visits all multiples in turn. Over the epochs, each class therefore gets its
    # fair share. With the golden ratio as stride, the shifts of a few epochs are far from each other.
    stride = round(total * 0.6180339887498949)
    while np.gcd(stride, total) != 1:
        stride += 1
    bounds = -((epochs * stride % total - shared_groups * np.concatenate([[0], np.cumsum(weights)])) // total)
    groups = np.where(in_every_batch, steps, np.diff(bounds, axis=1))
    keys = random_raw(groups.size, Stream.GROUP_CLASSES, seed).reshape(groups.shape)
    orders = np.argsort(keys, axis=1, kind="stable")
    last_groups = np.cumsum(np.take_along_axis(groups, orders, 1), axis=1)
    # The number of images up to the last group of each class. The first groups have one more image.
    images = size // classes * last_groups + np.minimum(last_groups, size % classes * steps)
    drawn = np.empty_like(groups)
    np.put_along_axis(drawn, orders, np.diff(images, axis=1, prepend=0), 1)
    before = drawn[:-1].sum(0)
    return orders[-1], groups[-1], np.stack([before, before + drawn[-1]])


def _in_every_batch(counts: np.ndarray, classes: int) -> np.ndarray:
    """The classes that must be in every batch because their fair share is one group per batch or more, (C,) bool."""
    chosen = np.zeros(len(counts), bool)
    while True:  # each choice leaves fewer groups of a batch to the other classes, and so changes their fair shares
        remaining = classes - chosen.sum()
        additional = ~chosen & (counts * remaining > counts[~chosen].sum())
        if not additional.any():
            return chosen
        chosen |= additional


def _images_to_use(class_of: np.ndarray, counts: np.ndarray, used: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """The images sorted by class, (n,). An epoch draws the images of a class in this order, from the start if it ends.

    In each class, the images that this epoch draws once more than the others come first. They are the next ones in a
    fixed cycle through the class. The order within both parts of a class is shuffled in each epoch.

    Args:
      class_of: (n,), the class of each image, 0..C-1.
      counts: (C,), the number of images of each class.
      used: (2, C), the numbers of images that are drawn before this epoch and up to its end.
      seed: the seed of the cycle and of the shuffling.
      epoch: the epoch, from 0.
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


def anchor_sets(labels: np.ndarray, section: Any, seed: int) -> list[np.ndarray]:
    """The batches of anchors: class-balanced batches of training images, as positions (A,) in the training set.

    They depend on the student's seed, so that the standard deviation over seeds includes the choice of anchors.

    Args:
      labels: (n,), the labels of the training images.
      section: the section `evaluate` of a config.
      seed: the student's seed.
    """
    first_seed = section.anchor_seed + seed * section.anchor_batches
    return [balanced_batch(labels, section.anchors, first_seed + k) for k in range(section.anchor_batches)]


def order_seed(section: Any, seed: int) -> int:
    """The seed that shuffles the evaluated images for a student.

    Args:
      section: the section `evaluate` of a config.
      seed: the student's seed.
    """
    return section.order_seed + seed
