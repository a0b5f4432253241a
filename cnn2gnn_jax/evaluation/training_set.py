"""The graph over the training set, evaluated: its settings are chosen on held-out images, then read on others.

Nothing about the held-out images is in the bank, so that they stand to it as test images do.
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
    """What a student makes of raw inputs, (N, ...), in their order."""
    return Embedded(*concatenated(by_batches(TrainedModel.logits_and_features, model, images, devices)))


def keeps_bank(run: Run, task: Task) -> bool:
    """Whether the bank of this student is kept: of each graph setting that of the first student, which serves."""
    return "training_set" in run.config.evaluate and task.seed == run.config.seed


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
    section, holdout, held_out = run.config.evaluate.training_set, run.dataset.holdout, None
    # Without their logits, for which a learned graph would answer one by one.
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
        files = run.dataset.train.files
        stored = StoredBank(bank, files, held_out, choice.accuracy_two_fold, choice.accuracy_alone)
        processes.on_first(lambda: stored_banks.save(folder, stored, runs.evaluation_fingerprint(run)))
    result = evaluate(bank, embed(model, inputs[run.config.evaluate.split], run.devices), run.evaluated.labels)
    facts = {"mechanism": TRAINING_SET, "batch_order": None, "graph": model.graph}
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
    grid = Grid(spaces, signals, section.sparsities, section.weights, section.epsilons)
    return grid._replace(sparsities=tuple(sparsities(grid, len(train[spaces[0]]))))


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


def evaluate(bank: Bank, images: Embedded, labels: np.ndarray) -> dict[str, Any]:
    """What a student answers with a bank for N images: percent right, the classes predicted, and what the graph does.

    Returns:
      `accuracy`, `predicted` (N,), and `diagnostics` as of `graph.diagnostics`; an image has no weight on itself.
      `accuracy_of_neighbors` is the percentage that is right by the votes alone.
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
    # By chance, an image would find its class as often as it is in the bank, not among its neighbours.
    counts = np.bincount(np.asarray(bank.labels), minlength=int(labels.max()) + 1)
    totals["label_agreement_chance"] = float(np.mean(counts[labels]) / len(bank.labels))
    accuracy = 100 * int(np.sum(classes == labels)) / len(labels)
    return {"accuracy": accuracy, "predicted": classes, "diagnostics": dict(totals)}


@jax.jit
def _answers(
    bank: Bank, logits: jax.Array, features: jax.Array, labels: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    answer = neighbors.predict(bank, logits, features)
    nowhere = jnp.full(labels.shape, -1)  # an image is none of its columns
    column_labels = bank.labels[answer.neighbors.columns]
    facts = graph.diagnostics(answer.neighbors.weights, nowhere, labels, column_labels)
    facts["accuracy_of_neighbors"] = 100 * jnp.mean(jnp.argmax(answer.votes, -1) == labels)
    return jnp.argmax(answer.logits, -1), facts
