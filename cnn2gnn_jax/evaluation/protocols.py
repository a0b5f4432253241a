"""The accuracy of a graph student under each protocol: each mechanism and batch order, with graph diagnostics.

A protocol is a function `(model, anchors, batch, mechanism2_graph) -> (prediction, diagnostics)`, which is compiled,
and a row in `PROTOCOLS`.
"""

import collections
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cnn2gnn_jax import graph, inference
from cnn2gnn_jax.data import batches
from cnn2gnn_jax.runtime.devices import ONE, Devices
from cnn2gnn_jax.training.model import Anchors, TrainedModel


class Batch(NamedTuple):
    """B evaluated images: raw inputs (B, ...), labels (B,), and a mask (B,) that is False for padding."""

    inputs: jax.Array
    labels: jax.Array
    mask: jax.Array


Diagnostics = dict[str, jax.Array]
Predict = Callable[[TrainedModel, Anchors, Batch, str], tuple[inference.Prediction, Diagnostics]]


def one_by_one(
    model: TrainedModel, anchors: Anchors, batch: Batch, mechanism2_graph: str
) -> tuple[inference.Prediction, Diagnostics]:
    """Predicts by Mechanism 1: each image is linked to the anchors."""
    del mechanism2_graph
    prediction = inference.one_by_one(model.module, model.variables, anchors.columns, model.inputs(batch.inputs))
    own = jnp.full(batch.labels.shape, anchors.columns.nodes.shape[0])
    # The image's own column comes last; its label must not count as a neighbour's.
    column_labels = jnp.append(anchors.labels, -1)
    return prediction, graph.diagnostics(prediction.adjacency, own, batch.labels, column_labels, batch.mask)


def batch_by_batch(
    model: TrainedModel, anchors: Anchors, batch: Batch, mechanism2_graph: str
) -> tuple[inference.Prediction, Diagnostics]:
    """Predicts by Mechanism 2: the images of the batch are linked as their nearest anchors are."""
    inputs, labels, mask = model.inputs(batch.inputs), batch.labels, batch.mask
    prediction = inference.batch_by_batch(
        model.module, model.variables, anchors.columns, inputs, mask, mechanism2_graph
    )
    return prediction, graph.diagnostics(prediction.adjacency, jnp.arange(labels.shape[0]), labels, labels, mask, mask)


def _anchors(model: TrainedModel) -> Sequence[Anchors]:
    return model.anchors


class Protocol(NamedTuple):
    """How images are classified.

    mechanism: its name in the results.
    batch_order: a key of ORDERS; None where no prediction depends on another evaluated image.
    predict: the function that is compiled.
    columns: returns the batches of training images that images are linked to in turn.
    """

    mechanism: str
    batch_order: str | None
    predict: Predict
    columns: Callable[[TrainedModel], Sequence[Anchors]] = _anchors


PROTOCOLS = (
    Protocol("one_by_one", None, one_by_one),
    Protocol("batch_by_batch", "shuffled", batch_by_batch),
    Protocol("batch_by_batch", "class_sorted", batch_by_batch),
)
ORDERS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "shuffled": lambda labels, seed: batches.shuffled_order(len(labels), seed),
    "class_sorted": lambda labels, seed: batches.class_sorted_order(labels),
}


class Settings(NamedTuple):
    """The settings of all protocols.

    batch_size: the largest number of images in a batch.
    order_seed: the seed of the shuffled order.
    mechanism2_graph: the variant of Mechanism 2, see `inference.batch_by_batch`.
    devices: each computes whole batches.
    """

    batch_size: int = 100
    order_seed: int = 0
    mechanism2_graph: str = inference.MECHANISM2_GRAPHS[0]
    devices: Devices = ONE


def graph_protocols(
    model: TrainedModel, inputs: np.ndarray, labels: np.ndarray, settings: Settings
) -> list[dict[str, Any]]:
    """Evaluates a graph student under each of PROTOCOLS.

    Args:
      model: a graph student; with `graph="off"` every protocol gives the same predictions.
      inputs: raw inputs of the evaluated images, (N, ...).
      labels: their classes, (N,).
      settings: the settings of all protocols.

    Returns:
      An entry for each protocol: `mechanism`, `batch_order`, and the values of `graph_accuracy`.
    """
    entries = []
    for protocol in PROTOCOLS:
        order = ORDERS[protocol.batch_order or "shuffled"](labels, settings.order_seed)
        values = graph_accuracy(protocol, model, inputs, labels, order, settings)
        entries.append({"mechanism": protocol.mechanism, "batch_order": protocol.batch_order, **values})
    return entries


def one_by_one_accuracy(model: TrainedModel, inputs: np.ndarray, labels: np.ndarray, devices: Devices = ONE) -> float:
    """The accuracy in percent under Mechanism 1, for choosing an epoch."""
    order = np.arange(len(labels))
    return graph_accuracy(PROTOCOLS[0], model, inputs, labels, order, Settings(devices=devices))["accuracy"]


@functools.lru_cache(maxsize=8)  # so that each model is compiled once
def _compiled(predict: Predict, mechanism2_graph: str, devices: Devices) -> Callable:
    """Compiles a protocol for batches of raw images: class probabilities, graph diagnostics, nearest anchors."""

    def run(shared: tuple[TrainedModel, Anchors], batch: Batch) -> tuple[jax.Array, Diagnostics, jax.Array]:
        prediction, diagnostics = predict(*shared, batch, mechanism2_graph)
        return jax.nn.softmax(prediction.logits.astype(jnp.float32)), diagnostics, prediction.nearest

    return devices.batchwise(run)


def graph_accuracy(
    protocol: Protocol,
    model: TrainedModel,
    inputs: np.ndarray,
    labels: np.ndarray,
    order: np.ndarray,
    settings: Settings,
) -> dict[str, Any]:
    """Evaluates a graph student under one protocol.

    Args:
      protocol: the protocol.
      model: a graph student.
      inputs: raw inputs of the evaluated images, (N, ...).
      labels: their classes, (N,).
      order: the order in which batches take the images, (N,).
      settings: the settings of all protocols.

    Returns:
      `accuracy` in percent; `diagnostics`, as means over images, with `distinct_anchors` only where the mechanism
      assigns each image its nearest anchor; `seconds` without compilation; and `predicted`, the predicted classes (N,).
    """
    predicted, totals = np.zeros(len(order), np.int32), collections.defaultdict[str, float](float)
    indices, masks = batches.evaluation_batches(len(order), min(settings.batch_size, len(order)), order)
    compiled = _compiled(protocol.predict, settings.mechanism2_graph, settings.devices)
    columns, model_without_anchors = protocol.columns(model), model.replace(anchors=())

    def predictions(count: int) -> list[Iterator[Any]]:
        def read(k: int) -> Batch:
            return Batch(inputs[indices[k]], labels[indices[k]], masks[k])

        return [compiled((model_without_anchors, anchors), read, count) for anchors in columns]

    next(predictions(1)[0])  # compiles
    start, by_columns = time.monotonic(), predictions(len(indices))
    for index, mask, *results in zip(indices, masks, *by_columns, strict=True):
        probabilities = np.zeros(())
        for batch_probabilities, diagnostics, nearest in results:
            probabilities = probabilities + batch_probabilities
            if np.all(nearest >= 0):  # otherwise the mechanism has no nearest anchors
                diagnostics = {**diagnostics, "distinct_anchors": len(np.unique(nearest[mask]))}
            for name, value in diagnostics.items():
                totals[name] += float(value) * int(mask.sum()) / len(order) / len(columns)
        predicted[index[mask]] = np.argmax(probabilities, -1)[mask]
    return {
        "accuracy": 100 * int(np.sum(predicted == labels)) / len(order),
        "diagnostics": dict(totals),
        "seconds": round(time.monotonic() - start, 4),
        "predicted": predicted,
    }


def one_of_each_class(labels: np.ndarray, max_classes: int) -> list[int]:
    """The position of the first image of each class, for at most `max_classes` classes."""
    return [int(np.flatnonzero(labels == label)[0]) for label in np.unique(labels)[:max_classes]]


def neighbor_examples(
    model: TrainedModel, inputs: np.ndarray, labels: np.ndarray, positions: Sequence[int], count: int = 8
) -> list[dict[str, Any]]:
    """The learned neighbours of a few images by Mechanism 1, among the anchors of the first batch.

    Args:
      model: a graph student.
      inputs: raw inputs of the evaluated images, (N, ...).
      labels: their classes, (N,).
      positions: the images that are shown.
      count: the largest number of neighbours of an image.

    Returns:
      For each image `neighbors`, pairs of training index and weight, strongest first; `others`, the first anchor of
      each other class with its weight, which may be 0; `self_weight`; `predicted`; and `test_index`. The weights are
      the image's row of A with its self-loop, scaled to sum to 1.
    """
    anchors = model.anchors[0]
    images = model.inputs(jnp.asarray(inputs[np.asarray(positions)]))
    prediction = inference.one_by_one(model.module, model.variables, anchors.columns, images)
    weights = np.asarray(prediction.adjacency)
    weights = weights / np.maximum(weights.sum(-1, keepdims=True), 1e-12)
    classes, first = np.unique(anchors.labels, return_index=True)
    examples = []
    for position, row, logits in zip(positions, weights, np.asarray(prediction.logits), strict=True):
        strongest = np.argsort(-row[:-1], kind="stable")[:count]
        strongest = strongest[row[strongest] > 0]
        others = first[classes != labels[position]][:count]
        examples.append(
            {
                "test_index": int(position),
                "predicted": int(np.argmax(logits)),
                "self_weight": float(row[-1]),
                "neighbors": [[int(anchors.index[k]), float(row[k])] for k in strongest],
                "others": [[int(anchors.index[k]), float(row[k])] for k in others],
            }
        )
    return examples
