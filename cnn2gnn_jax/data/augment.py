"""Normalization and augmentation of images on the device."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import jax.typing


def normalize(
    images_BxHxWxC: jax.Array, mean: Sequence[float], std: Sequence[float], dtype: jax.typing.DTypeLike = jnp.float32
) -> jax.Array:
    """Normalizes each channel to (pixel / 255 - mean) / std, in float32. Stored features are returned unchanged.

    Args:
      images_BxHxWxC: pixels from 0 to 255, uint8 or float.
      mean: the mean of each channel, for pixels scaled to [0, 1]. It is empty if the inputs are stored features.
      std: the standard deviation of each channel, in the same unit.
      dtype: dtype of the result.
    """
    if not len(mean):
        return images_BxHxWxC
    images = images_BxHxWxC.astype(jnp.float32) / 255.0
    return ((images - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32)).astype(dtype)


def crop_and_flip(rngs_B: jax.Array, images_BxHxWxC: jax.Array, padding: int = 4) -> jax.Array:
    """Applies a random crop after padding, and a horizontal flip with probability 1/2, to each image.

    Args:
      rngs_B: one key for each image, so that the result does not depend on how the batch is distributed over devices.
      images_BxHxWxC: images of any dtype.
      padding: number of black (0) pixels that are added on each side before the crop.

    Returns:
      Images of the same shape and dtype.
    """
    return jax.vmap(lambda rng, image: _crop_and_flip_image(rng, image, padding))(rngs_B, images_BxHxWxC)


def _crop_and_flip_image(rng: jax.Array, image_HxWxC: jax.Array, padding: int) -> jax.Array:
    rng_crop, rng_flip = jax.random.split(rng)
    padded = jnp.pad(image_HxWxC, ((padding, padding), (padding, padding), (0, 0)))
    top, left = jax.random.randint(rng_crop, (2,), 0, 2 * padding + 1)
    crop = jax.lax.dynamic_slice(padded, (top, left, 0), image_HxWxC.shape)
    return jnp.where(jax.random.bernoulli(rng_flip), crop[:, ::-1], crop)
