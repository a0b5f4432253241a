"""The settings of the training-set graph, chosen on held-out images.

How many held-out images the best of many settings has right is too high a figure for other images. The fair figure is
two-fold: chosen on one half of the held-out images, read on the other, both ways.
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
    """What a student makes of N images.

    logits: (N, C), its own answers, up to a constant for each image; those of a learned graph are one by one.
    features: (N, K) by space, see `inference.features`.
    """

    logits: np.ndarray
    features: dict[str, np.ndarray]


class Grid(NamedTuple):
    """The settings that are tried: all combinations."""

    spaces: tuple[str, ...]
    signals: tuple[str, ...]
    sparsities: tuple[int, ...]
    weights: tuple[float, ...]
    epsilons: tuple[float, ...]


class Choice(NamedTuple):
    """The settings that have most held-out images right, and percentages of these images.

    accuracy: with the chosen settings, of the images that they were chosen on: too high for others.
    accuracy_two_fold: chosen on one half, read on the other, both ways: a fair figure for other images.
    accuracy_alone: of the student without the graph.
    All three are None where no images were held out.
    """

    settings: Settings
    accuracy: float | None
    accuracy_two_fold: float | None
    accuracy_alone: float | None


class Counts(NamedTuple):
    """How many held-out images each setting has right.

    settings: S of them.
    right: (S, 2), in each of the `halves` of the images.
    """

    settings: list[Settings]
    right: np.ndarray

    def best(self) -> int:
        """The setting with most images right; of equally good ones, the first."""
        return int(np.argmax(self.right.sum(-1)))


def halves(labels: np.ndarray) -> np.ndarray:
    """Which half each of M held-out images is in, (M,) of 0 and 1; each class is divided as evenly as it can be."""
    half = np.empty(len(labels), np.int64)
    half[np.argsort(labels, kind="stable")] = np.arange(len(labels)) % 2
    return half


def two_fold(chosen_on_first: Counts, chosen_on_second: Counts) -> int:
    """How many images are right where the setting is chosen on one half of them and read on the other, both ways.

    The two are the same, unless the banks were chosen on these halves too.
    """
    folds = (chosen_on_first, chosen_on_second)
    return sum(int(counts.right[np.argmax(counts.right[:, k]), 1 - k]) for k, counts in enumerate(folds))


def choose(held_out: Embedded, labels: np.ndarray, banks: Mapping[tuple[str, str], Bank], grid: Grid) -> Choice:
    """The best settings of a grid on held-out images. Of equally good ones, the first is taken.

    Args:
      held_out: M images that are in no bank.
      labels: (M,), their classes.
      banks: by space and signal.
      grid: what is tried.

    Raises:
      UserError: see `sparsities`.
    """
    counts = count(held_out, labels, banks, grid)
    best, alone = counts.best(), int(np.sum(np.argmax(held_out.logits, -1) == labels))
    right = (int(counts.right[best].sum()), two_fold(counts, counts), alone)
    return Choice(counts.settings[best], *(100 * number / len(labels) for number in right))


def sparsities(grid: Grid, columns: int) -> list[int]:
    """Those of the grid that are possible with so many columns.

    Raises:
      UserError: there is none.
    """
    possible = [s for s in grid.sparsities if s < columns]
    if not possible:
        raise UserError(
            f"evaluate.training_set.sparsities has {min(grid.sparsities)} as its smallest value, but there are "
            f"{columns} training images: give one below that"
        )
    return possible


def count(held_out: Embedded, labels: np.ndarray, banks: Mapping[tuple[str, str], Bank], grid: Grid) -> Counts:
    """How many held-out images each setting of a grid has right; with the arguments and errors of `choose`."""
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
    """What `neighbors.search` returns for all images, (M, F)."""
    find, queries = jax.jit(neighbors.search, static_argnums=2), neighbors.queries(bank, jnp.asarray(features))
    parts = [find(queries[start : start + BATCH], bank.keys, sparsity) for start in range(0, len(queries), BATCH)]
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)


@functools.partial(jax.jit, static_argnums=2)
def _votes(signals: jax.Array, nearest: Neighbors, sparsity: int) -> jax.Array:
    """The votes P Y, (M, C). Ties of more columns than are listed are left to the answer."""
    return neighbors.weighted_sum(signals, neighbors.reduce_sparsity(nearest, sparsity))


@jax.jit
def _right(
    logits: jax.Array, votes: jax.Array, labels: jax.Array, half: jax.Array, weights: jax.Array, epsilons: jax.Array
) -> jax.Array:
    """How many images of each half are right under each epsilon and, within it, each weight: (E * W, 2)."""

    def of_setting(setting: tuple[jax.Array, jax.Array]) -> jax.Array:
        epsilon, weight = setting
        right = jnp.argmax(neighbors.combine(logits, votes, weight, epsilon), -1) == labels
        return jnp.stack([jnp.sum(right & (half == k)) for k in (0, 1)])

    return jax.lax.map(of_setting, (jnp.repeat(epsilons, len(weights)), jnp.tile(weights, len(epsilons))))
