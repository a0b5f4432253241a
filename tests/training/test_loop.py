"""Tests of the training step, of chunks of steps, and of the training loop."""

import dataclasses
import functools
import itertools
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn2gnn_jax import distillers, gnn, networks
from cnn2gnn_jax.config import RECIPES
from cnn2gnn_jax.training import loop
from cnn2gnn_jax.training.state import head_rows, init_state
from cnn2gnn_jax.training.step import make_step
from cnn2gnn_jax.training.task import Task, learning_rate

IMAGES, BATCH = 60, 12
GOLDEN = [1.326061, 1.054085, 1.154110]


def task(kind="graph", distiller=None, **fields):
    fields = {"head_update": "rows", "chunk_steps": 3, "epoch": "last", **fields}
    recipe = types.SimpleNamespace(**{**RECIPES["paper"], "epochs": 4, "batch_size": BATCH, **fields})
    distiller = distiller or distillers.create("none", {})
    if kind in ("graph", "dense"):
        backbone = gnn.Stem((4,)) if kind == "graph" else gnn.Flatten()
        module = gnn.GraphStudent(3, backbone, sparsity=4, hidden=8, head_widths=(10, 6))
    else:
        module = networks.create("resnet8", 3)
    return Task(
        module, distiller, distiller.stages[0], recipe, IMAGES // BATCH, IMAGES, seed=5, mean=(0.4,) * 3, std=(0.3,) * 3
    )


@pytest.fixture(scope="module")
def data():
    """Returns images and labels. The brightness of an image depends on its class."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, IMAGES)
    images = rng.integers(0, 128, (IMAGES, 8, 8, 3)) + 60 * label[:, None, None, None]
    return {"input": jnp.asarray(images, jnp.uint8), "label": jnp.asarray(label, jnp.int32)}


def batch_of(data, index, mask=None):
    batch = {name: array[index] for name, array in data.items()}
    return batch | {"index": jnp.asarray(index), "mask": jnp.ones(len(index), bool) if mask is None else mask}


class Nothing:
    def due(self, step):
        return False

    def save(self, step, state):
        raise AssertionError


def fit(task, state, data, saver=None):
    return loop.fit([task], state, loop.TrainingData(data), lambda first, metrics: None, saver or Nothing())


def test_golden_step(data):
    """Tests that the losses equal stored values. A change of them changes every result, so it must be intended."""
    current = task()
    step = jax.jit(make_step(current))
    state = init_state(current, data["input"], None)
    losses = []
    for first in range(0, 36, BATCH):
        state, metrics = step(state, batch_of(data, np.arange(first, first + BATCH)), None, current.seed)
        losses.append(float(metrics["loss"]))
    np.testing.assert_allclose(losses, GOLDEN, rtol=2e-4)


@pytest.mark.parametrize("kind", ["graph", "cnn", "dense"])
def test_a_chunk_equals_its_steps(data, kind):
    current = task(kind)
    indices = np.stack([np.arange(BATCH), np.arange(BATCH, 2 * BATCH)])
    step = functools.partial(jax.jit(make_step(current)), teacher_variables=None, seed=current.seed)
    state = init_state(current, data["input"], None)
    for index in indices:
        state, metrics = step(state, batch_of(data, index))
    start = init_state(current, data["input"], None)
    feed = {"index": indices, "mask": np.ones(indices.shape, bool)}
    chunked, actual = loop.make_chunk(current)(start, data, None, feed, current.seed)
    chex.assert_trees_all_close(chunked, state, rtol=1e-4, atol=1e-6)
    assert actual["loss"].shape == (2,)
    np.testing.assert_allclose(actual["loss"][1], metrics["loss"], rtol=1e-4)


def test_on_the_cpu_only_steps_without_convolutions_are_scanned():
    teacher = networks.create("resnet8", 3)
    assert loop.scans_steps(task("dense"))
    assert not loop.scans_steps(task("graph"))
    assert not loop.scans_steps(task("cnn"))
    assert not loop.scans_steps(dataclasses.replace(task("dense"), teacher=teacher))


@pytest.mark.parametrize("kind", ["graph", "cnn"])
def test_training_lowers_the_loss(data, kind):
    current, losses = task(kind, epochs=20, learning_rate=0.03), []
    state = init_state(current, data["input"], None)
    state = loop.fit(
        [current], state, loop.TrainingData(data), lambda _, metrics: losses.extend(metrics["loss"]), Nothing()
    )
    assert len(losses) == current.total_steps == int(state.step)
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])


def test_off_weight_is_a_weighted_mean_of_the_losses_with_and_without_the_graph(data):
    """Tests the weighted mean. With A = I both losses are equal, so off_weight must change neither loss nor step."""
    learned = task()
    off = dataclasses.replace(learned, module=learned.module.clone(graph="off"))
    batch, losses = batch_of(data, np.arange(BATCH)), {}
    for name, current in (("learned", learned), ("off", off)):
        start = init_state(current, data["input"], None)
        plain, weighted = (
            jax.jit(make_step(dataclasses.replace(current, off_weight=weight)))(start, batch, None, current.seed)
            for weight in (0.0, 3.0)
        )
        losses[name] = [float(metrics["loss"]) for _, metrics in (plain, weighted)]
        if name == "off":  # equal new parameters show that the gradients are equal
            chex.assert_trees_all_close(weighted[0], plain[0], rtol=1e-5, atol=1e-7)
    with_graph, mean = losses["learned"]
    without, unchanged = losses["off"]
    np.testing.assert_allclose(unchanged, without, rtol=1e-5)
    # Both tasks start with the same classifier and node features. Therefore `without` is also the loss of `learned`
    # without its graph.
    assert with_graph != pytest.approx(without, rel=1e-3)
    np.testing.assert_allclose(mean, (with_graph + 3 * without) / 4, rtol=1e-5)


def test_each_milestone_lowers_the_rate_also_where_several_fall_on_one_epoch():
    fields = ("schedule", "learning_rate", "milestones", "milestone_factor")
    crd = {name: RECIPES["crd"][name] for name in fields}
    for epochs, expected in ((240, [0.05, 5e-3, 5e-4, 0.00005]), (3, [0.05, 0.0005, 0.00005]), (1, [0.05, 0.00005])):
        current = task(**crd, epochs=epochs)
        rates = [float(learning_rate(current)(step)) for step in range(current.total_steps + 1)]
        np.testing.assert_allclose(sorted(set(rates), reverse=True), expected, rtol=1e-5)


@pytest.mark.parametrize("schedule", ["constant", "step"])
def test_rows_of_the_head_equal_the_dense_update(data, schedule):
    fields = {"schedule": schedule, "milestones": (0.5, 0.75), "milestone_factor": 0.1, "epochs": 8}
    states = {}
    for update in ("rows", "dense"):
        current = task(head_update=update, **fields)
        states[update] = (current, fit(current, init_state(current, data["input"], None), data))
    rows, dense = (head_rows(current, state, np.arange(IMAGES)) for current, state in states.values())
    chex.assert_trees_all_close(rows, dense, rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(
        states["rows"][1].params["student"], states["dense"][1].params["student"], rtol=1e-4, atol=1e-5
    )


def test_a_padded_batch_takes_the_step_of_the_batch(data):
    current = task()
    step = jax.jit(make_step(current))
    start = init_state(current, data["input"], None)
    index = np.arange(BATCH)
    whole, metrics = step(start, batch_of(data, index), None, current.seed)
    padded = np.concatenate([index, index[:4]])
    padded_state, padded_metrics = step(start, batch_of(data, padded, jnp.arange(16) < BATCH), None, current.seed)
    chex.assert_trees_all_close(padded_state, whole, rtol=1e-4, atol=1e-6)
    chex.assert_trees_all_close(padded_metrics, metrics, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("per_epoch", [1, 7, 14, 97, 500])
@pytest.mark.parametrize("longest", [1, 5, 50])
def test_chunks_cover_the_steps_and_do_not_depend_on_where_a_run_resumes(per_epoch, longest):
    total = 3 * per_epoch
    whole = list(loop.chunk_bounds(0, total, per_epoch, longest))
    assert whole[0][0] == 0
    assert whole[-1][1] == total
    assert all(a[1] == b[0] for a, b in itertools.pairwise(whole))
    assert all(0 < last - first <= longest and first // per_epoch == (last - 1) // per_epoch for first, last in whole)
    for k, (first, _) in enumerate(whole):
        assert list(loop.chunk_bounds(first, total, per_epoch, longest)) == whole[k:]


def test_an_epoch_sees_each_image_once_in_an_order_of_its_own():
    current = task()
    epochs = [loop.epoch_indices(current, k * 5, k * 5 + 5).ravel() for k in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(IMAGES))
    assert list(epochs[0]) != list(epochs[1])
    np.testing.assert_array_equal(loop.epoch_indices(current, 6, 8).ravel(), epochs[1][BATCH : 3 * BATCH])


def test_resumed_in_the_middle_of_an_epoch_training_ends_the_same_to_the_bit(data):
    current = task(augment=True)
    stored = {}

    class Keep:
        def due(self, step):
            return step == 8

        def save(self, step, state):
            stored["state"] = jax.tree.map(np.array, state)

    whole = fit(current, init_state(current, data["input"], None), data, Keep())
    resumed = fit(current, jax.tree.map(jnp.asarray, stored["state"]), data)
    chex.assert_trees_all_equal(resumed, whole)


def test_a_stage_changes_only_its_trained_parameters(data):
    plain = distillers.create("none", {})
    stage = plain.stages[0]._replace(trains=lambda path: path[0] == "distiller")
    current = task("cnn", plain._replace(stages=(stage,)))
    start = init_state(current, data["input"], None)
    end, _ = jax.jit(make_step(current))(start, batch_of(data, np.arange(BATCH)), None, current.seed)
    chex.assert_trees_all_equal(end.params, start.params)
    chex.assert_trees_all_equal(end.stats, start.stats)
    assert int(end.step) == 1


def test_batches_from_the_host_train_as_those_on_the_device(data):
    current = task(augment=True)
    resident = fit(current, init_state(current, data["input"], None), data)
    start, host = init_state(current, data["input"], None), jax.tree.map(np.asarray, data)
    fed = loop.fit([current], start, loop.TrainingData({}, host), lambda first, metrics: None, Nothing())
    chex.assert_trees_all_close(fed, resident, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("schedule", [pytest.param("constant", marks=pytest.mark.slow), "step"])
def test_seeds_side_by_side_train_as_each_alone(data, schedule):
    fields = {"schedule": schedule, "milestones": (0.5,), "milestone_factor": 0.1, "augment": True}
    first = task(**fields)
    first = dataclasses.replace(first, module=first.module.clone(backbone=gnn.Flatten()))
    tasks = [dataclasses.replace(first, seed=seed) for seed in (5, 6, 9)]
    starts = [init_state(current, data["input"], None) for current in tasks]
    together = jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts)
    losses = []
    end = loop.fit(
        tasks, together, loop.TrainingData(data), lambda _, metrics: losses.append(metrics["loss"]), Nothing()
    )
    for k, (current, start) in enumerate(zip(tasks, starts, strict=True)):
        alone = []
        state = loop.fit(
            [current], start, loop.TrainingData(data), lambda _, m, alone=alone: alone.extend(m["loss"]), Nothing()
        )
        chex.assert_trees_all_close(jax.tree.map(lambda leaf, k=k: leaf[k], end), state, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(np.concatenate(losses, -1)[k], alone, rtol=1e-4)
    assert not np.allclose(losses[0][0], losses[0][1])
