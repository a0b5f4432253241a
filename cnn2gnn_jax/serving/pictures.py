"""Reads image files, and prepares them as the images of the data set."""

import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cnn2gnn_jax.data import images
from cnn2gnn_jax.runtime.console import log
from cnn2gnn_jax.runtime.errors import UserError

_MAX_NAMED = 5  # in an error message


class Pictures(NamedTuple):
    """N images for a student.

    names: their files.
    pixels: (N, H, W, C) uint8.
    """

    names: list[str]
    pixels: np.ndarray


def read_pictures(
    paths: Sequence[pathlib.Path], image_shape: tuple[int, int, int], skip_unreadable: bool = False
) -> Pictures:
    """Reads image files, and prepares them as the images of the data set.

    Args:
      paths: files and folders. Of a folder, all image files at any depth are read, sorted by name.
      image_shape: (H, W, C) of the data set.
      skip_unreadable: whether to skip files that cannot be read, and log their names.

    Raises:
      UserError: there is no image; or a file cannot be read and `skip_unreadable` is false.
    """
    height, width, channels = image_shape
    files = [file for path in paths for file in _files(path)]
    names, pixels, unreadable = [], [], []
    for start in range(0, len(files), 100):
        part = files[start : start + 100]
        content = [_content(file) for file in part]
        decoded = images.decode_all(content, [str(file) for file in part], channels, height if height == width else 0)
        for file, image in zip(part, decoded, strict=True):
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
            "replace or remove them, or leave them out with --skip_unreadable"
        )
    for reason in unreadable:
        log(f"left out: {reason}")
    if not pixels:
        raise UserError(f"no image to classify: none of {len(files)} files can be read")
    return Pictures(names, np.stack(pixels))


def _content(file: pathlib.Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None


def _files(path: pathlib.Path) -> list[pathlib.Path]:
    if path.is_dir():
        image_files = [
            file for file in path.rglob("*") if file.suffix.lower() in images.IMAGE_SUFFIXES and file.is_file()
        ]
        visible = [
            file for file in image_files if not any(part.startswith(".") for part in file.relative_to(path).parts)
        ]
        if not visible:
            raise UserError(f"{path} holds no image ({', '.join(images.IMAGE_SUFFIXES)}): give a folder that does")
        return sorted(visible)
    if not path.exists():
        raise UserError(f"{path} does not exist: give an image, or a folder of images")
    return [path]
