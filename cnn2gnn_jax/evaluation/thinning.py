"""Smaller banks: which training images are kept, and how many held-out images are right with fewer of them.

Of each class equally many images are kept, as far as it has them. A smaller bank has a sparsity, a weight and an
epsilon of its own, chosen on the held-out images; the features and the signal are those of the whole bank.
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
"""`balanced`: a seeded draw. `useful`: the images of the most use to held-out images, see `usefulness`."""
_ROUND = (1, 2, 5)  # the sizes that are compared are these, times powers of 10
_SMALLEST = 100


class Thinned(NamedTuple):
    """A smaller bank.

    bank: with the settings chosen for it.
    accuracy: as of `StoredBank`; where the images were selected by held-out images, they were so on the same half as
      the settings, so that no image that is counted had a part in either. None where none were held out.
    """

    bank: Bank
    accuracy: float | None


def sizes(images: int, classes: int) -> list[int]:
    """The sizes at which a bank of so many images is compared, up to the whole."""
    steps = [number * 10**power for power in range(2, 9) for number in _ROUND]
    return [*(step for step in steps if max(_SMALLEST, classes) <= step < images), images]


def check_size(stored: StoredBank, size: int, selection: str) -> None:
    """Raises UserError where a bank cannot be thinned to this size, or not by this selection."""
    images, classes = len(stored.bank.labels), len(np.unique(stored.bank.labels))
    if not max(classes, 2) <= size <= images:
        raise UserError(f"--bank is {size}: expected {max(classes, 2)} (an image of each class) to {images} (all)")
    if selection == "useful" and stored.held_out is None:
        raise UserError("--bank_selection=useful is chosen on held-out images, and the run has none: choose balanced")


def thin(stored: StoredBank, grid: Grid, size: int, selection: str = SELECTIONS[0]) -> Thinned:
    """The bank with `size` of its training images.

    Args:
      stored: the whole bank.
      grid: the sparsities, weights and epsilons to choose from, for the bank's own space and signal.
      size: as `check_size` allows it; the whole bank is left as it is.
      selection: one of SELECTIONS.
    """
    held_out, whole = stored.held_out, stored.bank
    if size == len(whole.labels):
        return Thinned(whole, stored.accuracy)
    if held_out is None:
        bank = part(whole, kept(whole, size))
        sparsity = min(whole.settings.sparsity, size - 1)
        return Thinned(bank.replace(settings=whole.settings._replace(sparsity=sparsity)), None)
    is_useful = selection == "useful"

    def selected(images: HeldOut) -> tuple[Bank, Counts]:
        bank = part(whole, kept(whole, size, images if is_useful else None))
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


def kept(bank: Bank, size: int, held_out: HeldOut | None = None) -> np.ndarray:
    """Which images a bank of this size keeps, (size,) in order: of each class the first in a seeded order.

    With held-out images, the most useful to these come first; equally useful ones stand in the seeded order.
    """
    order = permutation(len(bank.labels), Stream.BANK, 0)
    if held_out is not None:
        order = order[np.argsort(-usefulness(bank, held_out)[order], kind="stable")]
    rank = rank_in_class(np.asarray(bank.labels)[order])
    return np.sort(order[np.argsort(rank, kind="stable")[:size]])


def usefulness(bank: Bank, held_out: HeldOut) -> np.ndarray:
    """The weight that each of N training images has on held-out images of its own class, less that on others, (N,).

    The weights are those of Eq. 3 over the whole bank, with its sparsity.
    """
    nearest = choice.search(bank, held_out.features, bank.settings.sparsity)
    columns = np.asarray(nearest.columns)
    agrees = np.asarray(bank.labels)[columns] == held_out.labels[:, None]
    use = np.zeros(len(bank.labels))
    np.add.at(use, columns, np.where(agrees, 1, -1) * np.asarray(nearest.weights, np.float64))
    return use


def part(bank: Bank, columns: np.ndarray) -> Bank:
    """The bank of some of its images."""
    return bank.replace(keys=bank.keys[columns], labels=bank.labels[columns], signals=bank.signals[columns])
