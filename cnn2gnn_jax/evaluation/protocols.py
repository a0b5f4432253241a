"""Accuracy by protocol: each mechanism, each batch order, and what the graph did."""

import collections
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cnn2gnn_jax import graph, inference
from cnn2gnn_jax.data import augment, batches
from cnn2gnn_jax.distillers import maps
from cnn2gnn_jax.gnn import Columns, GraphStudent, HeadRows
from cnn2gnn_jax.networks import Outputs
from cnn2gnn_jax.runtime.devices import ONE, Devices

ORDERS = ("shuffled", "class_sorted")


def _prepare(images: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
    return augment.normalize(images, mean, std) if mean else images


def _logits_and_pooled(outputs: Outputs) -> list[jax.Array]:
    return [outputs.logits, outputs.pooled]


def _attention_maps(outputs: Outputs) -> list[jax.Array]:
    return [maps.one_channel(features) for features in outputs.features[1:]]


@functools.lru_cache(maxsize=8)  # so that each module is compiled once
def _network(
    take: Callable[[Outputs], list[jax.Array]],
    module: nn.Module,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    devices: Devices,
) -> Callable:
    def outputs(variables, images):
        found: Any = module.apply(variables, _prepare(images, mean, std), train=False)
        return take(found)

    return devices.batchwise(outputs)


def _by_batches(
    take: Callable[[Outputs], list[jax.Array]],
    module: nn.Module,
    variables: Any,
    inputs: np.ndarray,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    batch_size: int,
    devices: Devices,
) -> Iterator[list[np.ndarray]]:
    """What `take` takes of a CNN's outputs, float32, for all raw inputs in their order, `batch_size` at most a time."""
    indices, masks = batches.evaluation_batches(len(inputs), min(batch_size, -(-len(inputs) // devices.count)))
    found = _network(take, module, mean, std, devices)(variables, lambda k: inputs[indices[k]], len(indices))
    for arrays, mask in zip(found, masks, strict=True):
        yield [np.asarray(array, np.float32)[mask] for array in arrays]


def network_outputs(
    module: nn.Module,
    variables: Any,
    inputs: np.ndarray,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    batch_size: int = 500,
    devices: Devices = ONE,
) -> tuple[np.ndarray, np.ndarray]:
    """Logits (N, C) and pooled features (N, F), float32, of a CNN for all raw inputs, in their order."""
    parts = _by_batches(_logits_and_pooled, module, variables, inputs, mean, std, batch_size, devices)
    logits, pooled = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return logits, pooled


def attention_maps(
    module: nn.Module,
    variables: Any,
    inputs: np.ndarray,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    batch_size: int = 500,
    devices: Devices = ONE,
) -> Iterator[list[np.ndarray]]:
    """`maps.one_channel` of each stage's features, (b, H, W, 1) float32, for all raw inputs, batch after batch."""
    return _by_batches(_attention_maps, module, variables, inputs, mean, std, batch_size, devices)


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Percent of images whose largest logit is their class."""
    return float(100 * np.mean(np.argmax(logits, axis=-1) == labels))


def anchor_sets(labels: np.ndarray, protocol: Any, seed: int) -> list[np.ndarray]:
    """The class-balanced, seeded batches of training indices that an `evaluate` section asks for.

    They change with the student's `seed`, so that the spread over seeds is that of the anchors too. No two seeds share
    a batch.
    """
    first = protocol.anchor_seed + seed * protocol.anchor_batches
    return [batches.balanced_batch(labels, protocol.anchors, first + k) for k in range(protocol.anchor_batches)]


def order_seed(protocol: Any, seed: int) -> int:
    """The seed of the shuffled order of the evaluated images, for the student of `seed`, with which it changes."""
    return protocol.order_seed + seed


@functools.lru_cache(maxsize=8)
def _mechanism(
    name: str, module: GraphStudent, mean: tuple[float, ...], std: tuple[float, ...], reading: str, devices: Devices
) -> Callable:
    """A mechanism on batches of raw images: class probabilities, graph diagnostics, nearest anchors."""

    def run(shared: tuple[Any, Columns, jax.Array], batch: tuple[jax.Array, jax.Array, jax.Array]):
        (variables, columns, column_labels), (images, labels, mask) = shared, batch
        inputs = _prepare(images, mean, std)
        if name == "one_by_one":
            found = inference.one_by_one(module, variables, columns, inputs)
            own = jnp.full(labels.shape, columns.nodes.shape[0])
            # The image's own column has no label that a neighbour could share.
            facts = graph.diagnostics(found.adjacency, own, labels, jnp.append(column_labels, -1), mask)
        else:
            found = inference.batch_by_batch(module, variables, columns, inputs, mask, reading)
            facts = graph.diagnostics(found.adjacency, jnp.arange(labels.shape[0]), labels, labels, mask, mask)
        return jax.nn.softmax(found.logits.astype(jnp.float32)), facts, found.nearest

    return devices.batchwise(run)


class Anchors(NamedTuple):
    """Several training batches that test images are linked to in turn, and their classes, (A,) each."""

    columns: Sequence[Columns]
    labels: Sequence[np.ndarray]


def anchor_columns(
    module: GraphStudent,
    variables: Any,
    inputs: np.ndarray,
    rows: HeadRows | None,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Columns:
    """`inference.anchors` of raw inputs."""
    return inference.anchors(module, variables, _prepare(jnp.asarray(inputs), mean, std), rows)


def one_of_each_class(labels: np.ndarray, most: int) -> list[int]:
    """The position of the first image of each of the first `most` classes."""
    return [int(np.flatnonzero(labels == label)[0]) for label in np.unique(labels)[:most]]


def graph_protocols(
    module: GraphStudent,
    variables: Any,
    anchors: Anchors,
    inputs: np.ndarray,
    labels: np.ndarray,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    *,
    batch_size: int,
    order_seed: int,
    reading: str,
    devices: Devices = ONE,
) -> list[dict[str, Any]]:
    """One entry for each mechanism and batch order, with what `graph_accuracy` gives.

    Args:
      module: the student; with `graph="off"` every protocol gives the same answers.
      variables: its parameters and statistics.
      anchors: class probabilities are averaged over its batches.
      inputs: raw test inputs, (N, ...).
      labels: (N,).
      mean: of the images, () for features.
      std: likewise.
      batch_size: of Mechanism 2.
      order_seed: of the shuffled order.
      reading: of Mechanism 2.
      devices: each takes whole batches.
    """
    orders = {
        "shuffled": batches.shuffled_order(len(labels), order_seed),
        "class_sorted": batches.class_sorted_order(labels),
    }
    entries = []
    for name, order in (("one_by_one", None), *(("batch_by_batch", order) for order in ORDERS)):
        found = graph_accuracy(
            _mechanism(name, module, mean, std, reading, devices),
            variables,
            anchors,
            inputs,
            labels,
            orders[order or "shuffled"],
            batch_size,
        )
        entries.append({"mechanism": name, "batch_order": order, **found})
    return entries


def one_by_one_accuracy(
    module: GraphStudent,
    variables: Any,
    anchors: Anchors,
    inputs: np.ndarray,
    labels: np.ndarray,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    devices: Devices = ONE,
) -> float:
    """Percent right under Mechanism 1, for choosing an epoch."""
    mechanism = _mechanism("one_by_one", module, mean, std, inference.READINGS[0], devices)
    return graph_accuracy(mechanism, variables, anchors, inputs, labels, np.arange(len(labels)), 100)["accuracy"]


def graph_accuracy(
    mechanism: Callable,
    variables: Any,
    anchors: Anchors,
    inputs: np.ndarray,
    labels: np.ndarray,
    order: np.ndarray,
    batch_size: int,
) -> dict[str, Any]:
    """What comes out over all N images, batches taken in `order`.

    Returns:
      `accuracy` in percent, the `diagnostics` as means over images (`distinct_anchors` only where the mechanism chooses
      anchors), the `seconds` it took without compilation, and the classes `predicted`, (N,).
    """
    predicted, totals = np.zeros(len(order), np.int32), collections.defaultdict[str, float](float)
    indices, masks = batches.evaluation_batches(len(order), min(batch_size, len(order)), order)

    def answers_to(count: int) -> list[Iterator[Any]]:
        return [
            mechanism((variables, *one), lambda k: (inputs[indices[k]], labels[indices[k]], masks[k]), count)
            for one in zip(*anchors, strict=True)
        ]

    next(answers_to(1)[0])  # compiles
    start, runs = time.monotonic(), answers_to(len(indices))
    for index, mask, *answers in zip(indices, masks, *runs, strict=True):
        probabilities = np.zeros(())
        for found, facts, nearest in answers:
            probabilities = probabilities + found
            if np.all(nearest >= 0):  # else the mechanism chooses no anchors
                facts = {**facts, "distinct_anchors": len(np.unique(nearest[mask]))}
            for name, value in facts.items():
                totals[name] += float(value) * int(mask.sum()) / len(order) / len(anchors.columns)
        predicted[index[mask]] = np.argmax(probabilities, -1)[mask]
    right = int(np.sum(predicted == labels))
    seconds = round(time.monotonic() - start, 4)
    return {
        "accuracy": 100 * right / len(order),
        "diagnostics": dict(totals),
        "seconds": seconds,
        "predicted": predicted,
    }


def neighbor_examples(
    module: GraphStudent,
    variables: Any,
    anchors: Columns,
    anchor_index: np.ndarray,
    anchor_labels: np.ndarray,
    inputs: np.ndarray,
    labels: np.ndarray,
    positions: Sequence[int],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    most: int = 8,
) -> list[dict[str, Any]]:
    """The learned neighbours (Mechanism 1) of a few test images: training indices and weights, strongest first.

    `others` are the first anchor of each other class with its weight, which may be 0. Weights are the image's row of A
    with its self-loop, scaled to sum to 1.
    """
    images = _prepare(jnp.asarray(inputs[np.asarray(positions)]), mean, std)
    found = inference.one_by_one(module, variables, anchors, images)
    weights = np.asarray(found.adjacency)
    weights = weights / np.maximum(weights.sum(-1, keepdims=True), 1e-12)
    examples = []
    for position, row, logits in zip(positions, weights, np.asarray(found.logits), strict=True):
        best = np.argsort(-row[:-1], kind="stable")[:most]
        best = best[row[best] > 0]
        classes, first = np.unique(anchor_labels, return_index=True)
        others = first[classes != labels[position]][:most]
        examples.append(
            {
                "test_index": int(position),
                "predicted": int(np.argmax(logits)),
                "self_weight": float(row[-1]),
                "neighbors": [[int(anchor_index[k]), float(row[k])] for k in best],
                "others": [[int(anchor_index[k]), float(row[k])] for k in others],
            }
        )
    return examples
