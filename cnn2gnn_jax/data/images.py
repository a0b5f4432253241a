"""Decodes image files to uint8 arrays, resizes images, and encodes them as PNG."""

import concurrent.futures
import io
import os
import struct
import warnings
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageOps

from cnn2gnn_jax.runtime.errors import UserError

MAX_PIXELS = 50_000_000
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP")
_MODES_OF_8_BITS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
_MODES_OF_16_BITS = ("I;16", "I;16L", "I;16B")


class ImageError(UserError):
    """An image file that cannot be used."""


def decode(encoded: bytes, name: str, channels: int = 3, size: int = 0) -> np.ndarray:
    """Decodes an image file.

    Args:
      encoded: the contents of a JPEG, PNG, BMP or WebP file, with gray, palette or color pixels. The image is rotated
        as its EXIF data specify. Transparent images are drawn on white. 16-bit images are reduced to their upper 8
        bits, as Pillow does for 16-bit color images.
      name: the name of the image in errors.
      channels: 3 (RGB) or 1 (gray). The image is converted to it.
      size: height and width to resize to (see `resize`); 0 keeps the size.

    Returns:
      (H, W, channels) uint8.

    Raises:
      ImageError: the image is damaged, larger than 50 megapixels, or of another format.
    """
    try:
        with Image.open(io.BytesIO(encoded), formats=_FORMATS) as file:
            if file.width * file.height > MAX_PIXELS:
                raise ImageError(f"{name}: {file.width}x{file.height} pixels, more than {MAX_PIXELS:,}")
            if file.mode not in _MODES_OF_8_BITS + _MODES_OF_16_BITS:
                raise ImageError(f"{name}: pixels of mode {file.mode}")
            image = _opaque(ImageOps.exif_transpose(file))
            return _pixels(image.convert("L" if channels == 1 else "RGB"), size)
    except Image.UnidentifiedImageError:
        raise ImageError(f"{name}: no JPEG, PNG, BMP or WebP image") from None
    except (OSError, ValueError, SyntaxError, struct.error, Image.DecompressionBombError) as error:
        raise ImageError(f"{name}: damaged or too large an image ({error})") from None


def decode_all(
    encoded: Sequence[bytes], names: Sequence[str], channels: int, size: int
) -> list[np.ndarray | ImageError]:
    """Decodes many files in parallel. If an image cannot be used, its error takes its place."""

    def decode_or_error(content: bytes, name: str) -> np.ndarray | ImageError:
        try:
            return decode(content, name, channels, size)
        except ImageError as error:
            return error

    with warnings.catch_warnings(), concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        # Pillow warns above its own limit of pixels, which is larger than ours, and about metadata.
        warnings.simplefilter("ignore")
        return list(pool.map(decode_or_error, encoded, names))


def resize(image_HxWxC: np.ndarray, size: int) -> np.ndarray:
    """Crops the center square of a uint8 image and resizes it to (size, size, C), with Pillow's bicubic filter."""
    is_gray = image_HxWxC.shape[-1] == 1
    return _pixels(Image.fromarray(image_HxWxC[..., 0] if is_gray else image_HxWxC), size)


def encode_png(image_HxWxC: np.ndarray) -> bytes:
    """Encodes a (H, W, 1 or 3) uint8 image as PNG."""
    buffer = io.BytesIO()
    is_gray = image_HxWxC.shape[-1] == 1
    # Compression level 1 is several times faster than the default, and files of small photographs are hardly larger.
    Image.fromarray(image_HxWxC[..., 0] if is_gray else image_HxWxC).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _opaque(image: Image.Image) -> Image.Image:
    if image.mode in _MODES_OF_16_BITS:
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)


def _pixels(image: Image.Image, size: int) -> np.ndarray:
    if size and image.size != (size, size):
        side = min(image.size)
        left, top = (image.width - side) / 2, (image.height - side) / 2
        image = image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    pixels = np.array(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels
