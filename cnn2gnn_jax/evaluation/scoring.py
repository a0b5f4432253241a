"""Evaluation of a trained student: its anchors, and its accuracies under every protocol, stored on disk."""

import time
from typing import Any

import numpy as np

from cnn2gnn_jax import gnn
from cnn2gnn_jax import run as runs
from cnn2gnn_jax.data import batches
from cnn2gnn_jax.evaluation import protocols, training_set
from cnn2gnn_jax.evaluation.outputs import accuracy, network_outputs
from cnn2gnn_jax.run import Run
from cnn2gnn_jax.runtime import artifact, processes
from cnn2gnn_jax.runtime.console import log
from cnn2gnn_jax.training import bank as banks
from cnn2gnn_jax.training.fit import Load
from cnn2gnn_jax.training.metrics import last_epoch_mean
from cnn2gnn_jax.training.model import TrainedModel, trained_model
from cnn2gnn_jax.training.state import TrainState
from cnn2gnn_jax.training.task import Task
from cnn2gnn_jax.training.tasks import student_name

EXAMPLES = 10  # test images whose neighbors are recorded
# The format is also raised when an evaluation records something else.
KIND = artifact.Kind("an evaluation", format=7, remake="run the same command again")


def model_of(run: Run, task: Task, state: TrainState, train_inputs: np.ndarray) -> TrainedModel:
    """Makes the trained model of a task; a graph student gets the anchors that its seed selects.

    Args:
      run: the run.
      task: the task that was trained.
      state: its trained state.
      train_inputs: raw inputs of the training images, (N, ...).
    """
    train, anchor_indices = run.dataset.train, []
    if task.is_graph:
        anchor_indices = batches.anchor_sets(train.labels, run.config.evaluate, task.seed)
    anchors = [(index, train.labels[index], train_inputs[index]) for index in anchor_indices]
    return trained_model(task, state, run.dataset.classes, anchors, devices=run.devices)


def held_out_accuracy(run: Run, model: TrainedModel, inputs: np.ndarray) -> float:
    """The accuracy in percent on the held-out images, whose raw inputs are `inputs`, (N, ...)."""
    assert run.dataset.holdout is not None
    labels = run.dataset.holdout.labels
    if model.is_graph:
        return protocols.one_by_one_accuracy(model, inputs, labels, run.devices)
    return accuracy(network_outputs(model, inputs, run.devices)[0], labels)


def evaluate_student(
    run: Run, task: Task, load: Load, inputs: dict[str, np.ndarray], teacher_logits: np.ndarray | None = None
) -> dict[str, Any]:
    """Evaluates a student under every protocol, unless its evaluation is on disk.

    Args:
      run: the run.
      task: the student's task.
      load: loads its trained state.
      inputs: raw inputs by split, (N, ...) each.
      teacher_logits: the teacher's logits for the training images, (N, C), or None.

    Returns:
      The facts of `results.json`, among them E `accuracies`; and `predicted`, (E, N), the predicted classes of the N
      evaluated images under each of them.
    """
    name = student_name(task)
    folder = run.workdir / "evaluations" / name
    fingerprint = runs.evaluation_fingerprint(run)

    def make() -> None:
        facts, predicted = _evaluate(run, task, load(), inputs, teacher_logits)
        processes.on_first(lambda: artifact.write(folder, KIND, fingerprint, facts, {"predicted": predicted}))

    if training_set.keeps_bank(run, task):  # A missing or damaged bank is made again together with the evaluation.
        artifact.ensure(run.workdir / banks.BANK / name, banks.KIND, fingerprint, make, replaces=True)
    evaluation = artifact.ensure(folder, KIND, fingerprint, make, replaces=True)
    return {**evaluation.facts, "predicted": evaluation.arrays["predicted"]}


def _evaluate(
    run: Run, task: Task, state: TrainState, inputs: dict[str, np.ndarray], teacher_logits: np.ndarray | None
) -> tuple[dict[str, Any], np.ndarray]:
    """The facts of a student's evaluation, and its predicted classes, (E, N)."""
    log(f"evaluating {student_name(task)}")
    start = time.monotonic()
    model = model_of(run, task, state, inputs["train"])
    images = inputs[run.config.evaluate.split]
    entries = _graph_entries(run, task, model, images) if model.is_graph else [_network_entry(run, model, images)]
    examples, training_set_graph = _examples(run, model, images), None
    if "training_set" in run.config.evaluate:
        entry, training_set_graph = training_set.entry(run, task, state, model, inputs, teacher_logits)
        entries.append(entry)
    predicted = [entry.pop("predicted") for entry in entries]
    common = {"method": run.config.method, "seed": task.seed, "epoch": task.recipe.epoch}
    seconds, holdout = round(time.monotonic() - start, 3), None
    if run.dataset.holdout is not None:
        held_out = held_out_accuracy(run, model, inputs["holdout"])
        holdout = {"graph": model.graph, "seed": task.seed, "accuracy": held_out}
    facts = {
        # Separate from the accuracies, which are the same in an interrupted run and an uninterrupted one.
        "inference_seconds": [entry.pop("seconds", None) for entry in entries],
        "accuracies": [{**common, **entry} for entry in entries],
        "holdout": holdout,
        "training_set": training_set_graph,
        "examples": examples,
        "seconds": seconds,
    }
    classes = np.stack(predicted).astype(np.min_scalar_type(len(run.dataset.classes) - 1))
    return facts, classes


def _network_entry(run: Run, model: TrainedModel, images: np.ndarray) -> dict[str, Any]:
    """The entry of `accuracies` of a CNN."""
    logits, _ = network_outputs(model, images, run.devices)
    entry = {"graph": None, "mechanism": None, "batch_order": None, "accuracy": accuracy(logits, run.evaluated.labels)}
    return {**entry, "predicted": np.argmax(logits, axis=-1)}


def _graph_entries(run: Run, task: Task, model: TrainedModel, images: np.ndarray) -> list[dict[str, Any]]:
    """The entries of `accuracies` of a graph student: with its graph, and with A = I instead."""
    section, labels = run.config.evaluate, run.evaluated.labels
    order_seed = batches.order_seed(section, task.seed)
    settings = protocols.Settings(section.batch_size, order_seed, section.mechanism2_graph, run.devices)
    entries = protocols.graph_protocols(model, images, labels, settings)
    if model.graph == "off":
        return [{"graph": "off", **entry} for entry in entries]
    in_training = last_epoch_mean(run.workdir / "metrics.jsonl", student_name(task), "self_weight")
    for entry in entries:
        entry["diagnostics"] |= in_training
    off = protocols.graph_protocols(model.replace(module=model.module.clone(graph="off")), images, labels, settings)
    return [{"graph": model.graph, **entry} for entry in entries] + [{"graph": "off_at_test", **entry} for entry in off]


def _examples(run: Run, model: TrainedModel, images: np.ndarray) -> list[dict[str, Any]]:
    """The neighbors of an image of each class, where the graph is sparse."""
    if model.graph not in gnn.SPARSE_GRAPHS:
        return []
    labels = run.evaluated.labels
    return protocols.neighbor_examples(model, images, labels, protocols.one_of_each_class(labels, EXAMPLES))
