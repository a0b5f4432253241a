"""Makes smaller banks: selects training images, and measures the accuracy with fewer of them on held-out images.

A smaller bank keeps the same number of images of each class, if the class has that many. Its sparsity, weight and
epsilon are chosen again on the held-out images. Its space and signal are those of the whole bank.
"""

from typing import NamedTuple

import numpy as np

from cnn2gnn_jax.data.permutations import Stream, permutation, rank_in_class
from cnn2gnn_jax.evaluation import choice
from cnn2gnn_jax.evaluation.choice import Counts, Embedded, Grid
from cnn2gnn_jax.neighbors import Bank
from cnn2gnn_jax.runtime.errors import UserError
from cnn2gnn_jax.training.bank import HeldOut, StoredBank

SELECTIONS = ("balanced", "useful")
"""How images are selected. `balanced` draws them with a seed. `useful` takes the most useful ones; see `usefulness`."""
_FACTORS = (1, 2, 5)  # The sizes that are compared are these numbers times powers of 10.
_SMALLEST = 100


class Thinned(NamedTuple):
    """A smaller bank.

    bank: the bank, with settings that were chosen for it.
    accuracy: like `StoredBank.accuracy`. If held-out images select the training images, each half of them selects both
      the images and the settings for the other half. None if no images were held out.
    """

    bank: Bank
    accuracy: float | None


def sizes(images: int, classes: int) -> list[int]:
    """The sizes at which a bank of this many images is compared. The last one is the whole bank."""
    steps = [number * 10**power for power in range(2, 9) for number in _FACTORS]
    return [*(step for step in steps if max(_SMALLEST, classes) <= step < images), images]


def check_size(stored: StoredBank, size: int, selection: str) -> None:
    """Checks that a bank can be thinned to a size with a selection.

    Raises:
      UserError: the size is out of range, or the selection needs held-out images and there are none.
    """
    images, classes = len(stored.bank.labels), len(np.unique(stored.bank.labels))
    if not max(classes, 2) <= size <= images:
        raise UserError(
            f"--bank is {size}: expected a number from {max(classes, 2)} (an image of each class) to {images} (all)"
        )
    if selection == "useful" and stored.held_out is None:
        raise UserError("--bank_selection=useful needs held-out images, but the run has none: use balanced")


def thin(stored: StoredBank, grid: Grid, size: int, selection: str = SELECTIONS[0]) -> Thinned:
    """Selects some of the training images of a bank, and chooses the settings of the smaller bank.

    Args:
      stored: the whole bank.
      grid: the sparsities, weights and epsilons to choose from. Its space and signal are those of the bank.
      size: how many images to keep; see `check_size`. If it is the number of all images, the bank does not change.
      selection: one of SELECTIONS.
    """
    held_out, whole = stored.held_out, stored.bank
    if size == len(whole.labels):
        return Thinned(whole, stored.accuracy)
    if held_out is None:
        bank = subset(whole, select(whole, size))
        sparsity = min(whole.settings.sparsity, size - 1)
        return Thinned(bank.replace(settings=whole.settings._replace(sparsity=sparsity)), None)
    is_useful = selection == "useful"

    def selected(images: HeldOut) -> tuple[Bank, Counts]:
        bank = subset(whole, select(whole, size, images if is_useful else None))
        return bank, _count(bank, held_out, grid)

    bank, counts = selected(held_out)
    folds = (counts, counts)
    if is_useful:
        half = choice.halves(held_out.labels)
        first, second = (selected(HeldOut(*(array[half == k] for array in held_out)))[1] for k in (0, 1))
        folds = (first, second)
    accuracy = 100 * choice.two_fold(*folds) / len(held_out.labels)
    return Thinned(bank.replace(settings=counts.settings[counts.best()]), accuracy)


def _count(bank: Bank, held_out: HeldOut, grid: Grid) -> Counts:
    space, signal = bank.settings.space, bank.settings.signal
    images = Embedded(held_out.logits, {space: held_out.features})
    return choice.count(images, held_out.labels, {(space, signal): bank}, grid)


def select(bank: Bank, size: int, held_out: HeldOut | None = None) -> np.ndarray:
    """Selects the images of a smaller bank and returns their indices in ascending order, (size,).

    The first images of each class in a seeded order are selected. With held-out images, the most useful images come
    first, and equally useful ones are in the seeded order.
    """
    order = permutation(len(bank.labels), Stream.BANK, 0)
    if held_out is not None:
        order = order[np.argsort(-usefulness(bank, held_out)[order], kind="stable")]
    rank = rank_in_class(np.asarray(bank.labels)[order])
    return np.sort(order[np.argsort(rank, kind="stable")[:size]])


def usefulness(bank: Bank, held_out: HeldOut) -> np.ndarray:
    """The usefulness of each of N training images, (N,).

    It is the sum of the image's weights for held-out images of its own class, minus the sum for those of other classes.
    The weights are those of Eq. 3 over the whole bank.
    """
    nearest = choice.search(bank, held_out.features, bank.settings.sparsity)
    columns = np.asarray(nearest.columns)
    is_same_class = np.asarray(bank.labels)[columns] == held_out.labels[:, None]
    result = np.zeros(len(bank.labels))
    np.add.at(result, columns, np.where(is_same_class, 1, -1) * np.asarray(nearest.weights, np.float64))
    return result


def subset(bank: Bank, columns: np.ndarray) -> Bank:
    """The bank with some of its images."""
    return bank.replace(keys=bank.keys[columns], labels=bank.labels[columns], signals=bank.signals[columns])
