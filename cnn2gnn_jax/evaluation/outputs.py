"""The outputs of a CNN for many images: logits, pooled features, attention maps."""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from cnn2gnn_jax.data import batches
from cnn2gnn_jax.distillers import maps
from cnn2gnn_jax.runtime.devices import ONE, Devices
from cnn2gnn_jax.training.model import TrainedModel

_MAX_BATCH_SIZE = 500


def network_outputs(model: TrainedModel, images: np.ndarray, devices: Devices = ONE) -> tuple[np.ndarray, np.ndarray]:
    """Computes the logits (N, C) and pooled features (N, F) of a CNN, both float32.

    Args:
      model: a CNN.
      images: raw images, (N, H, W, 3) uint8.
      devices: each computes whole batches.
    """
    logits, pooled = concatenated(by_batches(_logits_and_pooled, model, images, devices))
    return logits, pooled


def attention_maps(model: TrainedModel, images: np.ndarray, devices: Devices = ONE) -> Iterator[list[np.ndarray]]:
    """Yields for each batch `maps.one_channel` of the features of each stage, (b, H, W, 1) float32.

    The arguments are those of `network_outputs`.
    """
    return by_batches(_attention_maps, model, images, devices)


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """The accuracy in percent of logits (N, C) on integer labels (N,)."""
    return float(100 * np.mean(np.argmax(logits, axis=-1) == labels))


def _logits_and_pooled(model: TrainedModel, images: jax.Array) -> list[jax.Array]:
    outputs = model.outputs(images)
    return [outputs.logits, outputs.pooled]


def _attention_maps(model: TrainedModel, images: jax.Array) -> list[jax.Array]:
    return [maps.one_channel(features) for features in model.outputs(images).features[1:]]


@functools.lru_cache(maxsize=8)  # so that models of the same module share a compiled function
def _compiled(function: Callable[[TrainedModel, jax.Array], Any], devices: Devices) -> Callable:
    return devices.batchwise(function)


def by_batches(
    function: Callable[[TrainedModel, jax.Array], Any],
    model: TrainedModel,
    images: np.ndarray,
    devices: Devices = ONE,
) -> Iterator[Any]:
    """Applies `function(model, images)` to raw images batch by batch, in their order.

    Args:
      function: returns a pytree of arrays with a row for each image of a batch.
      model: its first argument.
      images: raw images, (N, H, W, 3) uint8.
      devices: each computes whole batches.

    Yields:
      For each batch, the pytree that `function` returns, as float32 NumPy arrays.
    """
    indices, masks = batches.evaluation_batches(len(images), min(_MAX_BATCH_SIZE, -(-len(images) // devices.count)))
    results = _compiled(function, devices)(model, lambda k: images[indices[k]], len(indices))
    for arrays, mask in zip(results, masks, strict=True):
        yield jax.tree.map(lambda array, mask=mask: np.asarray(array, np.float32)[mask], arrays)


def concatenated(batches: Iterable[Any]) -> Any:
    """The pytrees of `by_batches` as one, whose arrays have a row for each image."""
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *batches)
