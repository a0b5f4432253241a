"""The accuracy of a graph student under each protocol: each mechanism and batch order, with graph diagnostics.

To add a protocol, write a function `(model, anchors, batch, mechanism2_graph) -> (prediction, diagnostics)`, which is
compiled, and add a row to `PROTOCOLS`.
"""

import collections
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cnn2gnn_jax import graph, inference
from cnn2gnn_jax.data import batches
from cnn2gnn_jax.runtime.devices import ONE, Devices
from cnn2gnn_jax.training.model import Anchors, TrainedModel

_MAX_SHOWN = 8  # the maximum number of neighbors, and of other anchors, in an example


class Batch(NamedTuple):
    """B evaluated images: raw inputs (B, ...), classes (B,), and a mask (B,) that is False for padding."""

    inputs: jax.Array
    labels: jax.Array
    mask: jax.Array


Diagnostics = dict[str, jax.Array]
Predict = Callable[[TrainedModel, Anchors, Batch, str], tuple[inference.Prediction, Diagnostics]]


def one_by_one(
    model: TrainedModel, anchors: Anchors, batch: Batch, mechanism2_graph: str
) -> tuple[inference.Prediction, Diagnostics]:
    """Predicts the images of a batch by Mechanism 1: each image is linked to the anchors."""
    del mechanism2_graph
    prediction = inference.one_by_one(model.module, model.variables, anchors.columns, model.inputs(batch.inputs))
    # The last column of the adjacency is the image itself, which differs between images. No class has the number -1.
    column_labels = jnp.append(anchors.labels, -1)
    self_columns = jnp.full(batch.labels.shape, anchors.labels.shape[0])
    return prediction, graph.diagnostics(prediction.adjacency, self_columns, batch.labels, column_labels, batch.mask)


def batch_by_batch(
    model: TrainedModel, anchors: Anchors, batch: Batch, mechanism2_graph: str
) -> tuple[inference.Prediction, Diagnostics]:
    """Predicts the images of a batch by Mechanism 2: they are linked to each other as their nearest anchors are."""
    inputs, labels, mask = model.inputs(batch.inputs), batch.labels, batch.mask
    prediction = inference.batch_by_batch(
        model.module, model.variables, anchors.columns, inputs, mask, mechanism2_graph
    )
    return prediction, graph.diagnostics(prediction.adjacency, jnp.arange(labels.shape[0]), labels, labels, mask, mask)


class Protocol(NamedTuple):
    """How evaluated images are classified.

    mechanism: its name in the results.
    batch_order: a key of ORDERS; None where no prediction depends on another evaluated image.
    predict: the function that predicts the images of a batch, which is compiled.
    """

    mechanism: str
    batch_order: str | None
    predict: Predict


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
    order_seed: the seed of the order `shuffled`.
    mechanism2_graph: the variant of Mechanism 2, see `inference.batch_by_batch`.
    devices: the devices, each of which computes whole batches.
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
    """The accuracy in percent under Mechanism 1, by which the epoch rule `best` chooses an epoch.

    The arguments are those of `graph_protocols`.
    """
    order = np.arange(len(labels))
    return graph_accuracy(PROTOCOLS[0], model, inputs, labels, order, Settings(devices=devices))["accuracy"]


@functools.lru_cache(maxsize=8)  # so that models of the same module share a compiled function
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

    The class probabilities of an image are averaged over the student's batches of anchors.

    Args:
      protocol: the protocol.
      model: a graph student.
      inputs: raw inputs of the evaluated images, (N, ...).
      labels: their classes, (N,).
      order: the order in which batches take the images, (N,).
      settings: the settings of all protocols.

    Returns:
      `accuracy` in percent; `diagnostics`, the means over images and batches of anchors; `seconds` without compilation;
      and `predicted`, the predicted classes (N,). Where the mechanism finds the nearest anchor of each image, the
      diagnostics include `distinct_anchors`, the number of different ones in a batch.
    """
    predicted, totals = np.zeros(len(order), np.int32), collections.defaultdict[str, float](float)
    indices, masks = batches.evaluation_batches(len(order), min(settings.batch_size, len(order)), order)
    compiled = _compiled(protocol.predict, settings.mechanism2_graph, settings.devices)
    shared = [(model.replace(anchors=()), anchors) for anchors in model.anchors]

    def read(k: int) -> Batch:
        return Batch(inputs[indices[k]], labels[indices[k]], masks[k])

    next(compiled(shared[0], read, 1))  # compiles before the time is measured
    start, by_anchors = time.monotonic(), [compiled(arguments, read, len(indices)) for arguments in shared]
    for index, mask, *results in zip(indices, masks, *by_anchors, strict=True):
        probabilities = np.zeros(())
        for batch_probabilities, diagnostics, nearest in results:
            probabilities = probabilities + batch_probabilities
            if np.all(nearest >= 0):  # -1 where the mechanism has no nearest anchors
                diagnostics = {**diagnostics, "distinct_anchors": len(np.unique(nearest[mask]))}
            for name, value in diagnostics.items():
                totals[name] += float(value) * int(mask.sum()) / len(order) / len(model.anchors)
        predicted[index[mask]] = np.argmax(probabilities, -1)[mask]
    return {
        "accuracy": 100 * int(np.sum(predicted == labels)) / len(order),
        "diagnostics": dict(totals),
        "seconds": round(time.monotonic() - start, 4),
        "predicted": predicted,
    }


def one_of_each_class(labels: np.ndarray, max_classes: int) -> list[int]:
    """The positions of the first image of each class, for at most `max_classes` classes."""
    return [int(np.flatnonzero(labels == label)[0]) for label in np.unique(labels)[:max_classes]]


def neighbor_examples(
    model: TrainedModel, inputs: np.ndarray, labels: np.ndarray, positions: Sequence[int]
) -> list[dict[str, Any]]:
    """The neighbors of a few images by Mechanism 1, among the anchors of the first batch.

    Args:
      model: a graph student.
      inputs: raw inputs of the evaluated images, (N, ...).
      labels: their classes, (N,).
      positions: the positions of the images that are shown.

    Returns:
      For each image `neighbors`, at most 8 pairs of training index and weight, strongest first; `others`, the first
      anchor of at most 8 other classes with its weight, which may be 0; `self_weight`; `predicted`; and `test_index`.
      The weights are the image's row of A with its self-loop, scaled to sum to 1.
    """
    anchors = model.anchors[0]
    images = model.inputs(jnp.asarray(inputs[np.asarray(positions)]))
    prediction = inference.one_by_one(model.module, model.variables, anchors.columns, images)
    weights = np.asarray(prediction.adjacency)
    weights = weights / np.maximum(weights.sum(-1, keepdims=True), 1e-12)
    classes, first = np.unique(anchors.labels, return_index=True)
    examples = []
    for position, row, logits in zip(positions, weights, np.asarray(prediction.logits), strict=True):
        strongest = np.argsort(-row[:-1], kind="stable")[:_MAX_SHOWN]
        strongest = strongest[row[strongest] > 0]
        others = first[classes != labels[position]][:_MAX_SHOWN]
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
