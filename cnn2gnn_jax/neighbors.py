"""The graph over a whole training set: Eq. 3 and 4 with all training images as columns.

Eq. 4 lets j run over the training indices. There may be a million of them, so a row of distances is never formed
whole: columns are taken in blocks and a running list keeps the s + 1 nearest, which are all that Eq. 3 needs. What
travels over the edges is a signal of each column: its label, its teacher's probabilities, or its features.

    queries_BxK, keys_NxK   the distance of an image to a column is -<query, key>
    weights_BxS             neighbour weights of Eq. 3, of the S = s + 1 nearest columns

Where the columns are sharded over devices, each searches its own part, and the lists of all devices are merged.
"""

from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from cnn2gnn_jax import graph
from cnn2gnn_jax.runtime.collectives import all_gather, first_row, psum

BLOCK = 8192
SPACES = ("backbone", "hidden", "logits", "head")
SIGNALS = ("labels", "teacher")


class Settings(NamedTuple):
    """What the training-set graph is made of, and how its votes are combined with the student's own answer.

    space: of SPACES, the features between which distances are measured.
    signal: of SIGNALS, what a training image sends: its label, or its teacher's probabilities.
    sparsity: s of Eq. 3.
    weight: lambda. With 0 the student answers alone.
    epsilon: is added to the votes before their logarithm.
    """

    space: str
    signal: str
    sparsity: int
    weight: float
    epsilon: float


class Bank(flax.struct.PyTreeNode):
    """The training images as columns of the graph.

    keys: (N, K), of float32 or half precision, see `embed`.
    labels: (N,), their classes.
    signals: (N, C), what each sends to its neighbours.
    mean, scale: (K,), of the training images' features; see `embed`.
    settings: how the bank is used.
    """

    keys: Any
    labels: Any
    signals: Any
    mean: Any
    scale: Any
    settings: Settings = flax.struct.field(pytree_node=False)


class Answer(NamedTuple):
    """What a student answers with the training-set graph for B images.

    logits: (B, C), of the student and the neighbours together.
    votes: (B, C), P Y: of the neighbours alone; a row sums to 1.
    neighbors: who they are.
    """

    logits: jax.Array
    votes: jax.Array
    neighbors: "Neighbors"


class Neighbors(NamedTuple):
    """The nearest columns of B images, nearest first.

    weights: (B, s + 1), Eq. 3. A row sums to 1. The last weight is 0 unless all of the row's distances are equal.
    columns: (B, s + 1), which columns they are.
    distances: (B, s + 1), ascending; +inf where fewer columns take part.
    """

    weights: jax.Array
    columns: jax.Array
    distances: jax.Array


def distances(queries: jax.Array, keys: jax.Array) -> jax.Array:
    """-<query, key>, (B, N), of queries (B, K) and keys (N, K) of any floating type, float32 or wider.

    Of unit vectors this is the cosine distance less 1, and half the squared Euclidean distance less 1. Eq. 3 sees
    neither a shift nor a positive scale of a row, so all three give the same weights.
    """
    kind = jnp.promote_types(queries.dtype, jnp.float32)
    # Full float32: GPUs would otherwise round to TF32, too coarse to tell near neighbours apart.
    return -jnp.matmul(queries.astype(kind), keys.astype(kind).T, precision="highest")


def search(
    queries: jax.Array,
    keys: jax.Array,
    sparsity: int,
    own: jax.Array | None = None,
    block: int = BLOCK,
    recall: float = 1.0,
) -> Neighbors:
    """The s + 1 nearest columns of each image and their weights (Eq. 3).

    The result does not depend on `block`, nor on how the columns are sharded.

    Args:
      queries: (B, K).
      keys: (N, K), or this device's part of them; s + 1 <= N.
      sparsity: s of Eq. 3.
      own: (B,), the column that is the image itself and takes no part; -1 for none.
      block: how many columns' distances are held at a time.
      recall: 1 for the exact search. Less allows accelerators the approximate `lax.approx_min_k`.

    Raises:
      ValueError: s < 1, or a device has fewer than s + 1 columns.

    >>> keys = jnp.array([[0.2], [0.9], [0.4]])
    >>> found = search(jnp.array([[1.0]]), keys, 2)
    >>> found.columns.tolist(), found.weights.round(3).tolist()
    ([[1, 2, 0]], [[0.778, 0.222, 0.0]])
    """
    graph.check_sparsity(sparsity, keys.shape[0])
    size, count = keys.shape[0], sparsity + 1
    offset = first_row(size)
    block = min(block, size)
    own = jnp.full(queries.shape[:1], -1) if own is None else own

    def merge(kept: tuple[jax.Array, jax.Array], start: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
        index, columns = _block(keys, start, block)
        d = distances(queries, columns)
        d = jnp.where((index >= start) & (index + offset != own[:, None]), d, jnp.inf)
        nearest, place = _smallest(d, min(count, block), recall)
        candidates = jnp.append(kept[0], nearest, -1), jnp.append(kept[1], index[place] + offset, -1)
        return _nearest(candidates, count), None

    kind = jnp.promote_types(queries.dtype, jnp.float32)
    shape = (queries.shape[0], count)  # not by len(): the number of images may be symbolic, as in an exported module
    none = (jnp.full(shape, jnp.inf, kind), jnp.zeros(shape, jnp.int32))
    nearest = lax.scan(merge, none, jnp.arange(0, size, block, dtype=jnp.int32))[0]
    d, index = _nearest((all_gather(nearest[0], axis=1), all_gather(nearest[1], axis=1)), count)
    return Neighbors(graph.sparse_neighbors(d, sparsity), index, d)


def narrowed(neighbors: Neighbors, sparsity: int) -> Neighbors:
    """What `search` returns with a smaller sparsity."""
    d = neighbors.distances[:, : sparsity + 1]
    return Neighbors(graph.sparse_neighbors(d, sparsity), neighbors.columns[:, : sparsity + 1], d)


def propagate(
    queries: jax.Array,
    keys: jax.Array,
    signals: jax.Array,
    neighbors: Neighbors,
    own: jax.Array | None = None,
    block: int = BLOCK,
) -> jax.Array:
    """P Y: what the neighbours of each image send it, (B, F).

    Where all s + 1 nearest distances of an image are equal, all columns at that distance share its row, however many
    they are, see `graph.sparse_neighbors`. Only then are the columns looked at again.

    Args:
      queries, keys, own, block: as `search` was given them.
      signals: (N, F), or this device's part of them.
      neighbors: what `search` returned.
    """
    size = keys.shape[0]
    offset = first_row(size)
    mixed = weighted_sum(signals, neighbors)
    least = neighbors.distances[:, :1]
    tied = neighbors.distances[:, -1:] == least

    def share_equally() -> jax.Array:
        nobody = jnp.full(queries.shape[:1], -1) if own is None else own

        def add(total: tuple[jax.Array, jax.Array], start: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
            index, columns = _block(keys, start, min(block, size))
            at_least = distances(queries, columns) <= least
            equal = (at_least & (index >= start) & (index + offset != nobody[:, None])).astype(mixed.dtype)
            values = lax.dynamic_slice_in_dim(signals, index[0], len(index)).astype(mixed.dtype)
            values = jnp.matmul(equal, values, precision="highest")
            return (total[0] + values, total[1] + jnp.sum(equal, axis=-1, keepdims=True)), None

        none = (jnp.zeros_like(mixed), jnp.zeros_like(least))
        values, counts = psum(lax.scan(add, none, jnp.arange(0, size, min(block, size), dtype=jnp.int32))[0])
        # A column's distance may be rounded otherwise here; the list that the search kept then stands.
        return jnp.where(tied & (counts >= neighbors.columns.shape[1]), values / jnp.maximum(counts, 1), mixed)

    return lax.cond(jnp.any(tied), share_equally, lambda: mixed)


def embed(features: jax.Array, mean: jax.Array, scale: jax.Array) -> jax.Array:
    """Unit vectors of standardized features, (B, K), as queries or keys: their distance is that of the cosine."""
    x = (features - mean) / scale
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def make_bank(features: jax.Array, labels: jax.Array, signals: jax.Array, settings: Settings, dtype: Any) -> Bank:
    """The bank of N training images.

    Args:
      features: (N, K), in the space that `settings` names. In the space `head` they are the rows of the head's decision
        layer with their biases, (N, K + 1), and are used as they are.
      labels: (N,).
      signals: (N, C).
      settings: how the bank is used.
      dtype: of the keys; half precision halves the bank.
    """
    if settings.space == "head":
        mean, scale, keys = jnp.zeros(()), jnp.ones(()), -features
    else:
        mean, scale = jnp.mean(features, axis=0), jnp.maximum(jnp.std(features, axis=0), 1e-6)
        keys = embed(features, mean, scale)
    return Bank(keys.astype(dtype), labels, signals, mean, scale, settings)


def queries(bank: Bank, features: jax.Array) -> jax.Array:
    """What `search` takes of images with these features in the bank's space, (B, K)."""
    return features if bank.settings.space == "head" else embed(features, bank.mean, bank.scale)


def answer(bank: Bank, logits: jax.Array, features: jax.Array, own: jax.Array | None = None) -> Answer:
    """The answer of a student with the training-set graph. It depends on no other image of the batch.

    Args:
      bank: the training images.
      logits: (B, C), the student's own, up to a constant for each image.
      features: (B, K), of the images in the bank's space. In the space `head` they are the head's output with a 1
        appended, (B, K + 1), so that the distance is the output of the image's decision layer.
      own: (B,), where an image is itself in the bank, its place there, which takes no part; -1 for none.
    """
    settings, unit = bank.settings, queries(bank, features)
    found = search(unit, bank.keys, settings.sparsity, own)
    votes = propagate(unit, bank.keys, bank.signals, found, own)
    return Answer(combine(logits, votes, settings.weight, settings.epsilon), votes, found)


def weighted_sum(signals: jax.Array, neighbors: Neighbors) -> jax.Array:
    """P Y of the columns that `search` lists, (B, F): what `propagate` gives where no more than these are tied."""
    size = signals.shape[0]
    local = neighbors.columns - first_row(size)
    here = (local >= 0) & (local < size)
    rows = signals[jnp.clip(local, 0, size - 1)].astype(neighbors.weights.dtype)
    return psum(jnp.einsum("bs,bsf->bf", jnp.where(here, neighbors.weights, 0), rows))


def combine(logits: jax.Array, votes: jax.Array, weight: jax.Array | float, epsilon: jax.Array | float) -> jax.Array:
    """z + lambda log(P Y + epsilon): logits (B, C) and the neighbours' votes P Y (B, C), of labels or probabilities.

    The two are combined as independent evidence: a product of the student's probabilities and the votes to the power
    of lambda. Epsilon bounds what no vote at all can say.
    """
    return logits + weight * jnp.log(votes + epsilon)


def _block(keys: jax.Array, start: jax.Array, block: int) -> tuple[jax.Array, jax.Array]:
    """The indices and keys of a block of columns. The last block is moved back to end with the last column."""
    first = jnp.minimum(start, keys.shape[0] - block)
    return first + jnp.arange(block, dtype=jnp.int32), lax.dynamic_slice_in_dim(keys, first, block)


def _smallest(numbers: jax.Array, count: int, recall: float = 1.0) -> tuple[jax.Array, jax.Array]:
    """The `count` smallest numbers of each row, smallest first, and their places."""
    if recall < 1:
        return lax.approx_min_k(numbers, count, recall_target=recall)
    largest, place = lax.top_k(-numbers, count)
    return -largest, place


def _nearest(candidates: tuple[jax.Array, jax.Array], count: int) -> tuple[jax.Array, jax.Array]:
    """The nearest of candidates, given by distance and index."""
    nearest, place = _smallest(candidates[0], count)
    return nearest, jnp.take_along_axis(candidates[1], place, axis=-1)
