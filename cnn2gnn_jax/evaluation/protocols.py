"""Accuracy of a graph student by protocol: each mechanism, each batch order, and what the graph did.

A protocol is a function `(model, columns, batch, mechanism2_graph) -> (prediction, diagnostics)`, which is compiled,
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
    """B images of an evaluation: raw inputs (B, ...), labels (B,), and a mask (B,), False for padding."""

    inputs: jax.Array
    labels: jax.Array
    mask: jax.Array


Diagnostics = dict[str, jax.Array]
Answer = Callable[[TrainedModel, Anchors, Batch, str], tuple[inference.Prediction, Diagnostics]]


def one_by_one(
    model: TrainedModel, anchors: Anchors, batch: Batch, mechanism2_graph: str
) -> tuple[inference.Prediction, Diagnostics]:
    """Mechanism 1."""
    del mechanism2_graph
    found = inference.one_by_one(model.module, model.variables, anchors.columns, model.inputs(batch.inputs))
    own = jnp.full(batch.labels.shape, anchors.columns.nodes.shape[0])
    # The image's own column has no label that a neighbour could share.
    column_labels = jnp.append(anchors.labels, -1)
    return found, graph.diagnostics(found.adjacency, own, batch.labels, column_labels, batch.mask)


def batch_by_batch(
    model: TrainedModel, anchors: Anchors, batch: Batch, mechanism2_graph: str
) -> tuple[inference.Prediction, Diagnostics]:
    """Mechanism 2."""
    inputs, labels, mask = model.inputs(batch.inputs), batch.labels, batch.mask
    found = inference.batch_by_batch(model.module, model.variables, anchors.columns, inputs, mask, mechanism2_graph)
    return found, graph.diagnostics(found.adjacency, jnp.arange(labels.shape[0]), labels, labels, mask, mask)


def _anchors(model: TrainedModel) -> Sequence[Anchors]:
    return model.anchors


class Protocol(NamedTuple):
    """How images are answered.

    mechanism: its name in the results.
    batch_order: of ORDERS; None where no answer depends on another image.
    answer: what is compiled.
    columns: the batches of training images that images are linked to in turn.
    """

    mechanism: str
    batch_order: str | None
    answer: Answer
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
    """What the protocols have in common.

    batch_size: the most images of a batch.
    order_seed: of the shuffled order.
    mechanism2_graph: of Mechanism 2, see `inference.batch_by_batch`.
    devices: each takes whole batches.
    """

    batch_size: int = 100
    order_seed: int = 0
    mechanism2_graph: str = inference.MECHANISM2_GRAPHS[0]
    devices: Devices = ONE


def graph_protocols(
    model: TrainedModel, inputs: np.ndarray, labels: np.ndarray, settings: Settings
) -> list[dict[str, Any]]:
    """One entry for each of PROTOCOLS: `mechanism`, `batch_order`, and what `graph_accuracy` gives.

    Args:
      model: a graph student; with `graph="off"` every protocol gives the same answers.
      inputs: raw test inputs, (N, ...).
      labels: (N,).
      settings: of all protocols.
    """
    entries = []
    for protocol in PROTOCOLS:
        order = ORDERS[protocol.batch_order or "shuffled"](labels, settings.order_seed)
        found = graph_accuracy(protocol, model, inputs, labels, order, settings)
        entries.append({"mechanism": protocol.mechanism, "batch_order": protocol.batch_order, **found})
    return entries


def one_by_one_accuracy(model: TrainedModel, inputs: np.ndarray, labels: np.ndarray, devices: Devices = ONE) -> float:
    """Percent right under Mechanism 1, for choosing an epoch."""
    order = np.arange(len(labels))
    return graph_accuracy(PROTOCOLS[0], model, inputs, labels, order, Settings(devices=devices))["accuracy"]


@functools.lru_cache(maxsize=8)  # so that each model is compiled once
def _compiled(answer: Answer, mechanism2_graph: str, devices: Devices) -> Callable:
    """A protocol on batches of raw images: class probabilities, graph diagnostics, nearest anchors."""

    def run(shared: tuple[TrainedModel, Anchors], batch: Batch) -> tuple[jax.Array, Diagnostics, jax.Array]:
        found, facts = answer(*shared, batch, mechanism2_graph)
        return jax.nn.softmax(found.logits.astype(jnp.float32)), facts, found.nearest

    return devices.batchwise(run)


def graph_accuracy(
    protocol: Protocol,
    model: TrainedModel,
    inputs: np.ndarray,
    labels: np.ndarray,
    order: np.ndarray,
    settings: Settings,
) -> dict[str, Any]:
    """What comes out over all N images, batches taken in `order`.

    Returns:
      `accuracy` in percent, the `diagnostics` as means over images (`distinct_anchors` only where the mechanism chooses
      anchors), the `seconds` it took without compilation, and the classes `predicted`, (N,).
    """
    predicted, totals = np.zeros(len(order), np.int32), collections.defaultdict[str, float](float)
    indices, masks = batches.evaluation_batches(len(order), min(settings.batch_size, len(order)), order)
    compiled, columns = _compiled(protocol.answer, settings.mechanism2_graph, settings.devices), protocol.columns(model)
    alone = model.replace(anchors=())

    def answers_to(count: int) -> list[Iterator[Any]]:
        def read(k: int) -> Batch:
            return Batch(inputs[indices[k]], labels[indices[k]], masks[k])

        return [compiled((alone, each), read, count) for each in columns]

    next(answers_to(1)[0])  # compiles
    start, runs = time.monotonic(), answers_to(len(indices))
    for index, mask, *answers in zip(indices, masks, *runs, strict=True):
        probabilities = np.zeros(())
        for found, facts, nearest in answers:
            probabilities = probabilities + found
            if np.all(nearest >= 0):  # else the mechanism chooses no anchors
                facts = {**facts, "distinct_anchors": len(np.unique(nearest[mask]))}
            for name, value in facts.items():
                totals[name] += float(value) * int(mask.sum()) / len(order) / len(columns)
        predicted[index[mask]] = np.argmax(probabilities, -1)[mask]
    return {
        "accuracy": 100 * int(np.sum(predicted == labels)) / len(order),
        "diagnostics": dict(totals),
        "seconds": round(time.monotonic() - start, 4),
        "predicted": predicted,
    }


def one_of_each_class(labels: np.ndarray, most: int) -> list[int]:
    """The position of the first image of each of the first `most` classes."""
    return [int(np.flatnonzero(labels == label)[0]) for label in np.unique(labels)[:most]]


def neighbor_examples(
    model: TrainedModel, inputs: np.ndarray, labels: np.ndarray, positions: Sequence[int], most: int = 8
) -> list[dict[str, Any]]:
    """The learned neighbours (Mechanism 1) of a few test images: training indices and weights, strongest first.

    `others` are the first anchor of each other class with its weight, which may be 0. Weights are the image's row of A
    with its self-loop, scaled to sum to 1. The anchors are those of the first batch.
    """
    anchors = model.anchors[0]
    images = model.inputs(jnp.asarray(inputs[np.asarray(positions)]))
    found = inference.one_by_one(model.module, model.variables, anchors.columns, images)
    weights = np.asarray(found.adjacency)
    weights = weights / np.maximum(weights.sum(-1, keepdims=True), 1e-12)
    classes, first = np.unique(anchors.labels, return_index=True)
    examples = []
    for position, row, logits in zip(positions, weights, np.asarray(found.logits), strict=True):
        best = np.argsort(-row[:-1], kind="stable")[:most]
        best = best[row[best] > 0]
        others = first[classes != labels[position]][:most]
        examples.append(
            {
                "test_index": int(position),
                "predicted": int(np.argmax(logits)),
                "self_weight": float(row[-1]),
                "neighbors": [[int(anchors.index[k]), float(row[k])] for k in best],
                "others": [[int(anchors.index[k]), float(row[k])] for k in others],
            }
        )
    return examples
