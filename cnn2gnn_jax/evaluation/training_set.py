"""The graph over the training set, evaluated: its settings are chosen on held-out images, then read on others.

Nothing about the held-out images is in the bank, so that they stand to it as test images do.
"""

import collections
import functools
import itertools
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cnn2gnn_jax import graph, inference, neighbors
from cnn2gnn_jax.evaluation.outputs import by_batches
from cnn2gnn_jax.gnn import GraphStudent
from cnn2gnn_jax.neighbors import Bank, Neighbors, Settings
from cnn2gnn_jax.run import Run
from cnn2gnn_jax.runtime import processes
from cnn2gnn_jax.runtime.console import log
from cnn2gnn_jax.runtime.devices import ONE, Devices
from cnn2gnn_jax.runtime.errors import UserError
from cnn2gnn_jax.training.bank import BANK, save
from cnn2gnn_jax.training.model import TrainedModel
from cnn2gnn_jax.training.state import TrainState, head_rows
from cnn2gnn_jax.training.task import Task
from cnn2gnn_jax.training.tasks import student_name

_BATCH = 500


class Embedded(NamedTuple):
    """What a student makes of N images.

    logits: (N, C), its own answers, up to a constant for each image; those of a learned graph are one by one.
    features: (N, K) by space, see `inference.features`.
    """

    logits: np.ndarray
    features: dict[str, np.ndarray]


class Grid(NamedTuple):
    """The settings that are tried: all combinations."""

    spaces: tuple[str, ...]
    signals: tuple[str, ...]
    sparsities: tuple[int, ...]
    weights: tuple[float, ...]
    epsilons: tuple[float, ...]


class Choice(NamedTuple):
    """The settings that have most held-out images right, and the percentages of them: with the graph and without.

    The percentages are None where the settings were given.
    """

    settings: Settings
    accuracy: float | None
    accuracy_alone: float | None


def embed(model: TrainedModel, images: np.ndarray, devices: Devices = ONE) -> Embedded:
    """What a student makes of raw inputs, (N, ...), in their order."""
    return Embedded(*_joined(by_batches(_logits_and_features, model, images, devices)))


def _joined(batches: Iterable[Any]) -> Any:
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *batches)


def _features(model: TrainedModel, images: jax.Array) -> dict[str, jax.Array]:
    return inference.features(model.module, model.variables, model.inputs(images))


def _logits_and_features(model: TrainedModel, images: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    features = _features(model, images)
    if not isinstance(model.module, GraphStudent) or model.graph == "off":
        return features["logits"], features
    inputs = model.inputs(images)
    answers = [
        inference.one_by_one(model.module, model.variables, anchors.columns, inputs) for anchors in model.anchors
    ]
    probabilities = sum(jax.nn.softmax(answer.logits.astype(jnp.float32)) for answer in answers) / len(answers)
    return jnp.log(jnp.maximum(probabilities, jnp.finfo(jnp.float32).tiny)), features


def entry(
    run: Run,
    task: Task,
    state: TrainState,
    model: TrainedModel,
    inputs: Mapping[str, np.ndarray],
    teacher_logits: np.ndarray | None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The accuracy of a student with the training-set graph, and how its settings were chosen. Keeps the bank.

    Args:
      run: with the settings that are tried.
      task: of the student.
      state: that its training ended with.
      model: the student.
      inputs: its raw inputs by split.
      teacher_logits: those of the training images, (N, C); None without a teacher.
    """
    section, holdout = run.config.evaluate.training_set, run.dataset.holdout
    # Without their logits, for which a learned graph would answer one by one.
    train = _joined(by_batches(_features, model, inputs["train"], run.devices))
    if model.graph == "learned":
        rows = head_rows(task, state, np.arange(task.rows), run.devices)
        assert rows is not None
        train["head"] = np.column_stack([rows.kernel, rows.bias])
    grid = _grid(section, train, teacher_logits)
    banks = _banks(run, grid, train, teacher_logits)
    if holdout is None:
        [settings] = (Settings(*values) for values in itertools.product(*grid))
        choice = Choice(settings, None, None)
    else:
        choice = choose(embed(model, inputs["holdout"], run.devices), holdout.labels, banks, grid)
    settings = choice.settings
    log(f"{student_name(task)}: the training-set graph has {settings}")
    bank = banks[settings.space, settings.signal].replace(settings=settings)
    if task.seed == run.config.seed:
        processes.on_first(lambda: save(run.workdir / BANK / student_name(task), bank, run.fingerprint))
    result = evaluate(bank, embed(model, inputs[run.config.evaluate.split], run.devices), run.evaluated.labels)
    facts = {"mechanism": "training_set", "batch_order": None, "graph": model.graph}
    return {**facts, **result}, {
        "graph": model.graph,
        "seed": task.seed,
        **choice._asdict(),
        "settings": settings._asdict(),
    }


def _grid(section: Any, train: Mapping[str, np.ndarray], teacher_logits: np.ndarray | None) -> Grid:
    """The settings that are tried, of those which the student has."""
    spaces = tuple(space for space in section.spaces if space in train)
    signals = tuple(signal for signal in section.signals if signal == "labels" or teacher_logits is not None)
    for name, left, has in (("spaces", spaces, ", ".join(train)), ("signals", signals, "labels")):
        if not left:
            tried = ", ".join(section[name])
            raise UserError(f"evaluate.training_set.{name} is {tried}, but this student has {has}: choose of these")
    return Grid(spaces, signals, section.sparsities, section.weights, section.epsilons)


def _banks(
    run: Run, grid: Grid, train: Mapping[str, np.ndarray], teacher_logits: np.ndarray | None
) -> dict[tuple[str, str], Bank]:
    """A bank for each space and signal of a grid; the settings of each are still to be chosen."""
    labels = jnp.asarray(run.dataset.train.labels)
    banks: dict[tuple[str, str], Bank] = {}
    signals = {"labels": jax.nn.one_hot(labels, len(run.dataset.classes), dtype=bool)}
    if teacher_logits is not None:
        signals["teacher"] = jax.nn.softmax(jnp.asarray(teacher_logits, jnp.float32)).astype(jnp.float16)
    for space in grid.spaces:
        unset = Settings(space, "labels", 1, 0.0, 1.0)
        key_type = run.config.evaluate.training_set.key_type
        bank = neighbors.make_bank(jnp.asarray(train[space]), labels, signals["labels"], unset, key_type)
        banks |= {(space, signal): bank.replace(signals=signals[signal]) for signal in grid.signals}
    return banks


def choose(held_out: Embedded, labels: np.ndarray, banks: Mapping[tuple[str, str], Bank], grid: Grid) -> Choice:
    """The best settings of a grid on held-out images. Of equally good ones, the first is taken.

    Args:
      held_out: M images that are in no bank.
      labels: (M,), their classes.
      banks: by space and signal.
      grid: what is tried.
    """
    alone = int(np.sum(np.argmax(held_out.logits, -1) == labels))
    sparsities = [s for s in grid.sparsities if s < len(banks[grid.spaces[0], grid.signals[0]].labels)]
    best, most = None, -1
    for space in grid.spaces:
        found = _search(banks[space, grid.signals[0]], held_out.features[space], max(sparsities))
        for signal, sparsity in itertools.product(grid.signals, sparsities):
            votes = _votes(banks[space, signal].signals, found, sparsity)
            right = _right(held_out.logits, votes, labels, np.array(grid.weights), np.array(grid.epsilons))
            for (i, epsilon), (k, weight) in itertools.product(enumerate(grid.epsilons), enumerate(grid.weights)):
                if right[i, k] > most:
                    most = int(right[i, k])
                    best = Settings(space, signal, sparsity, weight, epsilon)
    assert best is not None
    return Choice(best, 100 * most / len(labels), 100 * alone / len(labels))


def _search(bank: Bank, features: np.ndarray, sparsity: int) -> Neighbors:
    """What `neighbors.search` returns for all images, (M, F)."""
    find, queries = jax.jit(neighbors.search, static_argnums=2), neighbors.queries(bank, jnp.asarray(features))
    parts = [find(queries[start : start + _BATCH], bank.keys, sparsity) for start in range(0, len(queries), _BATCH)]
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)


@functools.partial(jax.jit, static_argnums=2)
def _votes(signals: jax.Array, found: Neighbors, sparsity: int) -> jax.Array:
    """The votes P Y, (M, C). Ties of more columns than are listed are left to the answer."""
    return neighbors.weighted_sum(signals, neighbors.reduce_sparsity(found, sparsity))


@jax.jit
def _right(
    logits: jax.Array, votes: jax.Array, labels: jax.Array, weights: jax.Array, epsilons: jax.Array
) -> jax.Array:
    """How many images are right under each epsilon and weight, (E, W)."""

    def count(setting: tuple[jax.Array, jax.Array]) -> jax.Array:
        epsilon, weight = setting
        return jnp.sum(jnp.argmax(neighbors.combine(logits, votes, weight, epsilon), -1) == labels)

    pairs = jnp.repeat(epsilons, len(weights)), jnp.tile(weights, len(epsilons))
    return jax.lax.map(count, pairs).reshape(len(epsilons), len(weights))


def evaluate(bank: Bank, images: Embedded, labels: np.ndarray) -> dict[str, Any]:
    """What a student answers with a bank for N images: percent right, the classes predicted, and what the graph does.

    Returns:
      `accuracy`, `predicted` (N,), and `diagnostics` as of `graph.diagnostics`; an image has no weight on itself.
      `accuracy_of_neighbors` is the percentage that is right by the votes alone.
    """
    predicted, totals = [], collections.defaultdict[str, float](float)
    for start in range(0, len(labels), _BATCH):
        part = slice(start, start + _BATCH)
        features = images.features[bank.settings.space][part]
        classes, facts = _answers(bank, images.logits[part], features, labels[part])
        predicted.append(np.asarray(classes))
        for name, value in facts.items():
            totals[name] += float(value) * len(classes) / len(labels)
    classes = np.concatenate(predicted)
    # By chance, an image would find its class as often as it is in the bank, not among its neighbours.
    counts = np.bincount(np.asarray(bank.labels), minlength=int(labels.max()) + 1)
    totals["label_agreement_chance"] = float(np.mean(counts[labels]) / len(bank.labels))
    accuracy = 100 * int(np.sum(classes == labels)) / len(labels)
    return {"accuracy": accuracy, "predicted": classes, "diagnostics": dict(totals)}


@jax.jit
def _answers(
    bank: Bank, logits: jax.Array, features: jax.Array, labels: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    answer = neighbors.answer(bank, logits, features)
    nowhere = jnp.full(labels.shape, -1)  # an image is none of its columns
    column_labels = bank.labels[answer.neighbors.columns]
    facts = graph.diagnostics(answer.neighbors.weights, nowhere, labels, column_labels)
    facts["accuracy_of_neighbors"] = 100 * jnp.mean(jnp.argmax(answer.votes, -1) == labels)
    return jnp.argmax(answer.logits, -1), facts
