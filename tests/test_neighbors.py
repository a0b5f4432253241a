"""Tests of the training-set graph against NumPy, for any block size and for columns that are sharded over devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from cnn2gnn_jax import graph, neighbors
from cnn2gnn_jax.runtime.collectives import AXIS
from tests.oracles import eq3

COLUMNS, IMAGES, WIDTH, CLASSES, SPARSITY = 48, 7, 5, 4, 3
close = functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-9)


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64():
        yield


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    keys, queries = unit(rng.normal(size=(COLUMNS, WIDTH))), unit(rng.normal(size=(IMAGES, WIDTH)))
    return queries, keys, np.eye(CLASSES)[rng.integers(CLASSES, size=COLUMNS)]


def numpy_votes(queries, keys, signals, self_columns=None, sparsity=SPARSITY):
    """Returns P Y. Distances are rounded, so that equal distances stay equal in spite of rounding errors."""
    d = np.sum((queries[:, None] - keys) ** 2, -1).round(12)
    if self_columns is not None:
        d = np.where(np.arange(len(keys)) == self_columns[:, None], np.inf, d)
    return eq3(d, sparsity) @ signals


@functools.partial(jax.jit, static_argnames=("sparsity", "block"))
def votes(queries, keys, signals, self_columns=None, sparsity=SPARSITY, block=neighbors.BLOCK):
    nearest = neighbors.search(queries, keys, sparsity, self_columns, block)
    return neighbors.propagate(queries, keys, signals, nearest, self_columns, block)


def with_ties(queries, keys, signals):
    """Moves columns to distance 0: 9 for the first image, SPARSITY for the second, SPARSITY + 1 for the third."""
    keys = keys.copy()
    keys[[0, 5, 6, 13, 20, 29, 30, 41, 47]] = queries[0]
    keys[[1, 2, 40]] = queries[1]
    keys[[3, 9, 28, 46]] = queries[2]
    return queries, keys, signals


@pytest.mark.parametrize("block", [1, 5, 16, COLUMNS, 1000])
@pytest.mark.parametrize("ties", [False, True])
def test_the_result_equals_numpy_for_any_block_size(data, block, ties):
    queries, keys, signals = with_ties(*data) if ties else data
    close(votes(queries, keys, signals, block=block), numpy_votes(queries, keys, signals))


@pytest.mark.parametrize("devices", [1, 2, 8])
@pytest.mark.parametrize("ties", [False, True])
def test_the_result_equals_numpy_for_columns_sharded_over_devices(data, devices, ties):
    queries, keys, signals = with_ties(*data) if ties else data
    self_columns = np.array([4, -1, 46, 47, 0, 13, -1])
    mesh = Mesh(np.array(jax.devices()[:devices]), (AXIS,))
    spread = jax.shard_map(
        functools.partial(votes, block=4, sparsity=SPARSITY),
        mesh=mesh,
        in_specs=(P(), P(AXIS), P(AXIS), P()),
        out_specs=P(),
        check_vma=False,
    )
    close(jax.jit(spread)(queries, keys, signals, self_columns), numpy_votes(queries, keys, signals, self_columns))


def test_weights_equal_eq_3_over_all_columns(data):
    queries, keys, _ = data
    nearest = neighbors.search(queries, keys, SPARSITY)
    dense = np.asarray(graph.sparse_neighbors(graph.squared_distances(queries, keys), SPARSITY))
    close(np.take_along_axis(dense, np.asarray(nearest.columns), -1), nearest.weights)
    close(nearest.weights.sum(-1), 1)
    assert np.all(np.diff(nearest.distances, axis=-1) >= 0)


def test_no_image_is_its_own_neighbor(data):
    _, keys, signals = data
    self_columns = np.arange(COLUMNS)
    nearest = neighbors.search(keys, keys, SPARSITY, self_columns)
    assert not np.any(np.asarray(nearest.columns) == self_columns[:, None])
    close(votes(keys, keys, signals, self_columns), numpy_votes(keys, keys, signals, self_columns))


@pytest.mark.parametrize("ties", [False, True])
def test_the_label_of_a_training_image_does_not_affect_its_own_votes(data, ties):
    _, keys, signals = with_ties(*data) if ties else data
    self_columns = np.arange(COLUMNS)
    answers = votes(keys, keys, signals, self_columns)
    for i in (0, 1, 3, 17):
        other = signals.copy()
        other[i] = np.roll(other[i], 1)
        close(votes(keys, keys, other, self_columns)[i], answers[i])
        # Without the exclusion, the image's own label affects its votes. So this test would find a leak.
        assert np.abs(votes(keys, keys, other)[i] - votes(keys, keys, signals)[i]).max() > 1e-3


def test_votes_do_not_depend_on_the_other_images(data):
    queries, keys, signals = with_ties(*data)
    together = votes(queries, keys, signals)
    for i in range(IMAGES):
        close(votes(queries[i : i + 1], keys, signals)[0], together[i])


def test_an_approximate_search_finds_at_least_its_recall(data):
    queries, keys, *_ = data
    exact, approximate = neighbors.search(queries, keys, 5), neighbors.search(queries, keys, 5, recall=0.9)
    is_found = [
        len(set(a[:5]) & set(b[:5])) / 5
        for a, b in zip(np.asarray(exact.columns), np.asarray(approximate.columns), strict=True)
    ]
    assert np.mean(is_found) >= 0.9
    close(approximate.weights.sum(-1), 1)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_keys_give_the_same_votes_as_their_float64_values(data, dtype):
    queries, keys, signals = data
    halved = jnp.asarray(keys, dtype)
    close(votes(queries, halved, signals), votes(queries, np.asarray(halved, np.float64), signals))


@pytest.mark.parametrize("sparsity", [0, COLUMNS])
def test_an_impossible_sparsity_is_refused(data, sparsity):
    queries, keys, _ = data
    with pytest.raises(ValueError, match=f"sparsity {sparsity} does not fit a graph over {COLUMNS} columns"):
        neighbors.search(queries, keys, sparsity)


def test_combining_is_a_product_of_probabilities(data):
    rng = np.random.default_rng(1)
    logits, p_y = rng.normal(size=(IMAGES, CLASSES)), rng.dirichlet(np.ones(CLASSES), IMAGES)
    product = np.exp(logits) * (p_y + 0.1) ** 0.7
    combined = jax.nn.softmax(neighbors.combine(logits, p_y, 0.7, 0.1))
    close(combined, product / product.sum(-1, keepdims=True))
