"""Chooses the settings of the training-set graph on held-out images.

The accuracy of the best of many settings on the images that it was chosen on is biased upwards. The two-fold accuracy
is not: the settings are chosen on one half of the held-out images and evaluated on the other half, and vice versa.
"""

import functools
import itertools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cnn2gnn_jax import neighbors
from cnn2gnn_jax.neighbors import Bank, Neighbors, Settings
from cnn2gnn_jax.runtime.errors import UserError

BATCH = 500  # images whose neighbors are searched for at a time


class Embedded(NamedTuple):
    """The logits and features that a student computes for N images.

    logits: (N, C), the student's own logits, up to a constant for each image. With a learned graph they are those of
      Mechanism 1.
    features: the features (N, K) by space; see `inference.features`.
    """

    logits: np.ndarray
    features: dict[str, np.ndarray]


class Grid(NamedTuple):
    """The values of each setting. All their combinations are tried."""

    spaces: tuple[str, ...]
    signals: tuple[str, ...]
    sparsities: tuple[int, ...]
    weights: tuple[float, ...]
    epsilons: tuple[float, ...]


class Choice(NamedTuple):
    """The best settings on the held-out images, and accuracies on these images in percent.

    accuracy: the accuracy of the settings on the images that they were chosen on. For other images it is too high.
    accuracy_two_fold: the accuracy of settings that were chosen on the other half of the images; see `two_fold`.
    accuracy_alone: the accuracy of the student without the training-set graph.
    All three are None if no images were held out.
    """

    settings: Settings
    accuracy: float | None
    accuracy_two_fold: float | None
    accuracy_alone: float | None


class Counts(NamedTuple):
    """The number of held-out images that are classified correctly with each of S settings.

    settings: the S settings.
    correct: (S, 2), the numbers in both `halves` of the images.
    """

    settings: list[Settings]
    correct: np.ndarray

    def best(self) -> int:
        """The index of the setting with the most correct images. Of equally good settings it is the first."""
        return int(np.argmax(self.correct.sum(-1)))


def halves(labels: np.ndarray) -> np.ndarray:
    """Divides M held-out images into two halves, 0 and 1, and returns the half of each image, (M,).

    Each class is divided as evenly as possible.
    """
    half = np.empty(len(labels), np.int64)
    half[np.argsort(labels, kind="stable")] = np.arange(len(labels)) % 2
    return half


def two_fold(chosen_on_first: Counts, chosen_on_second: Counts) -> int:
    """Counts the correct images of each half with the settings that are best on the other half.

    Args:
      chosen_on_first: the counts with a bank that may depend on the first half of the images.
      chosen_on_second: the counts with a bank that may depend on the second half. If the bank depends on no held-out
        image, both are the same.
    """
    folds = (chosen_on_first, chosen_on_second)
    return sum(int(counts.correct[np.argmax(counts.correct[:, k]), 1 - k]) for k, counts in enumerate(folds))


def choose(held_out: Embedded, labels: np.ndarray, banks: Mapping[tuple[str, str], Bank], grid: Grid) -> Choice:
    """Chooses the best settings of a grid on held-out images. Of equally good settings it takes the first.

    Args:
      held_out: M images that are in no bank.
      labels: (M,), the classes of these images.
      banks: the banks by space and signal.
      grid: the settings to try.

    Raises:
      UserError: see `sparsities`.
    """
    counts = count(held_out, labels, banks, grid)
    best, alone = counts.best(), int(np.sum(np.argmax(held_out.logits, -1) == labels))
    correct = (int(counts.correct[best].sum()), two_fold(counts, counts), alone)
    return Choice(counts.settings[best], *(100 * number / len(labels) for number in correct))


def sparsities(grid: Grid, columns: int) -> list[int]:
    """Returns the sparsities of the grid that are smaller than the number of columns.

    Raises:
      UserError: there is no such sparsity.
    """
    possible = [s for s in grid.sparsities if s < columns]
    if not possible:
        raise UserError(
            f"evaluate.training_set.sparsities has {min(grid.sparsities)} as its smallest value, but there are "
            f"{columns} training images: add a smaller value"
        )
    return possible


def count(held_out: Embedded, labels: np.ndarray, banks: Mapping[tuple[str, str], Bank], grid: Grid) -> Counts:
    """Counts the correct held-out images with each setting of a grid.

    Arguments and errors are those of `choose`.
    """
    possible = sparsities(grid, len(banks[grid.spaces[0], grid.signals[0]].labels))
    half, weights, epsilons = halves(labels), np.array(grid.weights), np.array(grid.epsilons)
    settings, correct = list[Settings](), list[np.ndarray]()
    for space in grid.spaces:
        bank = banks[space, grid.signals[0]]
        nearest = search(bank, held_out.features[space], max(possible))
        for signal, sparsity in itertools.product(grid.signals, possible):
            votes = _votes(banks[space, signal].signals, nearest, sparsity)
            correct.append(np.asarray(_correct(held_out.logits, votes, labels, half, weights, epsilons)))
            given = bank.settings._replace(signal=signal, sparsity=sparsity)
            settings += [given._replace(weight=w, epsilon=e) for e in grid.epsilons for w in grid.weights]
    return Counts(settings, np.concatenate(correct))


def search(bank: Bank, features: np.ndarray, sparsity: int, self_columns: np.ndarray | None = None) -> Neighbors:
    """Calls `neighbors.search` for images with features (M, K), in batches."""
    compiled = jax.jit(functools.partial(neighbors.search, sparsity=sparsity, recall=bank.settings.recall))
    queries = neighbors.queries(bank, jnp.asarray(features))
    parts = []
    for start in range(0, len(queries), BATCH):
        batch = slice(start, start + BATCH)
        own = None if self_columns is None else jnp.asarray(self_columns[batch])
        parts.append(compiled(queries[batch], bank.keys, self_columns=own))
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)


@functools.partial(jax.jit, static_argnums=2)
def _votes(signals: jax.Array, nearest: Neighbors, sparsity: int) -> jax.Array:
    """The votes P Y, (M, C). Unlike `neighbors.predict`, this ignores tied columns that the search does not list."""
    return neighbors.weighted_sum(signals, neighbors.reduce_sparsity(nearest, sparsity))


@jax.jit
def _correct(
    logits: jax.Array, votes: jax.Array, labels: jax.Array, half: jax.Array, weights: jax.Array, epsilons: jax.Array
) -> jax.Array:
    """Counts the correct images of both halves with each epsilon and weight, (E * W, 2). The weight varies faster."""

    def of_setting(setting: tuple[jax.Array, jax.Array]) -> jax.Array:
        epsilon, weight = setting
        is_correct = jnp.argmax(neighbors.combine(logits, votes, weight, epsilon), -1) == labels
        return jnp.stack([jnp.sum(is_correct & (half == k)) for k in (0, 1)])

    return jax.lax.map(of_setting, (jnp.repeat(epsilons, len(weights)), jnp.tile(weights, len(epsilons))))
