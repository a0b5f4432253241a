"""Decoded data sets on disk: {train,test}_{images,labels}.npy and a manifest with their hashes.

Of an image folder there is also {train,test}_files.json, with the file of each image.

A folder is written whole or not at all, and read only if every byte is as the manifest says.
"""

import dataclasses
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from cnn2gnn_jax.data.images import ImageError
from cnn2gnn_jax.runtime import storage
from cnn2gnn_jax.runtime.errors import UserError

VERSION = 3  # to be raised whenever the same original files would give other arrays
_SPLITS = ("train", "test")
_ARRAYS = tuple(f"{split}_{kind}" for split in _SPLITS for kind in ("images", "labels"))
_CHUNK = 1024
_NAMED = 5  # unreadable images in an error


class Damaged(Exception):
    """A cache that is there but not as it was written: the message says in what."""


class Outdated(Damaged):
    """A cache that is as it was written, by another version of this program."""


@dataclasses.dataclass(frozen=True)
class Examples:
    """The images of a split, (H, W, C) uint8 each, with their labels, one after another; names are for errors.

    An image that cannot be read is there as its error. With `named_by_file` a name is the image's file, and is kept.
    """

    count: int
    triples: Iterable[tuple[np.ndarray | ImageError, int, str]]
    named_by_file: bool = False


@dataclasses.dataclass(frozen=True)
class Arrays:
    """A cache that was read: memory-mapped images (N, H, W, C) uint8 and labels (N,) int32 of each split.

    files: of an image folder the N files of each split, relative to the folder; otherwise None.
    """

    images: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    files: dict[str, tuple[str, ...] | None]
    manifest: dict[str, Any]


def write(
    folder: pathlib.Path,
    name: str,
    classes: Sequence[str],
    splits: Mapping[str, Examples],
    source: Mapping[str, str],
    skip_unreadable: bool = False,
) -> None:
    """Writes a data set to `folder`, replacing what is there; call it under the folder's lock.

    Args:
      folder: where to.
      name: the data set's name.
      classes: class names; labels index them.
      splits: `train` and `test`.
      source: what the arrays were made from, for the manifest.
      skip_unreadable: whether images that cannot be read are left out; the manifest lists them.

    Raises:
      UserError: a split is empty, images differ in shape, a label has no class, or images cannot be read.
    """
    with storage.atomic_folder(folder) as beside:
        shape: tuple[int, ...] = ()
        unreadable: list[str] = []
        for split in _SPLITS:
            shape = _write_split(beside, f"{name}: {split}", split, splits[split], len(classes), shape, unreadable)
        if not skip_unreadable:
            refuse_unreadable(name, unreadable)
        if unreadable:
            left = np.bincount(np.load(beside / "train_labels.npy", allow_pickle=False), minlength=len(classes))
            if not left.all():
                raise UserError(
                    f"{name}: no training image of class {classes[int(left.argmin())]} can be read: replace them"
                )
        mean, std = _mean_and_std(_histogram(_map(beside / "train_images.npy")))
        manifest = {
            "version": VERSION,
            "name": name,
            "classes": list(classes),
            "mean": mean,
            "std": std,
            "source": dict(source),
            "unreadable": unreadable,
            "arrays": {key: _describe(beside / f"{key}.npy") for key in _ARRAYS},
            "files": {
                split: storage.sha256(beside / f"{split}_files.json") if splits[split].named_by_file else None
                for split in _SPLITS
            },
        }
        manifest["fingerprint"] = storage.fingerprint(manifest)
        storage.write_json(beside / "manifest.json", manifest)


def refuse_unreadable(name: str, unreadable: Sequence[str]) -> None:
    """Raises UserError where there are any, naming the first of them."""
    if unreadable:
        more = f"; and {len(unreadable) - _NAMED} more" if len(unreadable) > _NAMED else ""
        raise UserError(
            f"{name}: {len(unreadable)} images cannot be read ({'; '.join(unreadable[:_NAMED])}{more}): "
            "replace or remove them, or set data.skip_unreadable=True to leave them out"
        )


def read(folder: pathlib.Path) -> Arrays | None:
    """Opens the data set in `folder` after hashing it; None where there is none.

    Raises:
      Damaged: it is not as its manifest says.
      Outdated: another version wrote it.
    """
    if not folder.exists():
        return None
    try:
        manifest = storage.read_json(folder / "manifest.json")
        if manifest.get("version") != VERSION:
            raise Outdated(f"its layout is {manifest.get('version')}, and this version's is {VERSION}")
        if manifest.pop("fingerprint", "") != storage.fingerprint(manifest):
            raise Damaged("manifest.json does not match its own fingerprint")
        for key in _ARRAYS:
            expected = manifest["arrays"][key]["sha256"]
            if (found := storage.sha256(folder / f"{key}.npy")) != expected:
                raise Damaged(f"{key}.npy has sha256 {found}, expected {expected}")
        arrays = {key: _map(folder / f"{key}.npy") for key in _ARRAYS}
        return Arrays(
            {split: arrays[f"{split}_images"] for split in _SPLITS},
            {split: np.array(arrays[f"{split}_labels"]) for split in _SPLITS},
            {split: _read_files(folder / f"{split}_files.json", manifest["files"][split]) for split in _SPLITS},
            manifest,
        )
    except (UserError, OSError, ValueError) as error:
        raise Damaged(str(error)) from None
    except (KeyError, TypeError):
        raise Damaged("manifest.json lists no arrays") from None


def _read_files(path: pathlib.Path, expected: str | None) -> tuple[str, ...] | None:
    if expected is None:
        return None
    if (found := storage.sha256(path)) != expected:
        raise Damaged(f"{path.name} has sha256 {found}, expected {expected}")
    return tuple(storage.read_json(path)["files"])


def _write_split(
    folder: pathlib.Path,
    what: str,
    split: str,
    examples: Examples,
    classes: int,
    shape: tuple[int, ...],
    unreadable: list[str],
) -> tuple[int, ...]:
    """Writes one split, whose images must be of `shape` where that is not (), and returns the shape they have.

    Adds to `unreadable` what each of its images that cannot be read suffers from.
    """
    if not examples.count:
        raise UserError(f"{what} has no images: expected some of every class")
    labels = np.empty(examples.count, np.int32)
    images: np.ndarray | None = None
    files: list[str] = []
    written = 0
    missing = len(unreadable)
    for image, label, name in examples.triples:
        if isinstance(image, ImageError):
            unreadable.append(str(image))
            continue
        if images is None:
            shape = shape or image.shape
            images = storage.new_array(folder / f"{split}_images.npy", np.uint8, (examples.count, *shape))
        if image.shape != shape:
            raise UserError(
                f"{name} is {_size(image.shape)}, images before it are {_size(shape)}: "
                "set data.image_size to the side that all are to be resized to"
            )
        if not 0 <= label < classes:
            raise UserError(f"{name} has label {label}, expected 0 to {classes - 1}")
        images[written], labels[written] = image, label
        files.append(name)
        written += 1
    missing = len(unreadable) - missing
    assert written + missing == examples.count, (what, written, missing, examples.count)
    if images is None:
        refuse_unreadable(what, unreadable)
    assert images is not None
    np.save(folder / f"{split}_labels.npy", labels[:written], allow_pickle=False)
    if examples.named_by_file:
        storage.write_json(folder / f"{split}_files.json", {"files": files})
    images.flush()  # type: ignore[attr-defined]
    if missing:
        path = folder / f"{split}_images.npy"
        np.save(folder / "whole.npy", images[:written], allow_pickle=False)
        (folder / "whole.npy").replace(path)
    return shape


def _histogram(images: np.ndarray) -> np.ndarray:
    """How often each value occurs in each channel, (C, 256) int64."""
    counts = np.zeros((images.shape[-1], 256), np.int64)
    for start in range(0, len(images), _CHUNK):
        for channel, count in enumerate(counts):
            count += np.bincount(images[start : start + _CHUNK, ..., channel].ravel(), minlength=256)
    return counts


def _mean_and_std(counts_Cx256: np.ndarray) -> tuple[list[float], list[float]]:
    """Per channel, in units of [0, 1], from integer sums: the same on every machine."""
    values = np.arange(256)
    pixels = [int(count.sum()) for count in counts_Cx256]
    sums = [int((count * values).sum()) for count in counts_Cx256]
    squares = [int((count * values**2).sum()) for count in counts_Cx256]
    mean = [total / n / 255 for total, n in zip(sums, pixels, strict=True)]
    std = [
        ((square * n - total**2) / n**2) ** 0.5 / 255 for square, total, n in zip(squares, sums, pixels, strict=True)
    ]
    return mean, std


def _describe(path: pathlib.Path) -> dict[str, Any]:
    array = _map(path)
    return {"shape": list(array.shape), "dtype": str(array.dtype), "sha256": storage.sha256(path)}


def _map(path: pathlib.Path) -> np.ndarray:
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"
