"""Reads image files and prepares them in the same way as the images of a data set."""

import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cnn2gnn_jax.data import images
from cnn2gnn_jax.runtime.console import log
from cnn2gnn_jax.runtime.errors import UserError

_MAX_NAMED = 5  # in an error message


class Pictures(NamedTuple):
    """Images as a student takes them.

    names: their N files.
    pixels: (N, H, W, C) uint8.
    """

    names: list[str]
    pixels: np.ndarray


def read_pictures(
    paths: Sequence[pathlib.Path], image_shape: tuple[int, int, int], skip_unreadable: bool = False
) -> Pictures:
    """Reads image files and prepares them in the same way as the images of a data set.

    Args:
      paths: files and folders. All image files of a folder and its subfolders are read, sorted by path.
      image_shape: (H, W, C), the shape of the images of the data set.
      skip_unreadable: whether to skip files that cannot be read; a message names each of them.

    Raises:
      UserError: there is no image, or a file cannot be read and `skip_unreadable` is False.
    """
    height, width, channels = image_shape
    files = [file for path in paths for file in _files(path)]
    names, pixels, unreadable = [], [], []
    for start in range(0, len(files), 100):
        batch = files[start : start + 100]
        encoded = [_read_bytes(file) for file in batch]
        decoded = images.decode_all(encoded, [str(file) for file in batch], channels, height if height == width else 0)
        for file, image in zip(batch, decoded, strict=True):
            if isinstance(image, images.ImageError):
                unreadable.append(str(image))
            elif image.shape != image_shape:
                size = "x".join(map(str, image.shape[1::-1]))
                unreadable.append(f"{file}: found {size} pixels, expected {width}x{height}")
            else:
                names.append(str(file))
                pixels.append(image)
    if unreadable and not skip_unreadable:
        more = f"; and {len(unreadable) - _MAX_NAMED} more" if len(unreadable) > _MAX_NAMED else ""
        raise UserError(
            f"{len(unreadable)} of {len(files)} files cannot be read ({'; '.join(unreadable[:_MAX_NAMED])}{more}): "
            "replace or remove them, or skip them with --skip_unreadable"
        )
    for reason in unreadable:
        log(f"skipped: {reason}")
    if not pixels:
        raise UserError(f"there is no image to classify: none of the {len(files)} files can be read")
    return Pictures(names, np.stack(pixels))


def _read_bytes(file: pathlib.Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None


def _files(path: pathlib.Path) -> list[pathlib.Path]:
    if path.is_dir():
        files = [file for file in path.rglob("*") if file.suffix.lower() in images.IMAGE_SUFFIXES and file.is_file()]
        visible = [file for file in files if not any(part.startswith(".") for part in file.relative_to(path).parts)]
        if not visible:
            raise UserError(
                f"{path} holds no image ({', '.join(images.IMAGE_SUFFIXES)}): give a folder that holds images"
            )
        return sorted(visible)
    if not path.exists():
        raise UserError(f"{path} does not exist: give an image or a folder of images")
    return [path]
