"""Pillow's image operations in JAX, for one image (H, W, C) uint8 with 1 or 3 channels.

The pixels differ by at most one gray level from Pillow's ImageOps, ImageEnhance, and Image.transform with the fill
value 128. Operations that move pixels take Python numbers, so that source positions are computed once, in float64 as in
Pillow.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

FILL = 128


def invert(image: jax.Array) -> jax.Array:
    """Replaces each pixel by 255 - pixel."""
    return 255 - image


def posterize(image: jax.Array, bits: int) -> jax.Array:
    """Keeps the highest `bits` bits of each pixel."""
    return image & (256 - 2 ** (8 - bits))


def solarize(image: jax.Array, threshold: int) -> jax.Array:
    """Inverts pixels that are at least `threshold`, which is from 0 to 256."""
    return jnp.where(image.astype(jnp.int32) < threshold, image, 255 - image)


def autocontrast(image: jax.Array) -> jax.Array:
    """Stretches each channel to the range 0 to 255. A constant channel does not change."""
    low, high = (reduce(image.astype(jnp.int32), axis=(0, 1)) for reduce in (jnp.min, jnp.max))
    stretched = (image - low) * 255 // jnp.maximum(high - low, 1)
    return jnp.where(high > low, stretched, image).astype(jnp.uint8)


def equalize(image: jax.Array) -> jax.Array:
    """Equalizes the histogram of each channel."""
    return jax.vmap(_equalize_channel, in_axes=-1, out_axes=-1)(image)


def _equalize_channel(channel: jax.Array) -> jax.Array:
    pixels = channel.astype(jnp.int32).ravel()
    darker = jnp.searchsorted(jnp.sort(pixels), jnp.arange(256))  # number of pixels darker than each level
    step = darker[jnp.max(pixels)] // 255
    table = jnp.minimum((step // 2 + darker) // jnp.maximum(step, 1), 255)
    return jnp.where(step > 0, table[channel], channel).astype(jnp.uint8)


def brightness(image: jax.Array, factor: ArrayLike) -> jax.Array:
    """Scales the difference from black by `factor`: 1 does not change the image, a smaller factor makes it darker."""
    return _blend(jnp.zeros_like(image), image, factor)


def contrast(image: jax.Array, factor: ArrayLike) -> jax.Array:
    """Scales the difference from the image's mean gray level by `factor`."""
    total, pixels = jnp.sum(_gray(image)), image.shape[0] * image.shape[1]
    return _blend((2 * total + pixels) // (2 * pixels), image, factor)


def color(image: jax.Array, factor: ArrayLike) -> jax.Array:
    """Scales the difference from each pixel's gray level by `factor`. A gray image does not change."""
    return image if image.shape[-1] == 1 else _blend(_gray(image), image, factor)


def sharpness(image: jax.Array, factor: ArrayLike) -> jax.Array:
    """Scales the difference from a smoothed image by `factor`.

    The smoothing kernel is 3x3 with weight 5/13 at the center and 1/13 elsewhere. Border pixels are not smoothed.
    """
    height, width = image.shape[:2]
    if min(height, width) < 3:
        return _blend(image, image, factor)
    x = image.astype(jnp.int32)
    neighborhood = sum(x[i : height - 2 + i, j : width - 2 + j] for i in range(3) for j in range(3))
    smoothed = (2 * (neighborhood + 4 * x[1:-1, 1:-1]) + 13) // 26
    return _blend(x.at[1:-1, 1:-1].set(smoothed), image, factor)


def translate_x(image: jax.Array, pixels: float) -> jax.Array:
    """Moves the image left by `pixels`, with nearest-neighbor interpolation."""
    x, y = _pixel_centers(image)
    return _nearest(image, np.floor(x + pixels), np.floor(y))


def translate_y(image: jax.Array, pixels: float) -> jax.Array:
    """Moves the image up by `pixels`, with nearest-neighbor interpolation."""
    x, y = _pixel_centers(image)
    return _nearest(image, np.floor(x), np.floor(y + pixels))


def rotate(image: jax.Array, degrees: float) -> jax.Array:
    """Rotates the image counterclockwise about its center, with nearest-neighbor interpolation."""
    height, width = image.shape[:2]
    cos, sin = (round(f(-math.radians(degrees % 360)), 15) for f in (math.cos, math.sin))
    matrix = (
        (cos, sin, width / 2 - cos * width / 2 - sin * height / 2),
        (-sin, cos, height / 2 + sin * width / 2 - cos * height / 2),
    )
    columns, rows = np.arange(width), np.arange(height)[:, None]

    def source(a: float, b: float, c: float) -> np.ndarray:
        # Pillow computes positions in fixed-point numbers with 16 fractional bits.
        start, right, down = (math.floor(v * 65536 + 0.5) for v in (c + a / 2 + b / 2, a, b))
        return (start + right * columns + down * rows) >> 16

    return _nearest(image, *(source(*row) for row in matrix))


def shear_x(image: jax.Array, slope: float) -> jax.Array:
    """Moves each row left by `slope` times its distance from the top, with bicubic interpolation."""
    x, y = _pixel_centers(image)
    return _bicubic(image, x + slope * y, axis=1)


def shear_y(image: jax.Array, slope: float) -> jax.Array:
    """Moves each column up by `slope` times its distance from the left, with bicubic interpolation."""
    x, y = _pixel_centers(image)
    return _bicubic(image, y + slope * x, axis=0)


def _gray(image: jax.Array) -> jax.Array:
    """The gray levels (luma) of an image, (H, W, 1) int32."""
    if image.shape[-1] == 1:
        return image.astype(jnp.int32)
    weighted = image.astype(jnp.int32) * jnp.array([19595, 38470, 7471])
    return (jnp.sum(weighted, axis=-1, keepdims=True) + 0x8000) >> 16


def _blend(start: jax.Array, image: jax.Array, factor: ArrayLike) -> jax.Array:
    """Returns start + factor * (image - start), clipped to 0..255 and rounded down, as uint8."""
    start, difference = start.astype(jnp.float32), image.astype(jnp.float32) - start.astype(jnp.float32)
    return jnp.clip(start + jnp.asarray(factor, jnp.float32) * difference, 0, 255).astype(jnp.uint8)


def _pixel_centers(image: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """The coordinates of the centers of the pixels: x (1, W) and y (H, 1)."""
    return np.arange(image.shape[1])[None] + 0.5, np.arange(image.shape[0])[:, None] + 0.5


def _nearest(image: jax.Array, columns: np.ndarray, rows: np.ndarray) -> jax.Array:
    """Takes each pixel from the given column and row, or FILL if these are outside the image."""
    columns, rows = (np.broadcast_to(index, image.shape[:2]).astype(np.int32) for index in (columns, rows))
    height, width = image.shape[:2]
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    pixels = image[np.clip(rows, 0, height - 1), np.clip(columns, 0, width - 1)]
    return jnp.where(inside[..., None], pixels, jnp.uint8(FILL))


def _bicubic(image: jax.Array, positions: np.ndarray, axis: int) -> jax.Array:
    """Cubic interpolation (a = -1) along one axis at `positions` (H, W), or FILL if these are outside the image."""
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
    # This order of operations is Pillow's. It keeps the values of constant regions exactly.
    value = v2 + d * (v3 - v1 + d * (2 * (v1 - v2) + v3 - v4 + d * (v2 - v1 + v4 - v3)))
    return jnp.where(inside[..., None], jnp.clip(value, 0, 255).astype(jnp.uint8), jnp.uint8(FILL))
