"""Chooses the settings of the training-set graph on held-out images.

The accuracy of the best of many settings on the images that it was chosen on is biased upwards. The two-fold accuracy
is not: the settings are chosen on one half of the held-out images and evaluated on the other, and vice versa.
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
    """The logits and features of a student for N images.

    logits: (N, C), up to a constant for each image; with a learned graph they are one by one.
    features: (N, K) by space, see `inference.features`.
    """

    logits: np.ndarray
    features: dict[str, np.ndarray]


class Grid(NamedTuple):
    """The candidate settings: all combinations of these values."""

    spaces: tuple[str, ...]
    signals: tuple[str, ...]
    sparsities: tuple[int, ...]
    weights: tuple[float, ...]
    epsilons: tuple[float, ...]


class Choice(NamedTuple):
    """The settings with the highest accuracy on held-out images, and accuracies on these images in percent.

    accuracy: with the chosen settings, on the images that they were chosen on; biased upwards.
    accuracy_two_fold: with settings chosen on one half and evaluated on the other, and vice versa.
    accuracy_alone: without the graph.
    All three are None if no images were held out.
    """

    settings: Settings
    accuracy: float | None
    accuracy_two_fold: float | None
    accuracy_alone: float | None


class Counts(NamedTuple):
    """How many held-out images are classified correctly with each setting.

    settings: S settings.
    right: (S, 2), the number of correct images in each of the `halves`.
    """

    settings: list[Settings]
    right: np.ndarray

    def best(self) -> int:
        """The index of the setting with the most correct images; the first one in case of ties."""
        return int(np.argmax(self.right.sum(-1)))


def halves(labels: np.ndarray) -> np.ndarray:
    """Assigns each of M held-out images to half 0 or 1, (M,). Each class is divided as evenly as possible."""
    half = np.empty(len(labels), np.int64)
    half[np.argsort(labels, kind="stable")] = np.arange(len(labels)) % 2
    return half


def two_fold(chosen_on_first: Counts, chosen_on_second: Counts) -> int:
    """The number of correct images if the setting is chosen on one half and evaluated on the other, and vice versa.

    The arguments are equal, unless the images of the bank were chosen on the halves, too.
    """
    folds = (chosen_on_first, chosen_on_second)
    return sum(int(counts.right[np.argmax(counts.right[:, k]), 1 - k]) for k, counts in enumerate(folds))


def choose(held_out: Embedded, labels: np.ndarray, banks: Mapping[tuple[str, str], Bank], grid: Grid) -> Choice:
    """Chooses the best settings of a grid on held-out images; the first ones in case of ties.

    Args:
      held_out: M images that are in no bank.
      labels: (M,), their classes.
      banks: the banks by space and signal.
      grid: the candidate settings.

    Raises:
      UserError: see `sparsities`.
    """
    counts = count(held_out, labels, banks, grid)
    best, alone = counts.best(), int(np.sum(np.argmax(held_out.logits, -1) == labels))
    right = (int(counts.right[best].sum()), two_fold(counts, counts), alone)
    return Choice(counts.settings[best], *(100 * number / len(labels) for number in right))


def sparsities(grid: Grid, columns: int) -> list[int]:
    """The sparsities of a grid that are smaller than the number of columns.

    Raises:
      UserError: there are none.
    """
    possible = [s for s in grid.sparsities if s < columns]
    if not possible:
        raise UserError(
            f"evaluate.training_set.sparsities has {min(grid.sparsities)} as its smallest value, but there are "
            f"{columns} training images: add a smaller value"
        )
    return possible


def count(held_out: Embedded, labels: np.ndarray, banks: Mapping[tuple[str, str], Bank], grid: Grid) -> Counts:
    """Counts the correct held-out images for each setting of a grid. Arguments and errors are those of `choose`."""
    possible = sparsities(grid, len(banks[grid.spaces[0], grid.signals[0]].labels))
    half, weights, epsilons = halves(labels), np.array(grid.weights), np.array(grid.epsilons)
    settings, right = list[Settings](), list[np.ndarray]()
    for space in grid.spaces:
        nearest = search(banks[space, grid.signals[0]], held_out.features[space], max(possible))
        for signal, sparsity in itertools.product(grid.signals, possible):
            votes = _votes(banks[space, signal].signals, nearest, sparsity)
            right.append(np.asarray(_right(held_out.logits, votes, labels, half, weights, epsilons)))
            settings += [Settings(space, signal, sparsity, w, e) for e in grid.epsilons for w in grid.weights]
    return Counts(settings, np.concatenate(right))


def search(bank: Bank, features: np.ndarray, sparsity: int) -> Neighbors:
    """Applies `neighbors.search` to the features (M, F) of many images, batch by batch."""
    find, queries = jax.jit(neighbors.search, static_argnums=2), neighbors.queries(bank, jnp.asarray(features))
    parts = [find(queries[start : start + BATCH], bank.keys, sparsity) for start in range(0, len(queries), BATCH)]
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)


@functools.partial(jax.jit, static_argnums=2)
def _votes(signals: jax.Array, nearest: Neighbors, sparsity: int) -> jax.Array:
    """The votes P Y, (M, C), without the ties that only `neighbors.propagate` resolves."""
    return neighbors.weighted_sum(signals, neighbors.reduce_sparsity(nearest, sparsity))


@jax.jit
def _right(
    logits: jax.Array, votes: jax.Array, labels: jax.Array, half: jax.Array, weights: jax.Array, epsilons: jax.Array
) -> jax.Array:
    """The number of correct images of each half for each epsilon and, within it, each weight: (E * W, 2)."""

    def of_setting(setting: tuple[jax.Array, jax.Array]) -> jax.Array:
        epsilon, weight = setting
        right = jnp.argmax(neighbors.combine(logits, votes, weight, epsilon), -1) == labels
        return jnp.stack([jnp.sum(right & (half == k)) for k in (0, 1)])

    return jax.lax.map(of_setting, (jnp.repeat(epsilons, len(weights)), jnp.tile(weights, len(epsilons))))
