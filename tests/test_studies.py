"""Tests of the studies of the training-set graph: their losses, and the rows that they compute from small data."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn2gnn_jax.evaluation.choice import Embedded, Grid
from studies import bank, neighbor_features, trained_graph
from studies import student as students
from studies.student import Images, Student
from studies.trained_graph import Inputs, Setting, unit

CLASSES, FEATURES = 5, 12


def images(rng, per_class, spread=0.6):
    """Returns images of Gaussian classes, with the features and the weak logits of a student."""
    centers = np.random.default_rng(0).standard_normal((CLASSES, FEATURES))
    labels = np.repeat(np.arange(CLASSES), per_class)
    features = (centers[labels] + spread * rng.standard_normal((len(labels), FEATURES))).astype(np.float32)
    logits = (np.eye(CLASSES)[labels] + 1.5 * rng.standard_normal((len(labels), CLASSES))).astype(np.float32)
    spaces = {"backbone": features, "hidden": np.maximum(features, 0), "logits": logits}
    teacher = np.asarray(jax.nn.softmax(3 * np.eye(CLASSES, dtype=np.float32)[labels]))
    return Images(Embedded(logits, spaces), labels, teacher)


@pytest.fixture
def student():
    rng = np.random.default_rng(1)
    grid = Grid(("backbone", "hidden"), ("labels", "teacher"), (3, 5), (0.3, 1.0), (0.1,))
    return Student(images(rng, 40), images(rng, 20), images(rng, 20), grid, pathlib.Path("run"))


@pytest.fixture
def inputs():
    """Inputs in float64, since finite differences need this precision."""
    with jax.enable_x64():
        yield _inputs()


def _inputs():
    rng = np.random.default_rng(2)
    labels = jnp.asarray(np.arange(30) % CLASSES)
    return Inputs(
        jnp.asarray(rng.standard_normal((30, FEATURES))), labels, jax.nn.softmax(jax.nn.one_hot(labels, CLASSES))
    )


def parameters(gate=0.0):
    params = trained_graph.init(0, FEATURES, CLASSES)
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params) | {"gate": jnp.full(FEATURES, gate)}


def loss(params, inputs, setting, index=tuple(range(15))):
    keys = unit(inputs.x @ parameters()["metric"])
    return trained_graph.loss(params, keys, jnp.asarray(index), inputs, setting)


@pytest.mark.parametrize("arm", ["metric", "joint"])
def test_gradients_of_the_direct_loss_equal_finite_differences(inputs, arm, monkeypatch):
    """Tests the gradients of all parameters, also of the metric, which changes both the queries and the keys."""
    monkeypatch.setattr(trained_graph, "WIDTH", FEATURES - 2)
    setting, params = Setting(arm, 0.1, 4), parameters(gate=0.1)
    gradients = jax.grad(loss)(params, inputs, setting)
    assert float(jnp.linalg.norm(gradients["metric"])) > 1e-3
    rng = np.random.default_rng(3)
    for name, leaf in params.items():
        direction, step = jnp.asarray(rng.standard_normal(leaf.shape)), 1e-6
        moved = [loss(params | {name: leaf + sign * step * direction}, inputs, setting) for sign in (1, -1)]
        np.testing.assert_allclose(
            float(jnp.sum(gradients[name] * direction)), float(moved[0] - moved[1]) / (2 * step), rtol=1e-5, atol=1e-8
        )


def test_the_gate_starts_closed(inputs, monkeypatch):
    monkeypatch.setattr(trained_graph, "WIDTH", FEATURES - 2)
    joint, metric = (loss(parameters(), inputs, Setting(arm, 0.1, 4)) for arm in ("joint", "metric"))
    np.testing.assert_allclose(joint, metric, rtol=1e-12)


def test_the_label_of_an_image_does_not_reach_its_own_votes(inputs):
    metric = parameters()["metric"]
    index, keys = jnp.array([3]), unit(inputs.x @ metric)
    changed = [inputs.labels.at[row].set((inputs.labels[row] + 1) % CLASSES) for row in range(len(inputs.labels))]
    votes = [
        np.asarray(trained_graph.graph_votes(metric, keys, index, inputs._replace(labels=labels), 4))
        for labels in (inputs.labels, *changed)
    ]
    differs = [not np.array_equal(votes[0], other) for other in votes[1:]]
    assert not differs[3]
    assert sum(differs) == 4, "the labels of the four neighbors do reach them"


def test_the_graph_helps_a_weak_student_on_separated_classes(student):
    row = students.measure(student, student.grid)
    without = students.accuracy_without_graph(student.test)
    assert without < 75
    assert row["accuracy"] > without + 10
    assert row["images"] == 200


def test_only_the_given_columns_vote(student):
    """Tests a bank with images of only one class. All neighbors then vote for this class."""
    grid = student.grid._replace(spaces=("backbone",), signals=("labels",), weights=(100.0,))
    row = students.measure(student, grid, np.flatnonzero(student.train.labels == 2))
    assert row["accuracy"] == row["accuracy_of_neighbors"] == 100 / CLASSES


def test_the_bank_study_has_a_row_for_each_question(student, monkeypatch):
    monkeypatch.setattr(bank, "SIZES", (10, 50))
    monkeypatch.setattr(bank, "DRAWS", 2)
    monkeypatch.setattr(bank, "LABELS_PER_CLASS", (5,))
    rows = list(bank.rows(student))
    kinds = [row["study"] for row in rows]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "chosen": 1, "space": 6, "sparsity": 2, "images": 4, "labels": 2,
    }  # fmt: skip
    assert [row["images"] for row in rows if row["study"] == "images"] == [10, 50, 10, 50]
    assert [row["images"] for row in rows if row["study"] == "labels"] == [25, 200]


def test_a_bank_is_drawn_evenly_from_the_classes(student):
    order, rank = bank.in_class_order(student, 0)
    labels = student.train.labels[order[np.argsort(rank, kind="stable")[:25]]]
    assert np.bincount(labels).tolist() == [5] * CLASSES


def test_training_the_metric_lowers_the_direct_loss(student, monkeypatch):
    monkeypatch.setattr(trained_graph, "EPOCHS", 3)
    monkeypatch.setattr(trained_graph, "BATCH", 20)
    monkeypatch.setattr(trained_graph, "WIDTH", 8)
    features = jnp.asarray(student.train.embedded.features["backbone"])
    inputs = Inputs(features, jnp.asarray(student.train.labels), jnp.asarray(student.train.teacher))
    params = trained_graph.train(inputs, CLASSES, Setting("metric", 0.1, 5), 0)
    start = trained_graph.init(0, FEATURES, CLASSES)

    def direct(metric):
        keys = unit(features @ metric)
        setting, index = Setting("metric", 0.1, 5), jnp.arange(100)
        losses = [
            trained_graph.loss(start | {"metric": metric}, keys, index, inputs, setting._replace(arm=arm))
            for arm in ("metric", "retrieved")
        ]
        return float(losses[0] - losses[1])

    assert direct(params["metric"]) < direct(start["metric"]) - 0.01


def test_the_teacher_itself_is_measured_first(student):
    """The teacher of these images makes no error, so its row has 100% without the graph."""
    row = next(trained_graph.rows(student))
    assert row["study"] == "teacher" and row["accuracy_without_graph"] == 100
    assert students.accuracy_without_graph(student.test) < 100


def test_neighbor_features_are_the_weighted_mean_of_the_nearest_other_images(student):
    """Compares with NumPy code that computes all distances, and Eq. 3 as it is written."""
    sparsity, found = 3, neighbor_features.with_neighbor_features(student, 3)
    train = student.train.embedded.features["backbone"].astype(np.float64)
    keys = (train - train.mean(0)) / train.std(0)
    keys /= np.linalg.norm(keys, axis=1, keepdims=True)
    for name in ("train", "test"):
        x = getattr(student, name).embedded.features["backbone"].astype(np.float64)
        queries = (x - train.mean(0)) / train.std(0)
        d = -(queries / np.linalg.norm(queries, axis=1, keepdims=True)) @ keys.T
        if name == "train":
            np.fill_diagonal(d, np.inf)
        nearest = np.argsort(d, axis=1)[:, : sparsity + 1]
        sorted_d = np.take_along_axis(d, nearest, axis=1)
        weights = sorted_d[:, -1:] - sorted_d
        weights /= weights.sum(axis=1, keepdims=True)
        expected = np.concatenate([x, np.einsum("bs,bsf->bf", weights, train[nearest])], axis=1)
        result = getattr(found, name).embedded.features["backbone"]
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)


def test_the_study_of_neighbor_features_compares_both_students(student, monkeypatch):
    monkeypatch.setattr(trained_graph, "SEEDS", 1)
    monkeypatch.setattr(trained_graph, "EPOCHS", 1)
    monkeypatch.setattr(trained_graph, "BATCH", 20)
    monkeypatch.setattr(trained_graph, "WIDTH", 8)
    rows = list(neighbor_features.rows(student))
    candidates = {row["sparsity_of_features"]: row for row in rows if row["study"] == "candidate"}
    assert list(candidates) == [5, 10, 30]
    best = max(candidates, key=lambda s: candidates[s]["holdout_accuracy_without_graph"])
    results = [row for row in rows if row["study"] == "neighbor features"]
    assert [(row["arm"], row["space"], row["sparsity_of_features"]) for row in results] == [
        ("alone", "backbone", 0), ("alone", "hidden", 0),
        ("neighbor features", "backbone", best), ("neighbor features", "hidden", best),
    ]  # fmt: skip
