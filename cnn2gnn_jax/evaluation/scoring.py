"""What a trained student is worth: its anchors, and its accuracies under every protocol, kept on disk."""

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
from cnn2gnn_jax.runtime.console import say
from cnn2gnn_jax.training import bank as banks
from cnn2gnn_jax.training.fit import Load
from cnn2gnn_jax.training.metrics import last_epoch_mean
from cnn2gnn_jax.training.model import TrainedModel, trained_model
from cnn2gnn_jax.training.state import TrainState
from cnn2gnn_jax.training.task import Task
from cnn2gnn_jax.training.tasks import student_name

EXAMPLES = 10  # test images whose neighbours are recorded
# The format is also raised when other things are recorded.
KIND = artifact.Kind("an evaluation", format=7, remake="run the same command again")


def model_of(run: Run, task: Task, state: TrainState, train_inputs: np.ndarray) -> TrainedModel:
    """The model that a task of the run ended with; of a graph student with the anchors that its seed chooses."""
    train, sets = run.dataset.train, []
    if task.is_graph:
        sets = batches.anchor_sets(train.labels, run.config.evaluate, task.seed)
    anchors = [(index, train.labels[index], train_inputs[index]) for index in sets]
    return trained_model(task, state, run.dataset.classes, anchors, devices=run.devices)


def held_out_accuracy(run: Run, model: TrainedModel, inputs: np.ndarray) -> float:
    """Percent right on the held-out images, whose raw inputs are `inputs`, for choosing an epoch or a graph."""
    assert run.dataset.holdout is not None
    labels = run.dataset.holdout.labels
    if model.is_graph:
        return protocols.one_by_one_accuracy(model, inputs, labels, run.devices)
    return accuracy(network_outputs(model, inputs, run.devices)[0], labels)


def evaluate_student(
    run: Run, task: Task, load: Load, inputs: dict[str, np.ndarray], teacher_logits: np.ndarray | None = None
) -> dict[str, Any]:
    """A student's accuracies under every protocol, computed unless they are on disk under the student's name.

    `inputs` are its raw inputs by split, `teacher_logits` (N, C) are those of the training images. Of the result,
    `predicted` (E, N) are the classes of the N evaluated images under each of the E `accuracies`.
    """
    name = student_name(task)
    folder = run.workdir / "evaluations" / name
    fingerprint = runs.evaluation_fingerprint(run)

    def make() -> None:
        result, predicted = _evaluated(run, task, load(), inputs, teacher_logits)
        processes.on_first(lambda: artifact.write(folder, KIND, fingerprint, result, {"predicted": predicted}))

    if training_set.keeps_bank(run, task):  # one that is missing or damaged since is made anew with the evaluation
        artifact.ensure(run.workdir / banks.BANK / name, banks.KIND, fingerprint, make, replaces=True)
    kept = artifact.ensure(folder, KIND, fingerprint, make, replaces=True)
    return {**kept.facts, "predicted": kept.arrays["predicted"]}


def _evaluated(
    run: Run, task: Task, state: TrainState, inputs: dict[str, np.ndarray], teacher_logits: np.ndarray | None
) -> tuple[dict[str, Any], np.ndarray]:
    """A student's accuracies and what is kept beside them, and its predictions."""
    say(f"evaluating {student_name(task)}")
    start = time.monotonic()
    model = model_of(run, task, state, inputs["train"])
    images = inputs[run.config.evaluate.split]
    entries = _graph_entries(run, task, model, images) if model.is_graph else [_network_entry(run, model, images)]
    examples, chosen = _examples(run, model, images), None
    if "training_set" in run.config.evaluate:
        entry, chosen = training_set.entry(run, task, state, model, inputs, teacher_logits)
        entries.append(entry)
    predicted = [entry.pop("predicted") for entry in entries]
    common = {"method": run.config.method, "seed": task.seed, "epoch": task.recipe.epoch}
    seconds, holdout = round(time.monotonic() - start, 3), None
    if run.dataset.holdout is not None:
        held_out = held_out_accuracy(run, model, inputs["holdout"])
        holdout = {"graph": model.graph, "seed": task.seed, "accuracy": held_out}
    result = {
        # Apart from the accuracies, which an unbroken run and a broken one have in common.
        "inference_seconds": [entry.pop("seconds", None) for entry in entries],
        "accuracies": [{**common, **entry} for entry in entries],
        "holdout": holdout,
        "training_set": chosen,
        "examples": examples,
        "seconds": seconds,
    }
    classes = np.stack(predicted).astype(np.min_scalar_type(len(run.dataset.classes) - 1))
    return result, classes


def _network_entry(run: Run, model: TrainedModel, images: np.ndarray) -> dict[str, Any]:
    """The accuracy of a CNN."""
    logits, _ = network_outputs(model, images, run.devices)
    facts = {"graph": None, "mechanism": None, "batch_order": None, "accuracy": accuracy(logits, run.evaluated.labels)}
    return {**facts, "predicted": np.argmax(logits, axis=-1)}


def _graph_entries(run: Run, task: Task, model: TrainedModel, images: np.ndarray) -> list[dict[str, Any]]:
    """The accuracies of a graph student with its graph, and with A = I in its place."""
    section, labels = run.config.evaluate, run.evaluated.labels
    order_seed = batches.order_seed(section, task.seed)
    settings = protocols.Settings(section.batch_size, order_seed, section.reading, run.devices)
    entries = protocols.graph_protocols(model, images, labels, settings)
    if model.graph == "off":
        return [{"graph": "off", **entry} for entry in entries]
    in_training = last_epoch_mean(run.workdir / "metrics.jsonl", student_name(task), "self_weight")
    for entry in entries:
        entry["diagnostics"] |= in_training
    off = protocols.graph_protocols(model.replace(module=model.module.clone(graph="off")), images, labels, settings)
    return [{"graph": model.graph, **entry} for entry in entries] + [{"graph": "off_at_test", **entry} for entry in off]


def _examples(run: Run, model: TrainedModel, images: np.ndarray) -> list[dict[str, Any]]:
    """The neighbours of an image of each class, where each image chooses among anchors."""
    if model.graph not in gnn.SPARSE_GRAPHS:
        return []
    labels = run.evaluated.labels
    return protocols.neighbor_examples(model, images, labels, protocols.one_of_each_class(labels, EXAMPLES))
