"""What a CNN answers for many images: logits, pooled features, attention maps."""

import functools
from collections.abc import Callable, Iterator

import jax
import numpy as np

from cnn2gnn_jax.data import batches
from cnn2gnn_jax.distillers import maps
from cnn2gnn_jax.networks import Outputs
from cnn2gnn_jax.runtime.devices import ONE, Devices
from cnn2gnn_jax.training.model import TrainedModel


def network_outputs(
    model: TrainedModel, images: np.ndarray, devices: Devices = ONE, batch_size: int = 500
) -> tuple[np.ndarray, np.ndarray]:
    """Logits (N, C) and pooled features (N, F), float32, of a CNN for all raw images, in their order."""
    parts = _by_batches(_logits_and_pooled, model, images, devices, batch_size)
    logits, pooled = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return logits, pooled


def attention_maps(
    model: TrainedModel, images: np.ndarray, devices: Devices = ONE, batch_size: int = 500
) -> Iterator[list[np.ndarray]]:
    """`maps.one_channel` of each stage's features, (b, H, W, 1) float32, for all raw images, batch after batch."""
    return _by_batches(_attention_maps, model, images, devices, batch_size)


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Percent of images whose largest logit is their class."""
    return float(100 * np.mean(np.argmax(logits, axis=-1) == labels))


def _logits_and_pooled(outputs: Outputs) -> list[jax.Array]:
    return [outputs.logits, outputs.pooled]


def _attention_maps(outputs: Outputs) -> list[jax.Array]:
    return [maps.one_channel(features) for features in outputs.features[1:]]


@functools.lru_cache(maxsize=8)  # so that each model is compiled once
def _compiled(take: Callable[[Outputs], list[jax.Array]], devices: Devices) -> Callable:
    return devices.batchwise(lambda model, images: take(model.outputs(images)))


def _by_batches(
    take: Callable[[Outputs], list[jax.Array]],
    model: TrainedModel,
    images: np.ndarray,
    devices: Devices,
    batch_size: int,
) -> Iterator[list[np.ndarray]]:
    """What `take` takes of a CNN's outputs, float32, for all raw images in their order, `batch_size` at most a time."""
    indices, masks = batches.evaluation_batches(len(images), min(batch_size, -(-len(images) // devices.count)))
    found = _compiled(take, devices)(model, lambda k: images[indices[k]], len(indices))
    for arrays, mask in zip(found, masks, strict=True):
        yield [np.asarray(array, np.float32)[mask] for array in arrays]
