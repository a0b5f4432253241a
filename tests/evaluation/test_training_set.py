"""Tests that the training-set graph, as a protocol, has the settings and the accuracy that NumPy computes."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn2gnn_jax import neighbors
from cnn2gnn_jax.evaluation import choice as choices
from cnn2gnn_jax.evaluation import training_set
from cnn2gnn_jax.evaluation.choice import Embedded, Grid
from cnn2gnn_jax.neighbors import Settings
from cnn2gnn_jax.runtime.errors import UserError
from tests.oracles import eq3

COLUMNS, IMAGES, WIDTH, CLASSES = 60, 40, 6, 3
GRID = Grid(("backbone", "hidden"), ("labels", "teacher"), (1, 3, 8), (0.3, 1.0), (0.01, 0.1))


def clusters(rng, labels, noise):
    """Returns features that are scattered around a center of each class."""
    return (np.eye(WIDTH)[labels] + noise * rng.normal(size=(len(labels), WIDTH))).astype(np.float32)


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    train, test = rng.integers(CLASSES, size=COLUMNS), rng.integers(CLASSES, size=IMAGES)
    noises = {"backbone": 0.6, "hidden": 0.4}
    features = {space: clusters(rng, train, noise) for space, noise in noises.items()}
    logits = np.eye(CLASSES)[test] + rng.normal(size=(IMAGES, CLASSES))
    images = Embedded(logits.astype(np.float32), {space: clusters(rng, test, noise) for space, noise in noises.items()})
    signals = {"labels": np.eye(CLASSES)[train], "teacher": rng.dirichlet(np.ones(CLASSES), COLUMNS)}
    return train, test, features, images, signals


def bank_of(data, settings):
    train, _, features, _, signals = data
    space = jnp.asarray(features[settings.space])
    return neighbors.make_bank(space, jnp.asarray(train), jnp.asarray(signals[settings.signal]), settings, jnp.float32)


def right(data, settings):
    """Computes the answers in NumPy from the formulas. Returns the number of correct ones, and the answers."""
    _, test, features, images, signals = data
    keys, queries = features[settings.space], images.features[settings.space]
    mean, scale = keys.mean(0), keys.std(0)
    keys, queries = (keys - mean) / scale, (queries - mean) / scale
    cosine = queries @ keys.T / np.linalg.norm(queries, axis=-1)[:, None] / np.linalg.norm(keys, axis=-1)
    votes = eq3(1 - cosine, settings.sparsity) @ signals[settings.signal]
    answers = np.argmax(images.logits + settings.weight * np.log(votes + settings.epsilon), -1)
    return int(np.sum(answers == test)), answers


def test_the_choice_is_the_best_of_all_settings(data):
    banks = {
        (space, signal): bank_of(data, Settings(space, signal, 1, 0.0, 1.0))
        for space, signal in itertools.product(GRID.spaces, GRID.signals)
    }
    choice = choices.choose(data[3], data[1], banks, GRID)
    counts = {Settings(*values): right(data, Settings(*values))[0] for values in itertools.product(*GRID)}
    assert len(set(counts.values())) > 5
    assert counts[choice.settings] == max(counts.values())
    assert choice.accuracy == 100 * max(counts.values()) / IMAGES
    assert choice.accuracy_alone == 100 * np.mean(data[3].logits.argmax(-1) == data[1])
    assert choice.accuracy > choice.accuracy_alone


def test_the_fair_accuracy_is_of_images_that_chose_nothing(data):
    banks = {
        (space, signal): bank_of(data, Settings(space, signal, 1, 0.0, 1.0))
        for space, signal in itertools.product(GRID.spaces, GRID.signals)
    }
    choice = choices.choose(data[3], data[1], banks, GRID)
    half = choices.halves(data[1])
    assert abs(np.sum(half == 0) - np.sum(half == 1)) <= 1
    for label in range(CLASSES):
        assert abs(np.sum(half[data[1] == label] * 2 - 1)) <= 1
    # In NumPy: the settings with the most correct images in one half are evaluated on the other half.
    hits = {Settings(*values): right(data, Settings(*values))[1] == data[1] for values in itertools.product(*GRID)}
    order = sorted(hits, key=lambda s: (GRID.spaces.index(s.space), s.signal, s.sparsity, s.epsilon, s.weight))
    total = 0
    for k in (0, 1):
        best = max(order, key=lambda settings: np.sum(hits[settings][half == k]))
        total += np.sum(hits[best][half != k])
    assert choice.accuracy_two_fold == 100 * total / IMAGES
    assert choice.accuracy_two_fold <= choice.accuracy


def test_an_answer_with_the_label_of_the_image_itself_is_none(data):
    """Tests that the column of a training image itself is excluded when the training image is classified."""
    _, _, features, _, _ = data
    settings = Settings("hidden", "labels", 3, 1.0, 0.1)
    bank, own = bank_of(data, settings), np.arange(COLUMNS)
    logits = np.zeros((COLUMNS, CLASSES), np.float32)
    votes = neighbors.predict(bank, logits, features["hidden"], own).votes
    for i in (0, 7, 31):
        other = bank.signals.at[i].set(jnp.roll(bank.signals[i], 1))
        changed = neighbors.predict(bank.replace(signals=other), logits, features["hidden"], own).votes
        np.testing.assert_array_equal(changed[i], votes[i])
        leaked = neighbors.predict(bank.replace(signals=other), logits, features["hidden"]).votes
        assert np.abs(leaked[i] - neighbors.predict(bank, logits, features["hidden"]).votes[i]).max() > 0.1


def test_a_sparsity_that_no_bank_allows_is_refused(data):
    settings = Settings("hidden", "labels", 1, 0.0, 1.0)
    grid = Grid(("hidden",), ("labels",), (COLUMNS, 100), (1.0,), (0.1,))
    with pytest.raises(UserError, match=f"sparsities has {COLUMNS} as its smallest value, but there are {COLUMNS} "):
        choices.choose(data[3], data[1], {("hidden", "labels"): bank_of(data, settings)}, grid)


@pytest.mark.parametrize(
    "settings", [Settings("hidden", "labels", 3, 1.0, 0.1), Settings("backbone", "teacher", 8, 0.3, 0.01)]
)
def test_the_answers_are_those_of_numpy(data, settings):
    count, answers = right(data, settings)
    result = training_set.evaluate(bank_of(data, settings), data[3], data[1])
    assert np.array_equal(result["predicted"], answers)
    assert result["accuracy"] == 100 * count / IMAGES


def test_the_recall_of_an_approximate_search_is_measured(data, monkeypatch):
    settings = Settings("hidden", "labels", 3, 1.0, 0.1)
    exact = training_set.evaluate(bank_of(data, settings), data[3], data[1])
    assert "recall" not in exact["diagnostics"]
    approximate = bank_of(data, settings._replace(recall=0.9))
    # On the CPU, the approximate search is exact.
    assert training_set.evaluate(approximate, data[3], data[1])["diagnostics"]["recall"] == 1

    def without_the_nearest(numbers, count, recall_target):
        smallest, positions = jax.lax.top_k(-numbers, count + 1)
        return -smallest[:, 1:], positions[:, 1:]

    monkeypatch.setattr(jax.lax, "approx_min_k", without_the_nearest)
    jax.clear_caches()
    measured = training_set.evaluate(approximate, data[3], data[1])["diagnostics"]["recall"]
    jax.clear_caches()
    assert measured == pytest.approx(2 / 3)


def test_a_graph_that_finds_the_class_agrees_with_it(data):
    result = training_set.evaluate(bank_of(data, Settings("hidden", "labels", 3, 1.0, 0.1)), data[3], data[1])
    facts = result["diagnostics"]
    assert facts["label_agreement"] > 1.5 / CLASSES
    assert 1 <= facts["effective_neighbors"] <= 3
    assert facts["accuracy_of_neighbors"] > 100 / CLASSES
