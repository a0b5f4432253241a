"""Reads the published binary formats of CIFAR and STL-10, from a folder or an archive, to arrays.

CIFAR: https://www.cs.toronto.edu/~kriz/cifar.html; STL-10: https://cs.stanford.edu/~acoates/stl10/.
"""

import pathlib
import tarfile

import numpy as np

from cnn2gnn_jax.runtime.errors import UserError

MAX_BYTES = 1 << 30  # of a file; the published files have at most 221 MB
MAX_MEMBERS = 1000  # of an archive; the published archives have at most 13
_CIFAR_SIDE = 32
_STL10_SIDE = 96


def read_files(path: pathlib.Path, folder: str, names: tuple[str, ...]) -> dict[str, bytes]:
    """Returns the contents of the files `names` in the folder `path`, or in `folder`/ of the tar archive `path`.

    The archive is streamed and not extracted. Only regular members with exactly these names are read.

    Raises:
      UserError: the archive is damaged, a file is missing or too large, or there are too many files.
    """
    if path.is_dir():
        for file in names:
            _check_size((path / file).stat().st_size, f"{path / file}")
        return {name: (path / name).read_bytes() for name in names}
    name_of_member = {f"{folder}/{name}": name for name in names}
    contents: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r|*") as archive:
            for number, member in enumerate(archive):
                if number == MAX_MEMBERS:
                    raise UserError(f"{path} has more than {MAX_MEMBERS:,} members: fetch it again")
                name = name_of_member.get(member.name.removeprefix("./"))
                if name is None or not member.isreg():
                    continue
                _check_size(member.size, f"{path}: {name}")
                stream = archive.extractfile(member)
                assert stream is not None, member.name
                contents[name] = stream.read()
                if (size := len(contents[name])) != member.size:
                    raise UserError(f"{path}: {name} has {size:,} of {member.size:,} bytes: fetch it again")
                if len(contents) == len(names):
                    break
    except UserError:
        raise
    except Exception as error:  # tarfile and the decompressors raise many kinds of exceptions
        raise UserError(f"{path} is no whole tar archive ({error}): fetch it again") from None
    if missing := [name for name in names if name not in contents]:
        raise UserError(f"{path} lacks {folder}/{missing[0]}: fetch it again")
    return contents


def _check_size(size: int, what: str) -> None:
    if size > MAX_BYTES:
        raise UserError(f"{what} has {size:,} bytes, expected at most {MAX_BYTES:,}: fetch it again")


def cifar(data: bytes, label_bytes: int, classes: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Parses CIFAR's binary version: label bytes, then the red, green and blue planes of 32 x 32 pixels, row by row.

    Args:
      data: the contents of one file, or of several files one after another.
      label_bytes: 1 for CIFAR-10, 2 for CIFAR-100 (coarse and fine label). The last byte is the label.
      classes: the number of classes.
      name: the name of the file in errors.

    Returns:
      Images (N, 32, 32, 3) uint8 and labels (N,) int32.

    Raises:
      UserError: the size is not a multiple of the record size, or a label is out of range.
    """
    pixels = 3 * _CIFAR_SIDE**2
    records = _rows(data, label_bytes + pixels, name)
    images = records[:, label_bytes:].reshape(-1, 3, _CIFAR_SIDE, _CIFAR_SIDE).transpose(0, 2, 3, 1)
    return images, _labels(records[:, label_bytes - 1], 0, classes, name)


def stl10(images: bytes, labels: bytes, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Parses STL-10's files: 3 planes of 96 x 96 pixels per image, column by column, and labels from 1 to 10.

    Args:
      images: the contents of the file with images.
      labels: the contents of the file with labels.
      name: the name of the files in errors.

    Returns:
      Images (N, 96, 96, 3) uint8 and labels (N,) int32, which begin at 0.

    Raises:
      UserError: the size is not a multiple of the image size, the number of labels differs from the number of images,
        or a label is out of range.
    """
    rows = _rows(images, 3 * _STL10_SIDE**2, name)
    if len(labels) != len(rows):
        raise UserError(f"{name}: {len(labels):,} labels for {len(rows):,} images: fetch both files again")
    pixels = rows.reshape(-1, 3, _STL10_SIDE, _STL10_SIDE).transpose(0, 3, 2, 1)
    return pixels, _labels(np.frombuffer(labels, np.uint8), 1, 10, name)


def class_names(data: bytes, classes: int, name: str) -> list[str]:
    """Parses a text file with one class name per line.

    Raises:
      UserError: there are not exactly `classes` different names.
    """
    names = data.decode("utf-8", errors="replace").split()
    if len(names) != classes or len(set(names)) != classes:
        raise UserError(f"{name}: {len(set(names))} class names, expected {classes}: fetch it again")
    return names


def _rows(data: bytes, length: int, name: str) -> np.ndarray:
    if not data or len(data) % length:
        rows = max(-(-len(data) // length), 1)
        raise UserError(
            f"{name} is truncated: {len(data):,} bytes, expected a multiple of {length:,} such as {rows * length:,}: "
            "fetch it again"
        )
    return np.frombuffer(data, np.uint8).reshape(-1, length)


def _labels(raw: np.ndarray, first: int, classes: int, name: str) -> np.ndarray:
    if raw.min() < first or raw.max() >= first + classes:
        wrong = int(raw.min() if raw.min() < first else raw.max())
        raise UserError(f"{name} is damaged: label {wrong}, expected {first} to {first + classes - 1}: fetch it again")
    return raw.astype(np.int32) - first
