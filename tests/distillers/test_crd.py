"""Tests of the negatives, memory banks and normalizers of CRD, and of the initial parameters of other methods."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn2gnn_jax import distillers, networks
from cnn2gnn_jax.distillers import crd
from cnn2gnn_jax.distillers.base import LossInputs

LABELS = np.array([0, 1, 2, 3, 4] * 6 + [0, 0, 1], np.int32)


def independent(rng, own, labels, count):
    """Draws negatives independently for each image, and returns them in the form of `draw_shared_negatives`."""
    negatives = crd.draw_negatives(rng, jnp.arange(len(own)), own, labels, count)
    assert negatives.scored is None
    return crd.Negatives(jnp.arange(len(labels)), negatives.counts)


DRAWS = [independent, crd.draw_shared_negatives]


def drawn(draw, seed, own, count, labels=LABELS):
    negatives = draw(jax.random.key(seed), jnp.asarray(own), labels, count)
    return np.asarray(negatives.scored), np.asarray(negatives.counts)


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("count", [1, 9, 24, 25, 26, 33, 100])
def test_negatives_are_of_other_classes_and_repeat_as_little_as_possible(draw, count):
    own = np.arange(5)
    rows, counts = drawn(draw, 0, own, count)
    assert len(set(rows)) == len(rows) <= (33 if draw is independent else min(33, count + 8))
    for label, row in zip(own, counts, strict=True):
        others = np.sum(label != LABELS)
        assert row.sum() == count
        assert not np.any(row[LABELS[rows] == label])
        assert row.max() == -(-count // others)
        if count >= others:
            assert row[LABELS[rows] != label].min() == count // others


@pytest.mark.parametrize("draw", DRAWS)
def test_all_images_of_other_classes_are_equally_likely(draw):
    total = np.zeros((2, 33))
    compiled = jax.jit(lambda key: draw(key, jnp.array([0, 3]), LABELS, 9))
    for key in jax.random.split(jax.random.key(0), 2000):
        negatives = compiled(key)
        total[:, negatives.scored] += negatives.counts
    for label, frequency in zip((0, 3), total / 2000, strict=True):
        others = label != LABELS
        np.testing.assert_allclose(frequency[others], 9 / others.sum(), atol=0.06)
        assert not frequency[~others].any()


def test_draws_are_independent_and_do_not_depend_on_the_position_in_the_batch():
    rng, index = jax.random.key(0), np.arange(40)
    counts = np.asarray(crd.draw_negatives(rng, index, np.zeros(40, int), LABELS, 9).counts)
    assert len(np.unique(counts, axis=0)) == 40
    # Two independent draws of 9 out of 25 share 9 * 9 / 25 = 3.24 on average. Shared draws would share all 9.
    shared = (counts @ counts.T)[np.triu_indices(40, 1)]
    np.testing.assert_allclose(shared.mean(), 81 / 25, atol=0.1)
    order = np.array([7, 2, 31])
    np.testing.assert_array_equal(crd.draw_negatives(rng, order, np.zeros(3, int), LABELS, 9).counts, counts[order])


def test_equal_keys_do_not_change_the_count(monkeypatch):
    monkeypatch.setattr(jax.random, "bits", lambda key, shape, dtype: jnp.arange(shape[0], dtype=dtype) // 7)
    counts = np.asarray(crd.draw_negatives(jax.random.key(0), np.arange(3), np.arange(3), LABELS, 9).counts)
    np.testing.assert_array_equal(counts.sum(1), 9)
    assert counts.max() == 1


def test_a_batch_above_the_limit_shares_its_negatives(example, monkeypatch):
    e = example("crd", dtype="float32")
    params, memory, *rest = jax.tree.map(jnp.asarray, (e.params, e.memory, e.student, e.teacher, e.batch))
    arguments = params, memory, LossInputs(*rest, 0, jax.random.key(0))
    alone, _, _ = e.distiller.stages[0].loss(*arguments)
    monkeypatch.setattr(crd, "MAX_SCORES", 6 * 33 - 1)
    shared, _, _ = e.distiller.stages[0].loss(*arguments)
    assert alone != shared
    monkeypatch.setattr(crd, "draw_negatives", None)  # it must not be called
    np.testing.assert_array_equal(e.distiller.stages[0].loss(*arguments)[0], shared)


@pytest.mark.parametrize("draw", DRAWS)
def test_a_class_without_others_has_no_negatives(draw):
    rows, counts = drawn(draw, 0, [0], 5, np.zeros(4, np.int32))
    assert len(rows) == 4 and not counts.any()


def test_banks_move_halfway_and_z_stays_fixed(example):
    e = example("crd")
    step = jax.jit(e.distiller.stages[0].loss)

    def run(memory, student, seed):
        return step(e.params, memory, LossInputs(student, e.teacher, e.batch, 0, jax.random.key(seed)))

    _, first, _ = run(e.memory, e.student, 0)
    assert not e.memory["initialized"] and first["initialized"]
    for side, outputs in (("student", e.student), ("teacher", e.teacher)):
        linear = e.params[side]["linear"]
        new = outputs.pooled @ linear["kernel"] + linear["bias"]
        new /= np.linalg.norm(new, axis=1, keepdims=True)
        old, index = e.memory["bank"][side], e.batch["index"]
        expected = 0.5 * old[index] + 0.5 * new
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
        np.testing.assert_allclose(first["bank"][side][index], expected, rtol=1e-5, atol=1e-6)
        rest = np.setdiff1d(np.arange(len(old)), index)
        np.testing.assert_array_equal(first["bank"][side][rest], old[rest].astype(np.float32))
    _, second, _ = run(first, jax.tree.map(lambda x: 2 * x + 1, e.student), 1)
    assert first["log_z"] == second["log_z"]
    assert np.any(first["bank"]["student"] != second["bank"]["student"])


def test_initial_parameters_and_memory():
    maps = tuple(jnp.zeros((2, side, side, 4)) for side in (4, 4, 2, 1))
    outputs = networks.Outputs(jnp.zeros((2, 5)), maps, maps, jnp.zeros((2, 6)))

    @functools.partial(jax.jit, static_argnums=(0, 1))  # only what `pick` returns is compiled
    def start(method, pick):
        hyper = distillers.hyperparameters(method, "vgg13", "vgg8") | {"training_labels": LABELS}
        return pick(*distillers.create(method, hyper).init(jax.random.key(0), outputs, outputs))

    rho = start("vid", lambda params, memory: params["stage1"]["rho"])
    np.testing.assert_allclose(jax.nn.softplus(rho) + 1e-5, 5, rtol=1e-6)
    memory = start("crd", lambda params, memory: memory)
    for bank in memory["bank"].values():
        assert bank.shape == (33, 128)
        assert 0.99 * np.sqrt(3 / 128) < np.abs(bank).max() <= np.sqrt(3 / 128)
        assert abs(bank.mean()) < 0.01
    assert np.any(memory["bank"]["student"] != memory["bank"]["teacher"])
    assert not memory["initialized"]
    params, memory = start("fitnets", lambda params, memory: (params, memory))
    kernel = params["regressor"]["conv"]["kernel"]
    assert kernel.shape == (1, 1, 4, 4) and 0 < np.abs(kernel).max() <= 0.5
    np.testing.assert_array_equal(memory["regressor"]["norm"]["var"], 1)
