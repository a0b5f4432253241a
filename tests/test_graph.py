"""Tests of Eq. 3: against the quadratic program of Theorem 1, invariances, ties, masks. Tests of the other graphs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize

from cnn2gnn_jax import graph
from tests.oracles import eq3


@pytest.fixture
def x64():
    with jax.enable_x64():
        yield


# The functions are compiled as in training. This is also faster.
sparse_neighbors = jax.jit(graph.sparse_neighbors, static_argnums=1)
normalize = jax.jit(graph.normalize, static_argnums=1)
squared_distances = jax.jit(graph.squared_distances)
inner_product_adjacency = jax.jit(graph.inner_product_adjacency, static_argnums=1)
euclidean_adjacency = jax.jit(graph.euclidean_adjacency, static_argnums=1)
diagnostics = jax.jit(graph.diagnostics)
projection_simplex = jax.jit(optax.projections.projection_simplex)


@functools.partial(jax.jit, static_argnums=1)
def with_gradient(distances, sparsity, cotangent, mask=None):
    """Returns the result of `sparse_neighbors`, and the gradient of its inner product with `cotangent`."""
    weights, pull = jax.vjp(lambda d: graph.sparse_neighbors(d, sparsity, mask), distances)
    return weights, pull(cotangent)[0]


def gradient_of_sum(function, x):
    return jax.jit(jax.grad(lambda x: jnp.sum(function(x))))(x)


def gamma(distances, sparsity):
    """Returns the trade-off parameter for which Eq. 3 is the solution of Eq. 5."""
    ordered = np.sort(distances)
    return (sparsity * ordered[sparsity] - ordered[:sparsity].sum()) / 2


def quadratic_program(distances, gamma):
    """Solves Eq. 5, with the squared l2 distance to the uniform distribution, by sequential quadratic programming."""
    n = len(distances)
    # The success flag is ignored: SLSQP reports failure when rounding allows no further step, as at the optimum.
    return scipy.optimize.minimize(
        lambda p: distances @ p + gamma * np.sum((p - 1 / n) ** 2),
        np.full(n, 1 / n),
        jac=lambda p: distances + 2 * gamma * (p - 1 / n),
        bounds=[(0, 1)] * n,
        constraints={"type": "eq", "fun": lambda p: p.sum() - 1, "jac": np.ones_like},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 1000},
    ).x


def distinct_integers(seed, rows, columns):
    """Returns rows of distinct small integers, which float32 can shift and scale without rounding."""
    rng = np.random.default_rng(seed)
    return np.stack([rng.choice(np.arange(-500, 500), columns, replace=False) for _ in range(rows)]).astype(np.float32)


SIZES = [(2, 1), (7, 1), (7, 3), (7, 6), (101, 50), (101, 100)]  # columns, sparsity


@pytest.mark.parametrize(("columns", "sparsity"), SIZES)
def test_rows_are_sparse_distributions_over_the_nearest(columns, sparsity):
    d = distinct_integers(0, 20, columns)
    p = np.asarray(sparse_neighbors(d, sparsity))
    assert p.dtype == np.float32
    np.testing.assert_allclose(p.sum(-1), 1, atol=1e-6)
    np.testing.assert_array_equal(p > 0, d < np.sort(d)[:, [sparsity]])
    np.testing.assert_array_equal((p > 0).sum(-1), sparsity)
    assert (p >= 0).all()
    nearer = d[:, :, None] < d[:, None, :]
    assert (p[:, :, None] >= p[:, None, :])[nearer].all()


@pytest.mark.parametrize(("columns", "sparsity"), [(2, 1), (9, 1), (9, 4), (9, 8), (16, 5)])
@pytest.mark.parametrize("seed", [0, 1])
def test_solves_the_quadratic_program_of_theorem_1(x64, columns, sparsity, seed):
    for d in np.random.default_rng(seed).normal(size=(3, columns)) * 10.0**seed:
        p = sparse_neighbors(d[None], sparsity)[0]
        trade_off = gamma(d, sparsity)
        np.testing.assert_allclose(p, projection_simplex(-d / (2 * trade_off)), atol=1e-12)
        np.testing.assert_allclose(p, quadratic_program(d, trade_off), atol=1e-6)


def test_ties_are_the_limit_of_the_quadratic_program(x64):
    d = np.array([3.0, 1.0, 1.0, 7.0, 1.0, 1.0, 2.0])
    tied = sparse_neighbors(d[None], 3)[0]
    np.testing.assert_allclose(tied, quadratic_program(d, 1e-2), atol=1e-6)
    np.testing.assert_allclose(tied, (d == 1) / 4, atol=1e-12)


@pytest.mark.parametrize("sparsity", [1, 4, 11])
def test_weights_are_invariant_to_shift_and_positive_scale_of_a_row(sparsity):
    d = distinct_integers(1, 8, 12)
    expected = sparse_neighbors(d, sparsity)
    np.testing.assert_array_equal(sparse_neighbors(d + 1024, sparsity), expected)
    np.testing.assert_array_equal(sparse_neighbors(d * 2.0**-20, sparsity), expected)
    np.testing.assert_allclose(sparse_neighbors(d * 3.7 - 11, sparsity), expected, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-37, 1e-30, 1e-20, 1e20, 1e30, 1e36])
def test_extreme_magnitudes_keep_weights_and_finite_gradients(scale):
    d, cotangent = np.array([[0, 3, 1, 5, -2], [1, 2, 3, 4, 5]], np.float32)[:, None]
    weights, gradient = with_gradient(d * np.float32(scale), 3, cotangent)
    np.testing.assert_allclose(weights, [[3 / 10, 0, 2 / 10, 0, 5 / 10]], atol=1e-6)
    # Computed by hand: the slacks (3, 0, 2, 0, 5) have the sum 10, and the weighted mean of the cotangent is 3.4. The
    # gradient has the sum 0, because a shift of the row does not change the weights.
    np.testing.assert_allclose(gradient * np.float32(scale), [[0.24, -0.12, 0.04, 0, -0.16]], atol=1e-5)


def test_positive_and_negative_zero_are_equal_distances():
    np.testing.assert_array_equal(sparse_neighbors(jnp.array([[0.0, -0.0, 1.0]]), 1), [[0.5, 0.5, 0]])
    np.testing.assert_array_equal(sparse_neighbors(jnp.array([[1.0, -0.0, 0.0]]), 2), [[0, 0.5, 0.5]])


@pytest.mark.parametrize(
    ("row", "sparsity", "expected"),
    [
        pytest.param([4, 4, 4, 4], 1, [1 / 4] * 4, id="all equal"),
        pytest.param([4, 4, 4, 4], 3, [1 / 4] * 4, id="all equal, dense"),
        pytest.param([1, 5, 1, 1, 9], 2, [1 / 3, 0, 1 / 3, 1 / 3, 0], id="s + 1 smallest equal"),
        pytest.param([1, 1, 1, 1, 9], 2, [1 / 4] * 4 + [0], id="more than s + 1 smallest equal"),
        pytest.param([1, 1, 4, 9], 2, [1 / 2, 1 / 2, 0, 0], id="s smallest equal"),
        pytest.param([1, 3, 3, 3], 2, [1, 0, 0, 0], id="tied with the threshold"),
        pytest.param([1, 3, 3, 4], 3, [3 / 5, 1 / 5, 1 / 5, 0], id="tied within"),
    ],
)
@pytest.mark.parametrize("masked", [False, True])
def test_ties(row, sparsity, expected, masked):
    d, cotangent = np.array([row, np.arange(len(row))], np.float32)[:, None]
    p, gradient = with_gradient(d, sparsity, cotangent, np.ones(len(row), bool) if masked else None)
    np.testing.assert_allclose(p, [expected], atol=1e-7)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("sparsity", [1, 4, 8])
def test_the_order_of_columns_does_not_matter(sparsity):
    rng = np.random.default_rng(0)
    d = np.concatenate([rng.integers(0, k, (40, 9)) for k in (1, 2, 3, 100)]).astype(np.float32)
    order = rng.permutation(9)
    p = np.asarray(sparse_neighbors(d, sparsity))
    np.testing.assert_allclose(sparse_neighbors(d[:, order], sparsity), p[:, order], atol=1e-6)
    # Columns at the same distance have the same weight.
    same = d[:, :, None] == d[:, None, :]
    np.testing.assert_array_equal(np.where(same, p[:, :, None], 0), np.where(same, p[:, None, :], 0))


@pytest.mark.parametrize(("columns", "sparsity"), [(2, 1), (8, 3), (8, 7)])
def test_gradients_equal_finite_differences(x64, columns, sparsity):
    rng = np.random.default_rng(0)
    d, cotangent = rng.normal(size=(2, columns))
    step = 1e-6 * np.eye(columns)
    expected = [(eq3(d + e, sparsity) - eq3(d - e, sparsity)) @ cotangent / 2e-6 for e in step]
    _, gradient = with_gradient(d[None], sparsity, cotangent[None])
    np.testing.assert_allclose(gradient[0], expected, atol=1e-6)
    assert np.abs(expected).max() > 0.1 or columns == 2  # one neighbor of two columns always has the weight 1


@pytest.mark.parametrize("padding", [0.0, -1e30, np.inf, -np.inf, np.nan])
def test_masked_columns_have_no_effect(padding):
    rng = np.random.default_rng(0)
    keep, sparsity = np.array([0, 2, 3, 5, 6, 8]), 4
    d = np.full((5, 9), padding, np.float32)
    d[:, keep] = rng.normal(size=(5, 6))
    cotangent = rng.normal(size=(5, 9)).astype(np.float32)
    mask = np.zeros(9, bool)
    mask[keep] = True
    p, gradient = with_gradient(d, sparsity, cotangent, mask)
    plain, plain_gradient = with_gradient(d[:, keep], sparsity, cotangent[:, keep])
    np.testing.assert_allclose(p[:, keep], plain, atol=1e-6)
    np.testing.assert_array_equal(p[:, ~mask], 0)
    np.testing.assert_allclose(gradient[:, keep], plain_gradient, atol=1e-5)
    np.testing.assert_array_equal(gradient[:, ~mask], 0)


@pytest.mark.parametrize("masked", [False, True])
def test_nan_distances_give_nan_weights_and_nan_normalized_adjacency(masked):
    d = distinct_integers(0, 6, 6)
    d[1, 4] = np.nan
    mask = np.arange(6) != 2 if masked else np.ones(6, bool)
    p, _ = with_gradient(d, 3, np.ones_like(d), mask if masked else None)
    np.testing.assert_array_equal(np.isnan(p), (np.arange(6) == 1)[:, None] & mask)
    normalized = normalize(graph.symmetrize(p), True, mask if masked else None)
    assert np.isnan(np.sum(normalized, -1))[mask].all()


@pytest.mark.parametrize(
    ("row", "sparsity", "expected"),
    [
        pytest.param([3, -np.inf, 1, 2], 2, [0, 1, 0, 0], id="one infinitely near"),
        pytest.param([-np.inf, 3, 1, -np.inf], 2, [1 / 2, 0, 0, 1 / 2], id="two infinitely near"),
        pytest.param([-np.inf, -np.inf, -np.inf, 1], 1, [1 / 3] * 3 + [0], id="more than s + 1 infinitely near"),
        pytest.param([-np.inf, 1, np.inf, np.inf], 2, [1, 0, 0, 0], id="near and far"),
        pytest.param([1, 2, 4, np.inf], 2, [3 / 5, 2 / 5, 0, 0], id="one infinitely far"),
        pytest.param([1, 2, np.inf, np.inf], 2, [1 / 2, 1 / 2, 0, 0], id="the threshold infinitely far"),
        pytest.param([1, np.inf, np.inf, np.inf], 2, [1, 0, 0, 0], id="all but one infinitely far"),
        pytest.param([np.inf] * 4, 2, [1 / 4] * 4, id="all infinitely far"),
    ],
)
@pytest.mark.parametrize("masked", [False, True])
def test_infinite_distances_are_the_limit_of_large_ones(row, sparsity, expected, masked):
    d = np.array([row], np.float32)
    mask = None
    if masked:  # adds columns, which the mask excludes
        d, expected = np.concatenate([d, [[-np.inf, np.nan, 0]]], axis=1), expected + [0] * 3
        mask = np.arange(7) < 4
    p, gradient = with_gradient(d, sparsity, np.arange(d.size, dtype=np.float32)[None], mask)
    np.testing.assert_allclose(p, [expected], atol=1e-7)
    assert np.isfinite(gradient).all()
    d = np.clip(d, -1e6, 1e6)
    if mask is None and sum(np.isneginf(row)) * sum(np.isposinf(row)) == 0:  # with both signs, the limit is another
        np.testing.assert_allclose(sparse_neighbors(d, sparsity, mask), [expected], atol=1e-5)


@pytest.mark.parametrize("valid", [0, 1, 2, 4, 5])
def test_fewer_valid_columns_than_the_sparsity_needs(valid):
    d = distinct_integers(0, 3, 8)
    p, gradient = with_gradient(d, 6, distinct_integers(1, 3, 8), np.arange(8) < valid)
    expected = np.zeros((3, 8), np.float32)
    if valid == 1:
        expected[:, 0] = 1
    elif valid > 1:
        expected[:, :valid] = [eq3(row, valid - 1) for row in d[:, :valid]]
    np.testing.assert_allclose(p, expected, atol=1e-6)
    assert np.isfinite(gradient).all()


def test_leading_dimensions_vmap_and_jit_give_the_same_weights():
    d = np.random.default_rng(0).normal(size=(2, 3, 4, 9)).astype(np.float32)
    mask = np.random.default_rng(1).random((2, 3, 9)) < 0.8
    one_by_one = [[sparse_neighbors(d[i, j], 3, mask[i, j]) for j in range(3)] for i in range(2)]
    for actual in (
        sparse_neighbors(d, 3, mask),
        graph.sparse_neighbors(d, 3, mask),
        jax.vmap(jax.vmap(lambda d, m: sparse_neighbors(d, 3, m)))(d, mask),
    ):
        np.testing.assert_allclose(actual, one_by_one, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_distances_give_float32_weights(dtype):
    d = jax.random.normal(jax.random.key(0), (6, 20)).astype(dtype)  # some bfloat16 distances are equal
    p = sparse_neighbors(d, 5)
    assert p.dtype == jnp.float32
    np.testing.assert_array_equal(p, sparse_neighbors(d.astype(jnp.float32), 5))
    gradient = gradient_of_sum(lambda d: sparse_neighbors(d, 5) ** 2, d)
    assert gradient.dtype == dtype
    assert np.isfinite(np.float32(gradient)).all() and np.any(gradient)


@pytest.mark.parametrize("sparsity", [0, -1, 7, 50])
def test_impossible_sparsity_is_refused_with_the_largest_possible_one(sparsity):
    with pytest.raises(ValueError, match=f"sparsity {sparsity} .* 7 columns.*<= 6"):
        graph.sparse_neighbors(jnp.zeros((2, 7)), sparsity)


def random_adjacency(seed, shape):
    a = np.maximum(np.random.default_rng(seed).normal(size=shape), 0).astype(np.float32)
    return (a + a.swapaxes(-1, -2)) / 2


def test_symmetrize():
    p = np.random.default_rng(0).random((2, 5, 5)).astype(np.float32)
    a = np.asarray(graph.symmetrize(p))
    np.testing.assert_array_equal(a, a.swapaxes(-1, -2))
    np.testing.assert_allclose(a[1, 3, 2], (p[1, 3, 2] + p[1, 2, 3]) / 2, rtol=1e-6)
    np.testing.assert_allclose(a.sum((-1, -2)), p.sum((-1, -2)), rtol=1e-6)


@pytest.mark.parametrize("self_loops", [True, False])
def test_normalize_equals_kipf_and_welling(self_loops):
    a = random_adjacency(0, (3, 8, 8))
    actual = np.asarray(normalize(a, self_loops))
    for adjacency, normalized in zip(a.astype(np.float64), actual, strict=True):
        looped = adjacency + self_loops * np.eye(8)
        root = np.diag(looped.sum(-1) ** -0.5)
        np.testing.assert_allclose(normalized, root @ looped @ root, atol=1e-6)
        np.testing.assert_allclose(normalized, normalized.T, atol=1e-7)
        assert np.abs(np.linalg.eigvalsh(normalized.astype(np.float64))).max() <= 1 + 1e-6


@pytest.mark.parametrize("self_loops", [True, False])
def test_normalize_of_isolated_nodes(self_loops):
    a = random_adjacency(0, (5, 5))
    a[2] = a[:, 2] = 0
    normalized = normalize(a, self_loops)
    np.testing.assert_array_equal(normalized[2], [0, 0, self_loops, 0, 0])
    inner = np.ix_([0, 1, 3, 4], [0, 1, 3, 4])
    np.testing.assert_allclose(normalized[inner], normalize(a[inner], self_loops), atol=1e-7)
    assert np.isfinite(gradient_of_sum(lambda a: normalize(a, self_loops), a)).all()


@pytest.mark.parametrize("self_loops", [True, False])
def test_normalize_ignores_padding(self_loops):
    keep, mask = np.array([0, 1, 4]), np.array([1, 1, 0, 0, 1], bool)
    a = random_adjacency(1, (2, 5, 5))
    normalized = np.array(normalize(a, self_loops, np.stack([mask, mask])))
    inner = np.ix_([0, 1], keep, keep)
    np.testing.assert_allclose(normalized[inner], normalize(a[inner], self_loops), atol=1e-7)
    normalized[inner] = 0
    np.testing.assert_array_equal(normalized, 0)


def features(seed=0, offset=0.0):
    return (np.random.default_rng(seed).normal(size=(7, 5)) + offset).astype(np.float32)


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_squared_distances(offset):
    x, y = features(0, offset), features(1, offset)[:4]
    expected = ((x.astype(np.float64)[:, None] - y[None]) ** 2).sum(-1)
    np.testing.assert_allclose(squared_distances(x, y), expected, rtol=1e-4)
    np.testing.assert_allclose(squared_distances(x[None], y[None]), expected[None], rtol=1e-4)


@pytest.mark.parametrize("width", [3, 64, 2048])
def test_equal_rows_are_at_distance_zero_and_have_no_euclidean_weight(width):
    x = np.random.default_rng(0).normal(size=(40, width)).astype(np.float32)
    x = jnp.asarray(np.concatenate([x, x]))
    d2 = np.asarray(squared_distances(x, x))
    equal = np.arange(80)[:, None] % 40 == np.arange(80) % 40
    np.testing.assert_array_equal(d2[equal], 0)
    assert (d2[~equal] > 0).all()
    a = np.asarray(euclidean_adjacency(x))
    np.testing.assert_array_equal(a[equal], 0)
    np.testing.assert_allclose(a[~equal], d2[~equal] ** -0.5, rtol=1e-3)
    gradient = gradient_of_sum(euclidean_adjacency, x)
    assert np.isfinite(gradient).all() and np.any(gradient)


@pytest.mark.parametrize("threshold", [0.0, 0.4])
def test_inner_product_adjacency(threshold):
    x = features()
    x[3] = 0
    unit = x.astype(np.float64) / np.maximum(np.linalg.norm(x.astype(np.float64), axis=-1, keepdims=True), 1e-6)
    expected = unit @ unit.T
    expected[expected <= threshold] = 0
    a = inner_product_adjacency(x, threshold)
    np.testing.assert_allclose(a, expected, atol=1e-6)
    gradient = gradient_of_sum(lambda x: inner_product_adjacency(x, threshold), x)
    assert np.isfinite(gradient).all() and np.any(gradient)
    np.testing.assert_allclose(inner_product_adjacency(x[None] * 50, threshold)[0], a, atol=1e-6)


@pytest.mark.parametrize("threshold", [0.0, 0.4])
def test_euclidean_adjacency(threshold):
    x = features()
    distance = np.linalg.norm(x.astype(np.float64)[:, None] - x[None], axis=-1)
    expected = np.where(distance > 0, 1 / np.where(distance > 0, distance, 1), 0)
    expected[expected <= threshold] = 0
    assert 0 < (expected > 0).sum() <= 42
    np.testing.assert_allclose(euclidean_adjacency(x, threshold), expected, rtol=1e-4)
    np.testing.assert_allclose(euclidean_adjacency(x[None], threshold)[0], expected, rtol=1e-4)


LABELS = jnp.array([0, 0, 1, 1])
CASES = {  # the expected self_weight, label_agreement, effective_neighbors
    "identity": (np.eye(4), (1, 0, 1)),
    "uniform": (np.ones((4, 4)), (1 / 4, 1 / 3, 4)),
    "blocks": (np.kron(np.eye(2), np.ones((2, 2))), (1 / 2, 1, 2)),
    "other class": (np.kron(1 - np.eye(2), np.ones((2, 2))), (0, 0, 2)),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("padded", [False, True])
def test_diagnostics_of_graphs_with_known_answers(name, padded):
    weights, expected = CASES[name]
    weights = weights * np.array([[1.0], [2.0], [0.5], [10.0]])  # rows are scaled to sum to 1
    labels, own, masks = LABELS, jnp.arange(4), ()
    if padded:
        weights = np.pad(weights, (0, 3), constant_values=5.0)
        labels, own = jnp.append(labels, jnp.array([0, 1, 1])), jnp.arange(7)
        masks = (jnp.arange(7) < 4,) * 2
    facts = diagnostics(jnp.asarray(weights), own, labels, labels, *masks)
    for fact, value in zip(("self_weight", "label_agreement", "effective_neighbors"), expected, strict=True):
        np.testing.assert_allclose(facts[fact], value, atol=1e-6, err_msg=fact)
    np.testing.assert_allclose(facts["label_agreement_chance"], 1 / 3, atol=1e-6)


def test_diagnostics_of_rows_over_other_columns():
    """Tests two test images as in Mechanism 1: the columns are three anchors and, last, the image itself."""
    weights = jnp.array([[0.5, 0.25, 0.0, 0.25], [0.0, 0.0, 0.5, 0.5]])
    facts = diagnostics(weights, jnp.array([3, 3]), jnp.array([0, 1]), jnp.array([0, 1, 0, -1]))
    np.testing.assert_allclose(facts["self_weight"], (0.25 + 0.5) / 2)
    np.testing.assert_allclose(facts["label_agreement"], 0.5 / 1.25)
    np.testing.assert_allclose(facts["label_agreement_chance"], (2 + 1) / 6, rtol=1e-6)
    effective = np.exp(-0.5 * np.log(0.5) - 0.5 * np.log(0.25)), 2
    np.testing.assert_allclose(facts["effective_neighbors"], np.mean(effective), rtol=1e-6)
