"""Evaluates the training-set graph: chooses its settings on held-out images, and then measures its accuracy.

The bank does not contain the held-out images, so that they are as new to it as test images.
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
    """Whether the bank of this student is stored: that of the first seed, whose student classifies new images."""
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
      run: the run, with the candidate settings.
      task, state, model: the task of the student, its trained state, and its trained model.
      inputs: its raw inputs by split, (N, ...) each.
      teacher_logits: the teacher's logits for the training images, (N, C); None without a teacher.

    Returns:
      The entry of `accuracies`, and the facts about the choice of the settings.
    """
    section, holdout, held_out = run.config.evaluate.training_set, run.dataset.holdout, None
    # Only the features: with a learned graph, logits would need a pass one by one.
    train = concatenated(by_batches(TrainedModel.feature_spaces, model, inputs["train"], run.devices))
    if model.graph == "learned":
        rows = head_rows(task, state, np.arange(task.rows), run.devices)
        assert rows is not None
        train["head"] = np.column_stack([rows.kernel, rows.bias])
    grid = _grid(section, train, teacher_logits)
    banks = _banks(run, grid, train, teacher_logits)
    if holdout is None:
        [settings] = (Settings(*values) for values in itertools.product(*grid))
        choice = Choice(settings, None, None, None)
    else:
        embedded = embed(model, inputs["holdout"], run.devices)
        choice = choose(embedded, holdout.labels, banks, grid)
        held_out = HeldOut(embedded.logits, embedded.features[choice.settings.space], holdout.labels)
    settings = choice.settings
    log(f"{student_name(task)}: the training-set graph has {settings}")
    bank = banks[settings.space, settings.signal].replace(settings=settings)
    if keeps_bank(run, task):
        folder = run.workdir / stored_banks.BANK / student_name(task)
        accuracies = choice.accuracy_two_fold, choice.accuracy_alone
        stored = StoredBank(bank, run.dataset.train.files, held_out, *accuracies)
        processes.on_first(lambda: stored_banks.save(folder, stored, runs.evaluation_fingerprint(run)))
    result = evaluate(bank, embed(model, inputs[run.config.evaluate.split], run.devices), run.evaluated.labels)
    facts = {"mechanism": TRAINING_SET, "batch_order": None, "graph": model.graph}
    chosen = {**choice._asdict(), "settings": settings._asdict()}
    return {**facts, **result}, {"graph": model.graph, "seed": task.seed, **chosen}


def _grid(section: Any, train: Mapping[str, np.ndarray], teacher_logits: np.ndarray | None) -> Grid:
    """The candidate settings that this student supports."""
    spaces = tuple(space for space in section.spaces if space in train)
    signals = tuple(signal for signal in section.signals if signal == "labels" or teacher_logits is not None)
    for name, candidates, supported in (("spaces", spaces, ", ".join(train)), ("signals", signals, "labels")):
        if not candidates:
            values = ", ".join(section[name])
            problem = f"evaluate.training_set.{name} is {values}, but this student only has {supported}"
            raise UserError(f"{problem}: choose among these")
    grid = Grid(spaces, signals, section.sparsities, section.weights, section.epsilons)
    return grid._replace(sparsities=tuple(sparsities(grid, len(train[spaces[0]]))))


def _banks(
    run: Run, grid: Grid, train: Mapping[str, np.ndarray], teacher_logits: np.ndarray | None
) -> dict[tuple[str, str], Bank]:
    """Makes a bank for each space and signal of a grid, with placeholders for the other settings."""
    labels = jnp.asarray(run.dataset.train.labels)
    banks: dict[tuple[str, str], Bank] = {}
    signals = {"labels": jax.nn.one_hot(labels, len(run.dataset.classes), dtype=bool)}
    if teacher_logits is not None:
        signals["teacher"] = jax.nn.softmax(jnp.asarray(teacher_logits, jnp.float32)).astype(jnp.float16)
    for space in grid.spaces:
        placeholder = Settings(space, "labels", 1, 0.0, 1.0)
        key_type = run.config.evaluate.training_set.key_type
        bank = neighbors.make_bank(jnp.asarray(train[space]), labels, signals["labels"], placeholder, key_type)
        banks |= {(space, signal): bank.replace(signals=signals[signal]) for signal in grid.signals}
    return banks


def evaluate(bank: Bank, images: Embedded, labels: np.ndarray) -> dict[str, Any]:
    """Evaluates a student with a bank on N images.

    Args:
      bank: the bank, with its settings.
      images: the student's logits and features for the images.
      labels: (N,), their classes.

    Returns:
      `accuracy` in percent; `predicted`, (N,); and `diagnostics` as in `graph.diagnostics`, with
      `accuracy_of_neighbors`, the accuracy of the votes alone.
    """
    predicted, totals = [], collections.defaultdict[str, float](float)
    for start in range(0, len(labels), BATCH):
        part = slice(start, start + BATCH)
        features = images.features[bank.settings.space][part]
        classes, facts = _answers(bank, images.logits[part], features, labels[part])
        predicted.append(np.asarray(classes))
        for name, value in facts.items():
            totals[name] += float(value) * len(classes) / len(labels)
    classes = np.concatenate(predicted)
    # The agreement of columns drawn at random from the whole bank, not from the neighbours.
    counts = np.bincount(np.asarray(bank.labels), minlength=int(labels.max()) + 1)
    totals["label_agreement_chance"] = float(np.mean(counts[labels]) / len(bank.labels))
    accuracy = 100 * int(np.sum(classes == labels)) / len(labels)
    return {"accuracy": accuracy, "predicted": classes, "diagnostics": dict(totals)}


@jax.jit
def _answers(
    bank: Bank, logits: jax.Array, features: jax.Array, labels: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    answer = neighbors.answer(bank, logits, features)
    own = jnp.full(labels.shape, -1)  # the images are not among the columns
    column_labels = bank.labels[answer.neighbors.columns]
    facts = graph.diagnostics(answer.neighbors.weights, own, labels, column_labels)
    facts["accuracy_of_neighbors"] = 100 * jnp.mean(jnp.argmax(answer.votes, -1) == labels)
    return jnp.argmax(answer.logits, -1), facts
