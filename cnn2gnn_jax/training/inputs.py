"""Network inputs for raw images."""

import functools
from collections.abc import Callable

import jax

from cnn2gnn_jax.data import augment
from cnn2gnn_jax.training.task import Task


def image_keys(rng: jax.Array, index: jax.Array) -> jax.Array:
    """A key for each image, so that the augmentation does not depend on how a batch is spread over devices."""
    return jax.vmap(functools.partial(jax.random.fold_in, rng))(index)


def prepare(
    task: Task,
    images: jax.Array,
    rng: jax.Array,
    index: jax.Array,
    view: Callable[[jax.Array], jax.Array] = lambda images: images,
) -> jax.Array:
    """Prepares the network inputs of a batch with augmentation; stored features pass through unchanged.

    Args:
      task: the task; its recipe determines whether images are cropped and flipped.
      images: raw images, (B, H, W, C) uint8, or stored features, (B, F).
      rng: the key of the batch.
      index: the positions of the images in the training set, (B,).
      view: applied to the images before they are normalized.
    """
    if task.mean and task.recipe.augment:
        images = augment.crop_and_flip(image_keys(rng, index), images)
    return prepare_plain(task, view(images))


def prepare_plain(task: Task, images: jax.Array) -> jax.Array:
    """Prepares network inputs without augmentation: normalized images, or stored features as they are."""
    return augment.normalize(images, task.mean, task.std)
