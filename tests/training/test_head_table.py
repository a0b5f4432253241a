"""Tests that row-wise SGD equals the dense update, computed by Optax in float32 and by NumPy in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cnn2gnn_jax.gnn import HeadRows
from cnn2gnn_jax.training import head_table
from cnn2gnn_jax.training.head_table import HeadTable, Sgd

ROWS, WIDTH, BATCH, STEPS = 40, 6, 8, 400
PAPER = Sgd(momentum=0.9, weight_decay=5e-4)
# The functions are compiled as in training, which also saves time.
catch_up, gather, sgd_step = (
    jax.jit(function, static_argnames="sgd")
    for function in (head_table.catch_up, head_table.gather, head_table.sgd_step)
)
scatter = jax.jit(head_table.scatter)


def fresh():
    return head_table.init(jax.random.key(0), ROWS, WIDTH)


def batches(seed=0):
    """Returns the rows of each batch, without repetitions, and the targets for `gradient`."""
    rng = np.random.default_rng(seed)
    index = np.stack([rng.choice(ROWS, BATCH, replace=False) for _ in range(STEPS)])
    return index, HeadRows(
        rng.normal(size=(STEPS, BATCH, WIDTH)).astype(np.float32), rng.normal(size=(STEPS, BATCH)).astype(np.float32)
    )


def gradient(values, targets):
    """Returns a gradient that depends on the values of the rows, so that a row that was not caught up is noticed."""
    return jax.tree.map(lambda value, target: 0.3 * value - target, values, targets)


@functools.partial(jax.jit, static_argnames="sgd")
def train_by_rows(table, index, targets, sgd, rate, first=0):
    def step(table, inputs):
        t, index, targets = inputs
        rows = head_table.gather(table, index, t, rate, sgd)
        moved = head_table.sgd_step(rows, gradient(rows.values, targets), rate, sgd)
        return head_table.scatter(table, index, moved), None

    return jax.lax.scan(step, table, (first + jnp.arange(len(index)), index, targets))[0]


def train_by_optax(values, index, targets, sgd, rates):
    """Returns the values after dense updates of all rows, with the optimizer of `training.task.optimizer`."""
    tx = optax.chain(
        optax.add_decayed_weights(sgd.weight_decay), optax.sgd(lambda t: jnp.asarray(rates)[t], sgd.momentum)
    )

    @jax.jit
    def run(values):
        def step(carry, inputs):
            values, state = carry
            index, targets = inputs
            rows = gradient(jax.tree.map(lambda leaf: leaf[index], values), targets)
            dense = jax.tree.map(lambda leaf, row: jnp.zeros_like(leaf).at[index].set(row), values, rows)
            updates, state = tx.update(dense, state, values)
            return (optax.apply_updates(values, updates), state), None

        return jax.lax.scan(step, (values, tx.init(values)), (index, targets))[0][0]

    return run(values)


def train_in_float64(values, index, targets, sgd, rates):
    values = jax.tree.map(np.float64, values)
    momenta = jax.tree.map(np.zeros_like, values)
    for t, rows in enumerate(index):
        dense = jax.tree.map(np.zeros_like, values)
        for leaf, value, target in zip(dense, values, targets, strict=True):
            leaf[rows] = 0.3 * value[rows] - target[t]
        momenta = jax.tree.map(lambda m, g, w: sgd.momentum * m + g + sgd.weight_decay * w, momenta, dense, values)
        values = jax.tree.map(lambda w, m, t=t: w - rates[t] * m, values, momenta)
    return values


def error(actual, expected):
    """Returns the largest error of all leaves, each relative to the largest entry of its leaf."""
    return max(np.abs(f - e).max() / np.abs(e).max() for f, e in zip(actual, expected, strict=True))


@pytest.mark.parametrize("rate", [0.01, 0.1])
def test_row_updates_equal_optax(rate):
    index, targets = batches()
    table = catch_up(train_by_rows(fresh(), index, targets, PAPER, rate), STEPS, rate, PAPER)
    rates = np.full(STEPS, rate, np.float32)
    assert error(table.values, train_by_optax(fresh().values, index, targets, PAPER, rates)) < 1e-5
    np.testing.assert_array_equal(table.seen, STEPS)


@pytest.mark.parametrize("sgd", [PAPER, Sgd(0.9, 0.05), Sgd(0.0, 5e-4), Sgd(0.0, 0.0)], ids=str)
def test_row_updates_equal_the_dense_update_in_float64(sgd):
    index, targets = batches()
    table = catch_up(train_by_rows(fresh(), index, targets, sgd, 0.1), STEPS, 0.1, sgd)
    assert error(table.values, train_in_float64(fresh().values, index, targets, sgd, np.full(STEPS, 0.1))) < 1e-5


def test_constants_known_to_the_compiler_change_nothing():
    """In the training step, a constant learning rate is known to the compiler."""
    for sgd in (PAPER, Sgd(0.0, 0.0)):
        known = jax.jit(lambda table, sgd=sgd: head_table.catch_up(table, 100, 0.1, sgd))(fresh())
        jax.tree.map(
            lambda k, t: np.testing.assert_allclose(k, t, rtol=1e-6, atol=1e-6), known, catch_up(fresh(), 100, 0.1, sgd)
        )


def test_a_change_of_rate_after_catching_up_equals_the_dense_optimiser():
    table, first, second = fresh(), batches(0), batches(1)
    for begin, rate, (index, targets) in ((0, 0.1, first), (STEPS, 0.01, second)):
        table = train_by_rows(table, index, targets, PAPER, rate, begin)
        table = catch_up(table, begin + STEPS, rate, PAPER)
    index, targets = jax.tree.map(lambda a, b: np.concatenate([a, b]), first, second)
    rates = np.repeat([0.1, 0.01], STEPS)
    assert error(table.values, train_by_optax(fresh().values, index, targets, PAPER, np.float32(rates))) < 1e-5
    assert error(table.values, train_in_float64(fresh().values, index, targets, PAPER, rates)) < 1e-5


def test_rows_are_caught_up_when_they_are_gathered():
    index, targets = batches()
    table = train_by_rows(fresh(), index, targets, PAPER, 0.1)
    waiting = np.argsort(table.seen)[:4]
    assert np.all(table.seen[waiting] < STEPS)
    gathered = gather(table, waiting, STEPS, 0.1, PAPER)
    everyone = catch_up(table, STEPS, 0.1, PAPER)
    jax.tree.map(lambda g, e: np.testing.assert_allclose(g, e[waiting], rtol=1e-6, atol=1e-7), gathered, everyone)


def test_catching_up_twice_is_catching_up_once():
    index, targets = batches()
    table = train_by_rows(fresh(), index, targets, PAPER, 0.1)
    once = catch_up(table, STEPS + 7, 0.1, PAPER)
    assert not np.array_equal(once.values.kernel, table.values.kernel)
    jax.tree.map(np.testing.assert_array_equal, catch_up(once, STEPS + 7, 0.1, PAPER), once)
    halfway = catch_up(catch_up(table, STEPS + 3, 0.1, PAPER), STEPS + 7, 0.1, PAPER)
    jax.tree.map(lambda h, o: np.testing.assert_allclose(h, o, rtol=1e-5, atol=1e-6), halfway, once)


def test_padding_does_not_change_rows():
    table, step, mask = fresh(), 5, np.array([True, True, False, False])
    bad = np.where(mask, 1, np.nan).astype(np.float32)

    def after(index, gradient, mask=None):
        index = np.array(index)
        gradients = HeadRows(np.tile(gradient[:, None], WIDTH), gradient)
        rows = sgd_step(gather(table, index, step, 0.1, PAPER), gradients, 0.1, PAPER)
        return scatter(table, index, rows, mask)

    padded = after([3, 9, 3, 0], bad, mask)  # padding may repeat a real row or name any other row
    plain = after([3, 9, 1, 2], np.ones_like(bad))
    real, others = np.array([3, 9]), np.setdiff1d(np.arange(ROWS), [3, 9])
    jax.tree.map(lambda new, p: np.testing.assert_array_equal(new[real], p[real]), padded, plain)
    jax.tree.map(lambda new, old: np.testing.assert_array_equal(new[others], old[others]), padded, table)
    np.testing.assert_array_equal(padded.seen[real], step + 1)


@pytest.mark.parametrize("waited", [1, 2, 1000, 2**20, 2**24 - 1])
@pytest.mark.parametrize("rate", [0.01, 0.1])
@pytest.mark.parametrize("sgd", [PAPER, Sgd(0.9, 1e-6), Sgd(0.9, 0.0), Sgd(0.9999, 5e-4)], ids=str)
def test_catching_up_any_number_of_steps_equals_the_matrix_power_in_float64(sgd, rate, waited):
    rng = np.random.default_rng(0)
    value, momentum = rng.normal(size=(2, 3, WIDTH)).astype(np.float32)
    table = HeadTable(HeadRows(value, value[:, 0]), HeadRows(momentum, momentum[:, 0]), jnp.zeros(3, jnp.int32))
    table = catch_up(table, waited, rate, sgd)
    step = np.array([[1 - rate * sgd.weight_decay, -rate * sgd.momentum], [sgd.weight_decay, sgd.momentum]])
    power = np.linalg.matrix_power(step, waited)
    expected = np.einsum("ij,j...->i...", power, np.stack([value, momentum]))
    for part in (slice(None), 0):
        column = (slice(None), part)
        np.testing.assert_allclose(
            table.values[part == 0], expected[0][column], atol=1e-4 * np.abs(expected[0]).max() + 1e-6
        )
        np.testing.assert_allclose(table.momenta[part == 0], expected[1][column], atol=1e-5)


def test_a_fresh_table_is_lecun_normal():
    table = head_table.init(jax.random.key(0), 1000, 256)
    assert table.values.kernel.shape == (1000, 256) and table.values.bias.shape == (1000,)
    np.testing.assert_allclose(np.std(table.values.kernel), 1 / 16, rtol=0.01)
    assert not any(np.any(leaf) for leaf in (table.values.bias, *table.momenta, table.seen))
