"""Smaller banks: which training images they keep, and their accuracy on held-out images.

A smaller bank keeps equally many images of each class, as far as the class has them. Its sparsity, weight and epsilon
are chosen again on the held-out images. Its features and signal are those of the whole bank.
"""

from typing import Any, NamedTuple

import numpy as np

from cnn2gnn_jax.data.permutations import Stream, permutation, rank_in_class
from cnn2gnn_jax.evaluation import choice
from cnn2gnn_jax.evaluation.choice import Counts, Embedded, Grid
from cnn2gnn_jax.neighbors import Bank, Settings
from cnn2gnn_jax.runtime.errors import UserError
from cnn2gnn_jax.training import bank as banks
from cnn2gnn_jax.training.bank import HeldOut, StoredBank

SELECTIONS = ("balanced", "useful")
"""`balanced`: a seeded draw. `useful`: the images that help the held-out images most, see `usefulness`."""
_LEADING_DIGITS = (1, 2, 5)  # of the sizes that are compared
_SMALLEST = 100


class Selection(NamedTuple):
    """Which training images a smaller bank keeps.

    size: how many; 0 keeps all.
    method: one of SELECTIONS.
    """

    size: int = 0
    method: str = SELECTIONS[0]


def sizes(images: int, classes: int) -> list[int]:
    """The sizes at which banks are compared, up to all of the training images."""
    steps = [number * 10**power for power in range(2, 9) for number in _LEADING_DIGITS]
    return [*(step for step in steps if max(_SMALLEST, classes) <= step < images), images]


def check_size(stored: StoredBank, size: int, selection: str) -> None:
    """Raises UserError if a bank cannot be thinned to this size, or by this selection."""
    images, classes = len(stored.bank.labels), len(np.unique(stored.bank.labels))
    if not max(classes, 2) <= size <= images:
        raise UserError(f"--bank is {size}: expected {max(classes, 2)} (an image of each class) to {images} (all)")
    if selection == "useful" and stored.held_out is None:
        raise UserError("--bank_selection=useful needs held-out images, and the run has none: choose balanced")


def thin(stored: StoredBank, grid: Grid, size: int, selection: str = SELECTIONS[0]) -> StoredBank:
    """Makes the bank with `size` of the training images.

    Args:
      stored: the whole bank.
      grid: the sparsities, weights and epsilons to choose from, for the bank's own space and signal.
      size: as `check_size` allows it; the whole bank is returned as it is.
      selection: one of SELECTIONS.

    Returns:
      The bank with its own settings and accuracy. The accuracy counts one half of the held-out images, while the
      settings and, with `useful`, the images are chosen on the other half, and vice versa.
    """
    held_out, whole = stored.held_out, stored.bank
    if size == len(whole.labels):
        return stored
    if held_out is None:
        sparsity = min(whole.settings.sparsity, size - 1)
        return _subset(stored, select(whole, size), whole.settings._replace(sparsity=sparsity), None)
    is_useful = selection == "useful"

    def selected(images: HeldOut) -> tuple[np.ndarray, Counts]:
        columns = select(whole, size, images if is_useful else None)
        return columns, _count(subset(whole, columns), held_out, grid)

    columns, counts = selected(held_out)
    folds = (counts, counts)
    if is_useful:
        half = choice.halves(held_out.labels)
        first, second = (selected(HeldOut(*(array[half == k] for array in held_out)))[1] for k in (0, 1))
        folds = (first, second)
    accuracy = 100 * choice.two_fold(*folds) / len(held_out.labels)
    return _subset(stored, columns, counts.settings[counts.best()], accuracy)


def compare_sizes(
    stored: StoredBank, section: Any, classes: int, selection: Selection
) -> tuple[StoredBank, dict[str, Any]]:
    """Makes the bank of a selection, and compares it with banks of other sizes.

    Args:
      stored: the whole bank.
      section: the section `evaluate.training_set` of the run's config.
      classes: the number of classes.
      selection: which training images are kept.

    Returns:
      The bank; and its facts: `settings`, `key_type`, `selection`, `held_out_images`, `accuracy_alone`, `images`,
      `bytes` and `accuracy`. The last three are also in `sizes`, for each size that is compared.

    Raises:
      UserError: see `check_size`.
    """
    images, settings, held_out = len(stored.bank.labels), stored.bank.settings, stored.held_out
    size = selection.size or images
    check_size(stored, size, selection.method)
    grid = Grid((settings.space,), (settings.signal,), section.sparsities, section.weights, section.epsilons)
    compared = {size} if held_out is None else {size, *sizes(images, classes)}
    rows, chosen = {}, stored
    for count in sorted(compared):
        smaller = thin(stored, grid, count, selection.method)
        rows[count] = {"images": count, "bytes": banks.size(smaller.bank), "accuracy": smaller.accuracy}
        if count == size:
            chosen = smaller
    return chosen, {
        **rows[size],
        "settings": chosen.bank.settings._asdict(),
        "key_type": str(chosen.bank.keys.dtype),
        "selection": selection.method,
        "held_out_images": 0 if held_out is None else len(held_out.labels),
        "accuracy_alone": stored.accuracy_alone,
        "sizes": list(rows.values()),
    }


def _subset(stored: StoredBank, columns: np.ndarray, settings: Settings, accuracy: float | None) -> StoredBank:
    files = stored.files and tuple(stored.files[column] for column in columns)
    bank = subset(stored.bank, columns).replace(settings=settings)
    return stored._replace(bank=bank, files=files, accuracy=accuracy)


def _count(bank: Bank, held_out: HeldOut, grid: Grid) -> Counts:
    space, signal = bank.settings.space, bank.settings.signal
    images = Embedded(held_out.logits, {space: held_out.features})
    return choice.count(images, held_out.labels, {(space, signal): bank}, grid)


def select(bank: Bank, size: int, held_out: HeldOut | None = None) -> np.ndarray:
    """The sorted indices of the images that a bank of this size keeps, (size,).

    The first images of each class in a seeded order are kept. With held-out images, the most useful ones come first.
    """
    order = permutation(len(bank.labels), Stream.BANK, 0)
    if held_out is not None:
        order = order[np.argsort(-usefulness(bank, held_out)[order], kind="stable")]
    rank = rank_in_class(np.asarray(bank.labels)[order])
    return np.sort(order[np.argsort(rank, kind="stable")[:size]])


def usefulness(bank: Bank, held_out: HeldOut) -> np.ndarray:
    """The weight of N training images on held-out images of the same class minus that on other classes, (N,).

    The weights are those of Eq. 3 over the whole bank, with its sparsity.
    """
    nearest = choice.search(bank, held_out.features, bank.settings.sparsity)
    columns = np.asarray(nearest.columns)
    agrees = np.asarray(bank.labels)[columns] == held_out.labels[:, None]
    totals = np.zeros(len(bank.labels))
    np.add.at(totals, columns, np.where(agrees, 1, -1) * np.asarray(nearest.weights, np.float64))
    return totals


def subset(bank: Bank, columns: np.ndarray) -> Bank:
    """The bank with some of its images."""
    return bank.replace(keys=bank.keys[columns], labels=bank.labels[columns], signals=bank.signals[columns])
