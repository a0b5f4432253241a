"""The training-set graph: Eq. 3 and 4 with all training images as columns.

In Eq. 4, j runs over all training images. There may be a million of them, so a whole row of distances is never in
memory. Instead, the columns are processed in blocks while a running list keeps the s + 1 nearest, which are all that
Eq. 3 needs. Each image then receives the weighted sum of its neighbors' signals. The signal of a training image is its
label, or the probabilities that the teacher gives it.

    queries_BxK, keys_NxK   the distance from an image to a column is -<query, key>
    weights_BxS             neighbor weights of Eq. 3 for the S = s + 1 nearest columns

If the columns are sharded over devices, each device searches its own part, and the lists of all devices are merged.
"""

from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from cnn2gnn_jax import graph
from cnn2gnn_jax.runtime.collectives import all_gather, first_row, psum

BLOCK = 8192  # columns whose distances are in memory at a time
SPACES = ("backbone", "hidden", "logits", "head")
SIGNALS = ("labels", "teacher")


class Settings(NamedTuple):
    """How the training-set graph is built, and how its votes are combined with the student's logits.

    space: one of SPACES, the features between which distances are measured; see `inference.features`.
    signal: one of SIGNALS, what the neighbors vote with: their labels, or the teacher's probabilities for them.
    sparsity: s of Eq. 3.
    weight: lambda, the weight of the votes. If it is 0, the votes have no effect.
    epsilon: added to the votes before their logarithm is taken.
    """

    space: str
    signal: str
    sparsity: int
    weight: float
    epsilon: float


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


class Answer(NamedTuple):
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

    For unit vectors this is the cosine distance minus 1, and also half of the squared Euclidean distance minus 1. Eq. 3
    does not depend on a shift or a positive scale of a row, so all three distances give the same weights.
    """
    dtype = jnp.promote_types(queries.dtype, jnp.float32)
    # In full float32: by default GPUs round to TF32, which cannot distinguish near neighbors.
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

    The result depends neither on `block` nor on how the columns are sharded.

    Args:
      queries: (B, K).
      keys: (N, K), or this device's part of them; s + 1 <= N.
      sparsity: s of Eq. 3.
      self_columns: (B,), the column of each image itself, which is never its neighbor; -1 for images that are not
        among the columns.
      block: how many columns' distances are in memory at a time.
      recall: 1 for exact search. With a smaller value, accelerators use the approximate `lax.approx_min_k`.

    Raises:
      ValueError: s < 1, or a device has fewer than s + 1 columns.

    >>> keys = jnp.array([[0.2], [0.9], [0.4]])
    >>> nearest = search(jnp.array([[1.0]]), keys, 2)
    >>> nearest.columns.tolist(), nearest.weights.round(3).tolist()
    ([[1, 2, 0]], [[0.778, 0.222, 0.0]])
    """
    graph.check_sparsity(sparsity, keys.shape[0])
    size, count = keys.shape[0], sparsity + 1
    offset = first_row(size)
    block = min(block, size)
    self_columns = jnp.full(queries.shape[:1], -1) if self_columns is None else self_columns

    def merge(nearest: tuple[jax.Array, jax.Array], start: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
        index, block_keys = _block(keys, start, block)
        d = distances(queries, block_keys)
        d = jnp.where((index >= start) & (index + offset != self_columns[:, None]), d, jnp.inf)
        block_distances, position = _smallest(d, min(count, block), recall)
        candidates = jnp.append(nearest[0], block_distances, -1), jnp.append(nearest[1], index[position] + offset, -1)
        return _nearest(candidates, count), None

    dtype = jnp.promote_types(queries.dtype, jnp.float32)
    shape = queries.shape[0], count  # In an export the number of images is symbolic, and len() refuses it.
    empty = (jnp.full(shape, jnp.inf, dtype), jnp.zeros(shape, jnp.int32))
    nearest = lax.scan(merge, empty, jnp.arange(0, size, block, dtype=jnp.int32))[0]
    d, index = _nearest((all_gather(nearest[0], axis=1), all_gather(nearest[1], axis=1)), count)
    return Neighbors(graph.sparse_neighbors(d, sparsity), index, d)


def reduce_sparsity(neighbors: Neighbors, sparsity: int) -> Neighbors:
    """The neighbors that `search` returns for a smaller sparsity, without another search."""
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
    `graph.sparse_neighbors`. There may be more than s + 1 of them, so that the columns are searched a second time. In
    all other cases this function equals `weighted_sum`.

    Args:
      queries, keys, self_columns, block: the arguments of `search`.
      signals: (N, F), or this device's part of them.
      neighbors: the result of `search`.
    """
    size = keys.shape[0]
    offset = first_row(size)
    sums = weighted_sum(signals, neighbors)
    smallest = neighbors.distances[:, :1]
    all_tied = neighbors.distances[:, -1:] == smallest

    def mean_over_ties() -> jax.Array:
        excluded = jnp.full(queries.shape[:1], -1) if self_columns is None else self_columns

        def add(total: tuple[jax.Array, jax.Array], start: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
            index, block_keys = _block(keys, start, min(block, size))
            is_nearest = distances(queries, block_keys) <= smallest
            is_tied = (is_nearest & (index >= start) & (index + offset != excluded[:, None])).astype(sums.dtype)
            values = lax.dynamic_slice_in_dim(signals, index[0], len(index)).astype(sums.dtype)
            values = jnp.matmul(is_tied, values, precision="highest")
            return (total[0] + values, total[1] + jnp.sum(is_tied, axis=-1, keepdims=True)), None

        zeros = (jnp.zeros_like(sums), jnp.zeros_like(smallest))
        values, counts = psum(lax.scan(add, zeros, jnp.arange(0, size, min(block, size), dtype=jnp.int32))[0])
        # A distance may be rounded differently here than in the search. If ties are missing, keep the search's result.
        return jnp.where(all_tied & (counts >= neighbors.columns.shape[1]), values / jnp.maximum(counts, 1), sums)

    return lax.cond(jnp.any(all_tied), mean_over_ties, lambda: sums)


def embed(features: jax.Array, mean: jax.Array, scale: jax.Array) -> jax.Array:
    """Standardizes features (B, K) and scales them to unit length, so that `distances` are cosine distances.

    Args:
      features: (B, K).
      mean, scale: (K,), the mean and standard deviation to standardize with.
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
      dtype: dtype of the keys. Half precision halves the memory of the bank.
    """
    if settings.space == "head":
        mean, scale, keys = jnp.zeros(()), jnp.ones(()), -features
    else:
        mean, scale = jnp.mean(features, axis=0), jnp.maximum(jnp.std(features, axis=0), 1e-6)
        keys = embed(features, mean, scale)
    return Bank(keys.astype(dtype), labels, signals, mean, scale, settings)


def queries(bank: Bank, features: jax.Array) -> jax.Array:
    """The queries (B, K) of images with features (B, K) in the bank's space."""
    return features if bank.settings.space == "head" else embed(features, bank.mean, bank.scale)


def answer(bank: Bank, logits: jax.Array, features: jax.Array, self_columns: jax.Array | None = None) -> Answer:
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
    neighbors = search(image_queries, bank.keys, settings.sparsity, self_columns)
    votes = propagate(image_queries, bank.keys, bank.signals, neighbors, self_columns)
    return Answer(combine(logits, votes, settings.weight, settings.epsilon), votes, neighbors)


def weighted_sum(signals: jax.Array, neighbors: Neighbors) -> jax.Array:
    """P Y over the columns in `neighbors` alone, (B, F). It equals `propagate` unless more than s + 1 columns are tied.

    Args:
      signals: (N, F), or this device's part of them.
      neighbors: the result of `search`.
    """
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


def _block(keys: jax.Array, start: jax.Array, block: int) -> tuple[jax.Array, jax.Array]:
    """The indices and keys of a block of columns. The last block is shifted so that it ends at the last column."""
    first = jnp.minimum(start, keys.shape[0] - block)
    return first + jnp.arange(block, dtype=jnp.int32), lax.dynamic_slice_in_dim(keys, first, block)


def _smallest(numbers: jax.Array, count: int, recall: float = 1.0) -> tuple[jax.Array, jax.Array]:
    """The `count` smallest numbers of each row in ascending order, and their positions."""
    if recall < 1:
        return lax.approx_min_k(numbers, count, recall_target=recall)
    largest, positions = lax.top_k(-numbers, count)
    return -largest, positions


def _nearest(candidates: tuple[jax.Array, jax.Array], count: int) -> tuple[jax.Array, jax.Array]:
    """The distances and indices of the `count` nearest candidates, which are given by distances and indices."""
    nearest, positions = _smallest(candidates[0], count)
    return nearest, jnp.take_along_axis(candidates[1], positions, axis=-1)
