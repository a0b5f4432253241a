"""What a trained student is worth: its anchors, and its accuracies under every protocol, kept on disk."""

import time
from typing import Any

import numpy as np

from cnn2gnn_jax import config as configs
from cnn2gnn_jax import gnn
from cnn2gnn_jax.evaluation import protocols
from cnn2gnn_jax.run import Run
from cnn2gnn_jax.runtime import artifact, processes, storage
from cnn2gnn_jax.runtime.console import say
from cnn2gnn_jax.training.fit import Load
from cnn2gnn_jax.training.metrics import last_epoch_mean
from cnn2gnn_jax.training.state import TrainState, head_rows
from cnn2gnn_jax.training.task import Task

EXAMPLES = 10  # test images whose neighbours are recorded
# The format is also raised when other things are recorded.
KIND = artifact.Kind("an evaluation", format=5, remake="run the same command again")


def anchors_of(
    run: Run, task: Task, state: TrainState, train_inputs: np.ndarray
) -> tuple[protocols.Anchors, list[np.ndarray]]:
    """The anchors of the protocol for the task's seed, and their training indices."""
    assert isinstance(task.module, gnn.GraphStudent)
    labels = run.dataset.train.labels
    indices = protocols.anchor_sets(labels, run.config.evaluate, task.seed)
    columns = [
        protocols.anchor_columns(
            task.module,
            state.variables,
            train_inputs[index],
            head_rows(task, state, index, run.devices),
            task.mean,
            task.std,
        )
        for index in indices
    ]
    return protocols.Anchors(columns, [labels[index] for index in indices]), indices


def held_out_accuracy(
    run: Run, task: Task, state: TrainState, train_inputs: np.ndarray, inputs: np.ndarray, labels: np.ndarray
) -> float:
    """Percent right on held-out images, for choosing an epoch."""
    variables = state.variables
    if not isinstance(task.module, gnn.GraphStudent):
        logits, _ = protocols.network_outputs(task.module, variables, inputs, task.mean, task.std, devices=run.devices)
        return protocols.accuracy(logits, labels)
    anchors, _ = anchors_of(run, task, state, train_inputs)
    return protocols.one_by_one_accuracy(
        task.module, variables, anchors, inputs, labels, task.mean, task.std, run.devices
    )


def _on_holdout(
    run: Run, task: Task, state: TrainState, inputs: dict[str, np.ndarray], graph: str | None
) -> dict[str, Any] | None:
    """A student's accuracy on held-out training images, by which its graph can be chosen; None without any."""
    if run.dataset.holdout is None:
        return None
    accuracy = held_out_accuracy(run, task, state, inputs["train"], inputs["holdout"], run.dataset.holdout.labels)
    return {"graph": graph, "seed": task.seed, "accuracy": accuracy}


def evaluate_student(run: Run, task: Task, name: str, load: Load, inputs: dict[str, np.ndarray]) -> dict[str, Any]:
    """A student's accuracies under every protocol, computed unless they are on disk under `name`.

    `inputs` are its raw inputs, by split. Of the result, `predicted` (E, N) are the classes of the N evaluated images
    under each of the E `accuracies`.
    """
    folder = run.workdir / "evaluations" / name
    fingerprint = storage.fingerprint([run.fingerprint, configs.plain(run.config.evaluate)])

    def make() -> None:
        result, predicted = _evaluated(run, task, name, load, inputs)
        processes.on_first(lambda: artifact.write(folder, KIND, fingerprint, result, {"predicted": predicted}))

    kept = artifact.ensure(folder, KIND, fingerprint, make, replaces=True)
    return {**kept.facts, "predicted": kept.arrays["predicted"]}


def _evaluated(
    run: Run, task: Task, name: str, load: Load, inputs: dict[str, np.ndarray]
) -> tuple[dict[str, Any], np.ndarray]:
    """A student's accuracies and what is kept beside them, and its predictions."""
    say(f"evaluating {name}")
    start, state = time.monotonic(), load()
    section = run.config.evaluate
    images, labels = inputs[section.split], run.evaluated.labels
    variables = state.variables
    common = {"method": run.config.method, "seed": task.seed, "epoch": task.recipe.epoch}
    entries: list[dict[str, Any]] = []
    examples: list[dict[str, Any]] = []
    predicted: list[np.ndarray] = []
    if isinstance(task.module, gnn.GraphStudent):
        anchors, indices = anchors_of(run, task, state, inputs["train"])
        settings = [(task.module.graph, task.module)]
        if task.module.graph != "off":
            settings.append(("off_at_test", task.module.clone(graph="off")))
            if task.module.graph in gnn.SPARSE_GRAPHS:
                examples = protocols.neighbor_examples(
                    task.module,
                    variables,
                    anchors.columns[0],
                    indices[0],
                    anchors.labels[0],
                    images,
                    labels,
                    protocols.one_of_each_class(labels, EXAMPLES),
                    task.mean,
                    task.std,
                )
        for graph, module in settings:
            found_entries = protocols.graph_protocols(
                module,
                variables,
                anchors,
                images,
                labels,
                task.mean,
                task.std,
                batch_size=section.batch_size,
                order_seed=protocols.order_seed(section, task.seed),
                reading=section.reading,
                devices=run.devices,
            )
            predicted += [entry.pop("predicted") for entry in found_entries]
            if graph not in ("off", "off_at_test"):
                in_training = last_epoch_mean(run.workdir / "metrics.jsonl", name, "self_weight")
                for entry in found_entries:
                    entry["diagnostics"] |= in_training
            entries += [{**common, "graph": graph, **entry} for entry in found_entries]
    else:
        logits, _ = protocols.network_outputs(task.module, variables, images, task.mean, task.std, devices=run.devices)
        accuracy = protocols.accuracy(logits, labels)
        predicted.append(np.argmax(logits, axis=-1))
        entries = [{**common, "graph": None, "mechanism": None, "batch_order": None, "accuracy": accuracy}]
    seconds = round(time.monotonic() - start, 3)
    result = {
        # Apart from the accuracies, which an unbroken run and a broken one have in common.
        "inference_seconds": [entry.pop("seconds", None) for entry in entries],
        "accuracies": entries,
        "holdout": _on_holdout(run, task, state, inputs, entries[0]["graph"]),
        "examples": examples,
        "seconds": seconds,
    }
    classes = np.stack(predicted).astype(np.min_scalar_type(len(run.dataset.classes) - 1))
    return result, classes
