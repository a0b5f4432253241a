"""Network inputs of raw images."""

import functools
from collections.abc import Callable

import jax

from cnn2gnn_jax.data import augment
from cnn2gnn_jax.training.task import Task


def image_keys(rng: jax.Array, index: jax.Array) -> jax.Array:
    """A key of each image's own, so that a batch is augmented alike however it is spread over devices."""
    return jax.vmap(functools.partial(jax.random.fold_in, rng))(index)


def prepare(
    task: Task,
    images: jax.Array,
    rng: jax.Array,
    index: jax.Array,
    view: Callable[[jax.Array], jax.Array] = lambda images: images,
) -> jax.Array:
    """Network inputs of raw uint8 images: cropped and flipped if the recipe says so, seen through `view`, normalised.

    Stored features pass through.
    """
    if task.mean and task.recipe.augment:
        images = augment.crop_and_flip(image_keys(rng, index), images)
    return prepare_plain(task, view(images))


def prepare_plain(task: Task, images: jax.Array) -> jax.Array:
    """Network inputs of raw uint8 images without augmentation; stored features pass through."""
    return augment.normalize(images, task.mean, task.std)
