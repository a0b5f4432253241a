"""The training-set graph: Eq. 3 and 4 with all training images as columns.

In Eq. 4, j runs over all training images. They may be a million, so the distances to all of them are never in memory at
a time. Instead, the columns are processed in blocks while a list keeps the s + 1 nearest ones, which are all that Eq. 3
needs. Each image then receives its *votes*, the weighted sum P Y of its neighbors' signals. The signal of a training
image is its one-hot label, or the probabilities that the teacher gives it.

As in attention, an image has a *query* and a training image a *key*, both of K numbers, at distance -<query, key>. The
*bank* holds the keys and signals of all training images.

If the columns are sharded over devices, each device searches its own part, and the lists of all devices are merged.
"""

from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from cnn2gnn_jax import graph
from cnn2gnn_jax.runtime.collectives import all_gather, first_row, psum

BLOCK = 8192  # the number of columns whose distances are in memory at a time
SPACES = ("backbone", "hidden", "logits", "head")
SIGNALS = ("labels", "teacher")


class Settings(NamedTuple):
    """How the training-set graph is built, and how its votes are combined with the student's logits.

    space: one of SPACES, the features between which distances are measured; see `inference.features`.
    signal: one of SIGNALS, what the neighbors vote with: their labels, or the teacher's probabilities for them.
    sparsity: s of Eq. 3.
    weight: lambda, the weight of the votes. If it is 0, the votes have no effect.
    epsilon: added to the votes before their logarithm is taken.
    recall: 1 for the exact search; see `search`.
    """

    space: str
    signal: str
    sparsity: int
    weight: float
    epsilon: float
    recall: float = 1.0


class Bank(flax.struct.PyTreeNode):
    """The training images, which are the columns of the graph.

    keys: (N, K), in float32 or half precision; see `embed`.
    labels: (N,), the classes.
    signals: (N, C), what each image sends to its neighbors.
    mean, scale: (K,), the mean and standard deviation of the training images' features; see `embed`.
    settings: how the graph is built and used.
    """

    keys: Any
    labels: Any
    signals: Any
    mean: Any
    scale: Any
    settings: Settings = flax.struct.field(pytree_node=False)


class Prediction(NamedTuple):
    """The predictions for B images with the training-set graph.

    logits: (B, C), the student's logits combined with the votes.
    votes: (B, C), P Y, the weighted sum of the neighbors' signals. A row sums to 1.
    neighbors: the nearest columns of each image.
    """

    logits: jax.Array
    votes: jax.Array
    neighbors: "Neighbors"


class Neighbors(NamedTuple):
    """The s + 1 nearest columns of each of B images, nearest first.

    weights: (B, s + 1), the weights of Eq. 3. A row sums to 1. The last weight is 0 unless all distances of the row are
      equal.
    columns: (B, s + 1), the indices of the columns.
    distances: (B, s + 1), in ascending order; +inf if there are fewer columns.
    """

    weights: jax.Array
    columns: jax.Array
    distances: jax.Array


def distances(queries: jax.Array, keys: jax.Array) -> jax.Array:
    """Distances -<query, key>, (B, N) in float32 or wider, from queries (B, K) to keys (N, K).

    For unit vectors this is the cosine distance minus 1, and half of the squared Euclidean distance minus 1. Eq. 3 does
    not depend on a shift or a positive scale of a row, so all three give the same weights.
    """
    dtype = jnp.promote_types(queries.dtype, jnp.float32)
    # In full float32: by default GPUs round to TF32, which cannot tell near neighbors apart.
    return -jnp.matmul(queries.astype(dtype), keys.astype(dtype).T, precision="highest")


def search(
    queries: jax.Array,
    keys: jax.Array,
    sparsity: int,
    self_columns: jax.Array | None = None,
    block: int = BLOCK,
    recall: float = 1.0,
) -> Neighbors:
    """Finds the s + 1 nearest columns of each image and their weights (Eq. 3).

    The result of an exact search depends neither on `block` nor on how the columns are sharded.

    Args:
      queries: (B, K).
      keys: (N, K), or this device's part of them; s + 1 <= N.
      sparsity: s of Eq. 3.
      self_columns: (B,), the column of each image itself, which is never its neighbor; -1 for images that are not
        among the columns.
      block: how many columns' distances are in memory at a time.
      recall: 1 searches exactly. A smaller number is the expected share of the nearest columns that `lax.approx_min_k`
        finds in a block. It is faster on TPUs, and exact on other devices.

    Raises:
      ValueError: s < 1, or a device has fewer than s + 1 columns.

    >>> keys = jnp.array([[0.2], [0.9], [0.4]])
    >>> nearest = search(jnp.array([[1.0]]), keys, 2)
    >>> nearest.columns.tolist(), nearest.weights.round(3).tolist()
    ([[1, 2, 0]], [[0.778, 0.222, 0.0]])
    """
    graph.check_sparsity(sparsity, keys.shape[0])
    size, count = keys.shape[0], sparsity + 1
    block = min(block, size)

    def merge(nearest: tuple[jax.Array, jax.Array], start: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
        index, d = _block_distances(queries, keys, self_columns, start, block)
        block_nearest, position = _smallest(d, min(count, block), recall)
        candidates = (
            jnp.append(nearest[0], block_nearest, -1),
            jnp.append(nearest[1], index[position] + first_row(size), -1),
        )
        return _nearest(candidates, count), None

    dtype = jnp.promote_types(queries.dtype, jnp.float32)
    shape = queries.shape[0], count  # not len(queries), which fails in an export, where B is symbolic
    empty = (jnp.full(shape, jnp.inf, dtype), jnp.zeros(shape, jnp.int32))
    local_d, local_index = lax.scan(merge, empty, jnp.arange(0, size, block, dtype=jnp.int32))[0]
    d, index = _nearest((all_gather(local_d, axis=1), all_gather(local_index, axis=1)), count)
    return Neighbors(graph.sparse_neighbors(d, sparsity), index, d)


def reduce_sparsity(neighbors: Neighbors, sparsity: int) -> Neighbors:
    """The neighbors that `search` returns for a sparsity s >= 1, from those for a sparsity of at least s."""
    d = neighbors.distances[:, : sparsity + 1]
    return Neighbors(graph.sparse_neighbors(d, sparsity), neighbors.columns[:, : sparsity + 1], d)


def propagate(
    queries: jax.Array,
    keys: jax.Array,
    signals: jax.Array,
    neighbors: Neighbors,
    self_columns: jax.Array | None = None,
    block: int = BLOCK,
) -> jax.Array:
    """Computes P Y, the weighted sum of the neighbors' signals, (B, F).

    If the s + 1 smallest distances of an image are equal, all columns at that distance have the same weight; see
    `graph.sparse_neighbors`. There may be more than s + 1 such columns, so a second pass over all columns finds them.
    If no image has such ties, there is no second pass, and this function equals `weighted_sum`.

    Args:
      queries, keys, self_columns, block: the arguments of `search`.
      signals: (N, F), or this device's part of them.
      neighbors: the result of `search`.
    """
    size = keys.shape[0]
    block = min(block, size)
    sums = weighted_sum(signals, neighbors)
    smallest = neighbors.distances[:, :1]
    all_tied = neighbors.distances[:, -1:] == smallest

    def mean_over_ties() -> jax.Array:
        def add(total: tuple[jax.Array, jax.Array], start: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
            index, d = _block_distances(queries, keys, self_columns, start, block)
            is_tied = (d <= smallest).astype(sums.dtype)
            values = lax.dynamic_slice_in_dim(signals, index[0], block).astype(sums.dtype)
            values = jnp.matmul(is_tied, values, precision="highest")
            return (total[0] + values, total[1] + jnp.sum(is_tied, axis=-1, keepdims=True)), None

        zeros = (jnp.zeros_like(sums), jnp.zeros_like(smallest))
        values, counts = psum(lax.scan(add, zeros, jnp.arange(0, size, block, dtype=jnp.int32))[0])
        # Distances may be rounded differently here than in the search. If ties are missing, its result is kept.
        return jnp.where(all_tied & (counts >= neighbors.columns.shape[1]), values / jnp.maximum(counts, 1), sums)

    return lax.cond(jnp.any(all_tied), mean_over_ties, lambda: sums)


def embed(features: jax.Array, mean: jax.Array, scale: jax.Array) -> jax.Array:
    """Standardizes features (B, K) with the mean and standard deviation `scale`, (K,), then scales them to unit length.

    The distance between two results is then their cosine distance minus 1.
    """
    x = (features - mean) / scale
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def make_bank(features: jax.Array, labels: jax.Array, signals: jax.Array, settings: Settings, dtype: Any) -> Bank:
    """Makes the bank of N training images.

    Args:
      features: (N, K), in the space `settings.space`. In the space `head` they are the rows of the head's decision
        layer with the biases as last column, (N, K + 1), which become keys without being standardized.
      labels: (N,), the classes.
      signals: (N, C), what each image sends to its neighbors.
      settings: how the graph is built and used.
      dtype: dtype of the keys. Half precision halves their memory.
    """
    if settings.space == "head":
        # The sign makes the distance -<query, key> the output of the head's decision layer.
        mean, scale, keys = jnp.zeros(()), jnp.ones(()), -features
    else:
        mean, scale = jnp.mean(features, axis=0), jnp.maximum(jnp.std(features, axis=0), 1e-6)
        keys = embed(features, mean, scale)
    return Bank(keys.astype(dtype), labels, signals, mean, scale, settings)


def queries(bank: Bank, features: jax.Array) -> jax.Array:
    """The queries (B, K) of images with features (B, K) in the bank's space."""
    return features if bank.settings.space == "head" else embed(features, bank.mean, bank.scale)


def predict(bank: Bank, logits: jax.Array, features: jax.Array, self_columns: jax.Array | None = None) -> Prediction:
    """Predicts with the training-set graph. The prediction for an image does not depend on the rest of the batch.

    Args:
      bank: the training images.
      logits: (B, C), the student's logits. A constant added to a row has no effect.
      features: (B, K), the features of the images in the bank's space. In the space `head` they are the head's output
        with a 1 appended, (B, K + 1), so that the distances are the outputs of the head's decision layer.
      self_columns: (B,), the position in the bank of each image itself, which is never its neighbor; -1 for images
        that are not in the bank.
    """
    settings, image_queries = bank.settings, queries(bank, features)
    neighbors = search(image_queries, bank.keys, settings.sparsity, self_columns, recall=settings.recall)
    votes = propagate(image_queries, bank.keys, bank.signals, neighbors, self_columns)
    return Prediction(combine(logits, votes, settings.weight, settings.epsilon), votes, neighbors)


def weighted_sum(signals: jax.Array, neighbors: Neighbors) -> jax.Array:
    """P Y over the columns in `neighbors` alone, (B, F). It is `propagate` unless more than s + 1 columns are tied."""
    size = signals.shape[0]
    local_columns = neighbors.columns - first_row(size)
    is_local = (local_columns >= 0) & (local_columns < size)
    rows = signals[jnp.clip(local_columns, 0, size - 1)].astype(neighbors.weights.dtype)
    return psum(jnp.einsum("bs,bsf->bf", jnp.where(is_local, neighbors.weights, 0), rows))


def combine(logits: jax.Array, votes: jax.Array, weight: jax.Array | float, epsilon: jax.Array | float) -> jax.Array:
    """Combines logits z and votes P Y, both (B, C), to logits z + weight * log(P Y + epsilon), (B, C).

    The resulting probabilities are proportional to the student's probabilities times (P Y + epsilon)^weight, as for two
    independent pieces of evidence. Epsilon keeps the logarithm finite for classes without any vote.
    """
    return logits + weight * jnp.log(votes + epsilon)


def _block_distances(
    queries: jax.Array, keys: jax.Array, self_columns: jax.Array | None, start: jax.Array, block: int
) -> tuple[jax.Array, jax.Array]:
    """The positions of a block of this device's columns, (block,), and the distances to them, (B, block).

    The last block is shifted to end at the last column. Distances to columns that it shares with the block before, and
    from an image to itself, are +inf.
    """
    first = jnp.minimum(start, keys.shape[0] - block)
    index = first + jnp.arange(block, dtype=jnp.int32)
    is_valid = index >= start
    if self_columns is not None:
        is_valid = is_valid & (index + first_row(keys.shape[0]) != self_columns[:, None])
    d = distances(queries, lax.dynamic_slice_in_dim(keys, first, block))
    return index, jnp.where(is_valid, d, jnp.inf)


def _smallest(numbers: jax.Array, count: int, recall: float = 1.0) -> tuple[jax.Array, jax.Array]:
    """The `count` smallest numbers of each row in ascending order, and their positions."""
    if recall < 1:
        return lax.approx_min_k(numbers, count, recall_target=recall)
    largest, positions = lax.top_k(-numbers, count)
    return -largest, positions


def _nearest(candidates: tuple[jax.Array, jax.Array], count: int) -> tuple[jax.Array, jax.Array]:
    """The nearest `count` of some columns. Columns are a pair of arrays: distances and indices, (B, ...) each."""
    nearest, positions = _smallest(candidates[0], count)
    return nearest, jnp.take_along_axis(candidates[1], positions, axis=-1)
