"""Pillow's image operations on the device, for one image (H, W, C) uint8 with 1 or 3 channels.

Each gives Pillow's pixels to within one grey level: ImageOps, ImageEnhance, and Image.transform with fill 128. What
moves pixels takes Python numbers, so that where they come from is worked out once, in float64 as Pillow does.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

FILL = 128


def invert(image: jax.Array) -> jax.Array:
    """255 - pixel."""
    return 255 - image


def posterize(image: jax.Array, bits: int) -> jax.Array:
    """The highest `bits` of each pixel."""
    return image & (256 - 2 ** (8 - bits))


def solarize(image: jax.Array, threshold: int) -> jax.Array:
    """Pixels of `threshold`, 0 to 256, and above inverted."""
    return jnp.where(image.astype(jnp.int32) < threshold, image, 255 - image)


def autocontrast(image: jax.Array) -> jax.Array:
    """Each channel stretched to 0..255; a channel of one value stays."""
    low, high = (reduce(image.astype(jnp.int32), axis=(0, 1)) for reduce in (jnp.min, jnp.max))
    stretched = (image - low) * 255 // jnp.maximum(high - low, 1)
    return jnp.where(high > low, stretched, image).astype(jnp.uint8)


def equalize(image: jax.Array) -> jax.Array:
    """Each channel's histogram made even."""
    return jax.vmap(_equalize_channel, in_axes=-1, out_axes=-1)(image)


def _equalize_channel(channel: jax.Array) -> jax.Array:
    pixels = channel.astype(jnp.int32).ravel()
    below = jnp.searchsorted(jnp.sort(pixels), jnp.arange(256))  # pixels darker than each level
    step = below[jnp.max(pixels)] // 255
    table = jnp.minimum((step // 2 + below) // jnp.maximum(step, 1), 255)
    return jnp.where(step > 0, table[channel], channel).astype(jnp.uint8)


def brightness(image: jax.Array, factor: ArrayLike) -> jax.Array:
    """Away from black: 1 leaves the image as it is, less is darker."""
    return _blend(jnp.zeros_like(image), image, factor)


def contrast(image: jax.Array, factor: ArrayLike) -> jax.Array:
    """Away from the image's mean grey."""
    total, pixels = jnp.sum(_grey(image)), image.shape[0] * image.shape[1]
    return _blend((2 * total + pixels) // (2 * pixels), image, factor)


def color(image: jax.Array, factor: ArrayLike) -> jax.Array:
    """Away from each pixel's grey; a grey image stays."""
    return image if image.shape[-1] == 1 else _blend(_grey(image), image, factor)


def sharpness(image: jax.Array, factor: ArrayLike) -> jax.Array:
    """Away from the image smoothed by 3x3 weights 1, the centre 5, over 13; its border is not smoothed."""
    height, width = image.shape[:2]
    if min(height, width) < 3:
        return _blend(image, image, factor)
    x = image.astype(jnp.int32)
    around = sum(x[i : height - 2 + i, j : width - 2 + j] for i in range(3) for j in range(3))
    smooth = (2 * (around + 4 * x[1:-1, 1:-1]) + 13) // 26
    return _blend(x.at[1:-1, 1:-1].set(smooth), image, factor)


def translate_x(image: jax.Array, pixels: float) -> jax.Array:
    """Moved left by `pixels`, to the nearest pixel."""
    x, y = _centres(image)
    return _nearest(image, np.floor(x + pixels), np.floor(y))


def translate_y(image: jax.Array, pixels: float) -> jax.Array:
    """Moved up by `pixels`, to the nearest pixel."""
    x, y = _centres(image)
    return _nearest(image, np.floor(x), np.floor(y + pixels))


def rotate(image: jax.Array, degrees: float) -> jax.Array:
    """Rotated counter-clockwise about the centre, to the nearest pixel."""
    height, width = image.shape[:2]
    cos, sin = (round(f(-math.radians(degrees % 360)), 15) for f in (math.cos, math.sin))
    matrix = (
        (cos, sin, width / 2 - cos * width / 2 - sin * height / 2),
        (-sin, cos, height / 2 + sin * width / 2 - cos * height / 2),
    )
    columns, rows = np.arange(width), np.arange(height)[:, None]

    def source(a: float, b: float, c: float) -> np.ndarray:
        # Pillow steps from pixel to pixel in units of 2^-16.
        start, right, down = (math.floor(v * 65536 + 0.5) for v in (c + a / 2 + b / 2, a, b))
        return (start + right * columns + down * rows) >> 16

    return _nearest(image, *(source(*row) for row in matrix))


def shear_x(image: jax.Array, slope: float) -> jax.Array:
    """Each row moved left by `slope` times its height, bicubic."""
    x, y = _centres(image)
    return _bicubic(image, x + slope * y, axis=1)


def shear_y(image: jax.Array, slope: float) -> jax.Array:
    """Each column moved up by `slope` times its distance from the left, bicubic."""
    x, y = _centres(image)
    return _bicubic(image, y + slope * x, axis=0)


def _grey(image: jax.Array) -> jax.Array:
    """Luma, (H, W, 1) int32."""
    if image.shape[-1] == 1:
        return image.astype(jnp.int32)
    weighted = image.astype(jnp.int32) * jnp.array([19595, 38470, 7471])
    return (jnp.sum(weighted, axis=-1, keepdims=True) + 0x8000) >> 16


def _blend(start: jax.Array, image: jax.Array, factor: ArrayLike) -> jax.Array:
    """start + factor * (image - start), clipped and cut to an integer."""
    start, difference = start.astype(jnp.float32), image.astype(jnp.float32) - start.astype(jnp.float32)
    return jnp.clip(start + jnp.asarray(factor, jnp.float32) * difference, 0, 255).astype(jnp.uint8)


def _centres(image: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """Where the centres of the pixels are: x (1, W) and y (H, 1)."""
    return np.arange(image.shape[1])[None] + 0.5, np.arange(image.shape[0])[:, None] + 0.5


def _nearest(image: jax.Array, columns: np.ndarray, rows: np.ndarray) -> jax.Array:
    """The pixel in that column and row for each pixel, FILL where there is none."""
    columns, rows = (np.broadcast_to(where, image.shape[:2]).astype(np.int32) for where in (columns, rows))
    height, width = image.shape[:2]
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    found = image[np.clip(rows, 0, height - 1), np.clip(columns, 0, width - 1)]
    return jnp.where(inside[..., None], found, jnp.uint8(FILL))


def _bicubic(image: jax.Array, positions: np.ndarray, axis: int) -> jax.Array:
    """Cubic interpolation (a = -1) at `positions`, (H, W), along one axis, FILL where they lie outside."""
    length = image.shape[axis]
    inside = (positions >= 0) & (positions < length)
    first = np.floor(positions - 0.5).astype(np.int32)
    d = jnp.asarray(positions - 0.5 - first, jnp.float32)[..., None]
    fixed = np.broadcast_to(
        np.arange(image.shape[1 - axis])[:, None] if axis else np.arange(image.shape[1]), first.shape
    )

    def tap(k: int) -> jax.Array:
        moving = np.clip(first + k, 0, length - 1)
        return image[(fixed, moving) if axis else (moving, fixed)].astype(jnp.float32)

    v1, v2, v3, v4 = (tap(k) for k in (-1, 0, 1, 2))
    # In this order, as Pillow has it, a flat region keeps its value to the last bit.
    value = v2 + d * (v3 - v1 + d * (2 * (v1 - v2) + v3 - v4 + d * (v2 - v1 + v4 - v3)))
    return jnp.where(inside[..., None], jnp.clip(value, 0, 255).astype(jnp.uint8), jnp.uint8(FILL))
