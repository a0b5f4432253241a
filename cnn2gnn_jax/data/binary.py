"""The published binary formats of CIFAR and STL-10, from their folder or archive to arrays.

CIFAR: https://www.cs.toronto.edu/~kriz/cifar.html; STL-10: https://cs.stanford.edu/~acoates/stl10/.
"""

import pathlib
import tarfile

import numpy as np

from cnn2gnn_jax.runtime.errors import UserError

LARGEST = 1 << 30  # bytes of a file: the published ones have 221 MB at most
MOST_MEMBERS = 1000  # of an archive: the published ones have 13 at most
_CIFAR_SIDE = 32
_STL10_SIDE = 96


def read_files(path: pathlib.Path, folder: str, names: tuple[str, ...]) -> dict[str, bytes]:
    """The contents of `names`, from the folder `path` or streamed from `folder`/ in the tar archive `path`.

    Nothing is extracted: regular members under exactly these names are read and all others passed over.

    Raises:
      UserError: the archive is damaged or lacks a file, or a file or their number is far too large.
    """
    if path.is_dir():
        for file in names:
            _check_size((path / file).stat().st_size, f"{path / file}")
        return {name: (path / name).read_bytes() for name in names}
    wanted = {f"{folder}/{name}": name for name in names}
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r|*") as archive:
            for number, member in enumerate(archive):
                if number == MOST_MEMBERS:
                    raise UserError(f"{path} has more than {MOST_MEMBERS:,} members: fetch it again")
                name = wanted.get(member.name.removeprefix("./"))
                if name is None or not member.isreg():
                    continue
                _check_size(member.size, f"{path}: {name}")
                content = archive.extractfile(member)
                assert content is not None, member.name
                found[name] = content.read()
                if len(found[name]) != member.size:
                    raise UserError(f"{path}: {name} has {len(found[name]):,} of {member.size:,} bytes: fetch it again")
                if len(found) == len(names):
                    break
    except UserError:
        raise
    except Exception as error:  # of tarfile and what decompresses for it, many kinds
        raise UserError(f"{path} is no whole tar archive ({error}): fetch it again") from None
    if missing := [name for name in names if name not in found]:
        raise UserError(f"{path} lacks {folder}/{missing[0]}: fetch it again")
    return found


def _check_size(size: int, what: str) -> None:
    if size > LARGEST:
        raise UserError(f"{what} has {size:,} bytes, expected at most {LARGEST:,}: fetch it again")


def cifar(data: bytes, label_bytes: int, classes: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Records of CIFAR's binary version: label bytes, then the red, green and blue planes of 32 x 32, row by row.

    Args:
      data: one file, or several in a row.
      label_bytes: 1 (CIFAR-10) or 2 (CIFAR-100: coarse, then fine); the last one is the label.
      classes: how many classes there are.
      name: what to call it in errors.

    Returns:
      images (N, 32, 32, 3) uint8, labels (N,) int32.

    Raises:
      UserError: no whole number of records, or a label out of range.
    """
    pixels = 3 * _CIFAR_SIDE**2
    records = _rows(data, label_bytes + pixels, name)
    images = records[:, label_bytes:].reshape(-1, 3, _CIFAR_SIDE, _CIFAR_SIDE).transpose(0, 2, 3, 1)
    return images, _labels(records[:, label_bytes - 1], 0, classes, name)


def stl10(images: bytes, labels: bytes, name: str) -> tuple[np.ndarray, np.ndarray]:
    """STL-10's files: 3 planes of 96 x 96 an image, each column by column; labels from 1 to 10.

    Returns:
      images (N, 96, 96, 3) uint8, labels (N,) int32 from 0.

    Raises:
      UserError: no whole number of images, another number of labels, or a label out of range.
    """
    rows = _rows(images, 3 * _STL10_SIDE**2, name)
    if len(labels) != len(rows):
        raise UserError(f"{name}: {len(labels):,} labels for {len(rows):,} images: fetch both files again")
    pixels = rows.reshape(-1, 3, _STL10_SIDE, _STL10_SIDE).transpose(0, 3, 2, 1)
    return pixels, _labels(np.frombuffer(labels, np.uint8), 1, 10, name)


def class_names(data: bytes, classes: int, name: str) -> list[str]:
    """The class names in a text file with one a line.

    Raises:
      UserError: not `classes` different names.
    """
    names = data.decode("utf-8", errors="replace").split()
    if len(names) != classes or len(set(names)) != classes:
        raise UserError(f"{name}: {len(set(names))} class names, expected {classes}: fetch it again")
    return names


def _rows(data: bytes, length: int, name: str) -> np.ndarray:
    if not data or len(data) % length:
        whole = max(-(-len(data) // length), 1)
        raise UserError(
            f"{name} is truncated: {len(data):,} bytes, expected a multiple of {length:,} such as {whole * length:,}: "
            "fetch it again"
        )
    return np.frombuffer(data, np.uint8).reshape(-1, length)


def _labels(raw: np.ndarray, first: int, classes: int, name: str) -> np.ndarray:
    if raw.min() < first or raw.max() >= first + classes:
        wrong = int(raw.min() if raw.min() < first else raw.max())
        raise UserError(f"{name} is damaged: label {wrong}, expected {first} to {first + classes - 1}: fetch it again")
    return raw.astype(np.int32) - first
