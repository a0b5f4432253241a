"""What is done to images on the device: normalisation, random crop and flip."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import jax.typing


def normalize(
    images_BxHxWxC: jax.Array, mean: Sequence[float], std: Sequence[float], dtype: jax.typing.DTypeLike = jnp.float32
) -> jax.Array:
    """(pixel / 255 - mean) / std for each channel, worked out in float32; stored features pass through.

    Args:
      images_BxHxWxC: pixels from 0 to 255, uint8 or float.
      mean: C means of the training images, in units of [0, 1]; empty where the inputs are features and no images.
      std: C standard deviations in the same units.
      dtype: of the result.
    """
    if not len(mean):
        return images_BxHxWxC
    images = images_BxHxWxC.astype(jnp.float32) / 255.0
    return ((images - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32)).astype(dtype)


def crop_and_flip(rngs_B: jax.Array, images_BxHxWxC: jax.Array, padding: int = 4) -> jax.Array:
    """Moves each image by up to `padding` pixels each way over black, and mirrors it left to right half the time.

    Args:
      rngs_B: one key an image, so that the result does not depend on how the batch is spread over devices.
      images_BxHxWxC: images of any dtype.
      padding: pixels of black (0) added on each side before the crop.

    Returns:
      images of the same shape and dtype.
    """
    return jax.vmap(lambda rng, image: _crop_and_flip_one(rng, image, padding))(rngs_B, images_BxHxWxC)


def _crop_and_flip_one(rng: jax.Array, image_HxWxC: jax.Array, padding: int) -> jax.Array:
    rng_crop, rng_flip = jax.random.split(rng)
    padded = jnp.pad(image_HxWxC, ((padding, padding), (padding, padding), (0, 0)))
    top, left = jax.random.randint(rng_crop, (2,), 0, 2 * padding + 1)
    crop = jax.lax.dynamic_slice(padded, (top, left, 0), image_HxWxC.shape)
    return jnp.where(jax.random.bernoulli(rng_flip), crop[:, ::-1], crop)
