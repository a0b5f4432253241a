"""Evaluates a student with the training-set graph. Its settings are chosen on held-out images.

The bank contains nothing about the held-out images, so they are as new to it as test images.
"""

import collections
import itertools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cnn2gnn_jax import graph, neighbors
from cnn2gnn_jax import run as runs
from cnn2gnn_jax.evaluation.choice import BATCH, Choice, Embedded, Grid, choose, sparsities
from cnn2gnn_jax.evaluation.outputs import by_batches, concatenated
from cnn2gnn_jax.inference import TRAINING_SET
from cnn2gnn_jax.neighbors import Bank, Settings
from cnn2gnn_jax.run import Run
from cnn2gnn_jax.runtime import processes
from cnn2gnn_jax.runtime.console import log
from cnn2gnn_jax.runtime.devices import ONE, Devices
from cnn2gnn_jax.runtime.errors import UserError
from cnn2gnn_jax.training import bank as stored_banks
from cnn2gnn_jax.training.bank import HeldOut, StoredBank
from cnn2gnn_jax.training.model import TrainedModel
from cnn2gnn_jax.training.state import TrainState, head_rows
from cnn2gnn_jax.training.task import Task
from cnn2gnn_jax.training.tasks import student_name


def embed(model: TrainedModel, images: np.ndarray, devices: Devices = ONE) -> Embedded:
    """Computes the logits and features of a student for raw inputs (N, ...)."""
    return Embedded(*concatenated(by_batches(TrainedModel.logits_and_features, model, images, devices)))


def keeps_bank(run: Run, task: Task) -> bool:
    """Whether the bank of this student is stored: that of the first seed is, for `predict` and `export`."""
    return "training_set" in run.config.evaluate and task.seed == run.config.seed


def entry(
    run: Run,
    task: Task,
    state: TrainState,
    model: TrainedModel,
    inputs: Mapping[str, np.ndarray],
    teacher_logits: np.ndarray | None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Evaluates a student with the training-set graph, and stores its bank.

    Args:
      run: the run.
      task, state, model: the student's task, its trained state, and its trained model.
      inputs: the student's raw inputs by split.
      teacher_logits: the teacher's logits for the training images, (N, C); None without a teacher.

    Returns:
      The entry for `accuracies` in results.json, and the settings with the facts of their choice.
    """
    section, holdout, held_out = run.config.evaluate.training_set, run.dataset.holdout, None
    # The logits of training images are not needed. With a learned graph they would take an evaluation by Mechanism 1.
    train = concatenated(by_batches(TrainedModel.feature_spaces, model, inputs["train"], run.devices))
    if model.graph == "learned":
        rows = head_rows(task, state, np.arange(task.rows), run.devices)
        assert rows is not None
        train["head"] = np.column_stack([rows.kernel, rows.bias])
    grid = _grid(section, train, teacher_logits)
    banks = _banks(run, grid, train, teacher_logits)
    if holdout is None:
        [settings] = (Settings(*values, section.recall) for values in itertools.product(*grid))
        choice = Choice(settings, None, None, None)
    else:
        embedded = embed(model, inputs["holdout"], run.devices)
        choice = choose(embedded, holdout.labels, banks, grid)
        held_out = HeldOut(embedded.logits, embedded.features[choice.settings.space], holdout.labels)
    log(f"{student_name(task)}: the training-set graph has {choice.settings}")
    bank = banks[choice.settings.space, choice.settings.signal].replace(settings=choice.settings)
    if keeps_bank(run, task):
        folder = run.workdir / stored_banks.BANK / student_name(task)
        files = run.dataset.train.files
        stored = StoredBank(bank, files, held_out, choice.accuracy_two_fold, choice.accuracy_alone)
        processes.on_first(lambda: stored_banks.save(folder, stored, runs.evaluation_fingerprint(run)))
    result = evaluate(bank, embed(model, inputs[run.config.evaluate.split], run.devices), run.evaluated.labels)
    facts = {"mechanism": TRAINING_SET, "batch_order": None, "graph": model.graph}
    return {**facts, **result}, {
        "graph": model.graph,
        "seed": task.seed,
        **choice._asdict(),
        "settings": choice.settings._asdict(),
    }


def _grid(section: Any, train: Mapping[str, np.ndarray], teacher_logits: np.ndarray | None) -> Grid:
    """The settings to try: those of the config that this student has.

    Raises:
      UserError: the student has none of the spaces or signals; or see `choice.sparsities`.
    """
    spaces = tuple(space for space in section.spaces if space in train)
    signals = tuple(signal for signal in section.signals if signal == "labels" or teacher_logits is not None)
    for name, usable, available in (("spaces", spaces, ", ".join(train)), ("signals", signals, "labels")):
        if not usable:
            configured = ", ".join(section[name])
            raise UserError(
                f"evaluate.training_set.{name} is {configured}, but this student has only {available}: use these"
            )
    grid = Grid(spaces, signals, section.sparsities, section.weights, section.epsilons)
    return grid._replace(sparsities=tuple(sparsities(grid, len(train[spaces[0]]))))


def _banks(
    run: Run, grid: Grid, train: Mapping[str, np.ndarray], teacher_logits: np.ndarray | None
) -> dict[tuple[str, str], Bank]:
    """A bank for each space and signal of a grid. Sparsity, weight and epsilon are not chosen yet."""
    labels = jnp.asarray(run.dataset.train.labels)
    banks: dict[tuple[str, str], Bank] = {}
    signals = {"labels": jax.nn.one_hot(labels, len(run.dataset.classes), dtype=bool)}
    if teacher_logits is not None:
        signals["teacher"] = jax.nn.softmax(jnp.asarray(teacher_logits, jnp.float32)).astype(jnp.float16)
    for space in grid.spaces:
        section = run.config.evaluate.training_set
        unset = Settings(space, "labels", 1, 0.0, 1.0, section.recall)
        bank = neighbors.make_bank(jnp.asarray(train[space]), labels, signals["labels"], unset, section.key_type)
        banks |= {(space, signal): bank.replace(signals=signals[signal]) for signal in grid.signals}
    return banks


def evaluate(bank: Bank, images: Embedded, labels: np.ndarray) -> dict[str, Any]:
    """Evaluates a student with a bank on N images.

    Args:
      bank: the training images.
      images: the logits and features of the N images.
      labels: (N,), the classes of the images.

    Returns:
      `accuracy` in percent, `predicted`, the classes (N,), and `diagnostics`: those of `graph.diagnostics`, where no
      image has a weight on itself; `accuracy_of_neighbors`, the accuracy of the votes alone in percent; and for an
      approximate search `recall`, the share of the s nearest training images that it finds.
    """
    predicted, predicted_by_votes, totals = [], [], collections.defaultdict[str, float](float)
    for start in range(0, len(labels), BATCH):
        part = slice(start, start + BATCH)
        features = images.features[bank.settings.space][part]
        classes, classes_of_votes, facts = _predict(bank, images.logits[part], features, labels[part])
        predicted.append(np.asarray(classes))
        predicted_by_votes.append(np.asarray(classes_of_votes))
        for name, value in facts.items():
            totals[name] += float(value) * len(classes) / len(labels)
    classes = np.concatenate(predicted)
    totals["accuracy_of_neighbors"] = _accuracy(np.concatenate(predicted_by_votes), labels)
    # By chance, the neighbors of an image would have its class as often as the images in the bank do.
    counts = np.bincount(np.asarray(bank.labels), minlength=int(labels.max()) + 1)
    totals["label_agreement_chance"] = float(np.mean(counts[labels]) / len(bank.labels))
    return {"accuracy": _accuracy(classes, labels), "predicted": classes, "diagnostics": dict(totals)}


def _accuracy(classes: np.ndarray, labels: np.ndarray) -> float:
    return 100 * int(np.sum(classes == labels)) / len(labels)


@jax.jit
def _predict(
    bank: Bank, logits: jax.Array, features: jax.Array, labels: jax.Array
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    prediction = neighbors.predict(bank, logits, features)
    columns, sparsity = prediction.neighbors.columns, bank.settings.sparsity
    no_column = jnp.full(labels.shape, -1)  # The images are not in the bank.
    facts = graph.diagnostics(prediction.neighbors.weights, no_column, labels, bank.labels[columns])
    if bank.settings.recall < 1:
        exact = neighbors.search(neighbors.queries(bank, features), bank.keys, sparsity).columns
        is_found = (exact[:, :sparsity, None] == columns[:, None, :sparsity]).any(-1)
        facts["recall"] = jnp.mean(is_found, dtype=jnp.float32)
    return jnp.argmax(prediction.logits, -1), jnp.argmax(prediction.votes, -1), facts
