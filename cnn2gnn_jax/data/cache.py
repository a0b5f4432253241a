"""Decoded data sets on disk, each a verified folder: {train,test}_{images,labels}.npy, and facts about them.

Of an image folder there is also {train,test}_files.json, with the file of each image.
"""

import dataclasses
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from cnn2gnn_jax.data.images import ImageError
from cnn2gnn_jax.runtime import artifact, storage
from cnn2gnn_jax.runtime.errors import UserError

# The format is also raised when the same original files would give other arrays.
KIND = artifact.Kind("a data set", format=4, remake="run the same command again")
_SPLITS = ("train", "test")
_ARRAYS = tuple(f"{split}_{kind}" for split in _SPLITS for kind in ("images", "labels"))
_CHUNK = 1024
_NAMED = 5  # unreadable images in an error


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
    facts: `name`, `classes`, `mean`, `std`, `source`, `unreadable`.
    sha256: of the file of each array.
    """

    images: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    files: dict[str, tuple[str, ...] | None]
    facts: dict[str, Any]
    sha256: dict[str, str]


def write(
    folder: pathlib.Path,
    name: str,
    classes: Sequence[str],
    splits: Mapping[str, Examples],
    source: Mapping[str, str],
    skip_unreadable: bool = False,
) -> None:
    """Writes a data set to `folder`, replacing what is there.

    Args:
      folder: where to.
      name: the data set's name.
      classes: class names; labels index them.
      splits: `train` and `test`.
      source: what the arrays were made from: the `key` of the original files, and their `path`.
      skip_unreadable: whether images that cannot be read are left out; the facts list them.

    Raises:
      UserError: a split is empty, images differ in shape, a label has no class, or images cannot be read.
    """
    with storage.atomic_folder(folder) as beside:
        shape: tuple[int, ...] = ()
        unreadable: list[str] = []
        for split in _SPLITS:
            shape = _write_split(beside / split, f"{name}: {split}", splits[split], len(classes), shape, unreadable)
        if not skip_unreadable:
            refuse_unreadable(name, unreadable)
        if unreadable:
            left = np.bincount(np.load(beside / "train_labels.npy", allow_pickle=False), minlength=len(classes))
            if not left.all():
                raise UserError(
                    f"{name}: no training image of class {classes[int(left.argmin())]} can be read: replace them"
                )
        mean, std = _mean_and_std(_histogram(_map(beside / "train_images.npy")))
        facts = {
            "name": name,
            "classes": list(classes),
            "mean": mean,
            "std": std,
            "source": dict(source),
            "unreadable": unreadable,
        }
        artifact.seal(beside, KIND, source["key"], facts)


def refuse_unreadable(name: str, unreadable: Sequence[str]) -> None:
    """Raises UserError where there are any, naming the first of them."""
    if unreadable:
        more = f"; and {len(unreadable) - _NAMED} more" if len(unreadable) > _NAMED else ""
        raise UserError(
            f"{name}: {len(unreadable)} images cannot be read ({'; '.join(unreadable[:_NAMED])}{more}): "
            "replace or remove them, or set data.skip_unreadable=True to leave them out"
        )


def read(folder: pathlib.Path) -> Arrays:
    """Opens the data set in `folder` after hashing it.

    Raises:
      artifact.Refused: there is none, it is not as it was written, or another version wrote it.
    """
    kept = artifact.read(folder, KIND)
    with artifact.intact(folder, KIND):
        return Arrays(
            {split: kept.arrays[f"{split}_images"] for split in _SPLITS},
            {split: np.array(kept.arrays[f"{split}_labels"]) for split in _SPLITS},
            {split: _read_files(folder / f"{split}_files.json", kept.files) for split in _SPLITS},
            kept.facts,
            {name: kept.files[f"{name}.npy"]["sha256"] for name in _ARRAYS},
        )


def _read_files(path: pathlib.Path, files: Mapping[str, Any]) -> tuple[str, ...] | None:
    return tuple(storage.read_json(path)["files"]) if path.name in files else None


def _write_split(
    path: pathlib.Path,
    what: str,
    examples: Examples,
    classes: int,
    shape: tuple[int, ...],
    unreadable: list[str],
) -> tuple[int, ...]:
    """Writes one split to files whose names begin as `path`; its images must be of `shape` where that is not ().

    Adds to `unreadable` what each of its images that cannot be read suffers from, and returns the images' shape.
    """
    if not examples.count:
        raise UserError(f"{what} has no images: expected some of every class")
    images_path, labels_path, files_path = (
        path.with_name(f"{path.name}_{part}") for part in ("images.npy", "labels.npy", "files.json")
    )
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
            images = storage.new_array(images_path, np.uint8, (examples.count, *shape))
        _check_example(name, image.shape, shape, label, classes)
        images[written], labels[written] = image, label
        files.append(name)
        written += 1
    missing = len(unreadable) - missing
    assert written + missing == examples.count, (what, written, missing, examples.count)
    if images is None:
        refuse_unreadable(what, unreadable)
    assert images is not None
    np.save(labels_path, labels[:written], allow_pickle=False)
    if examples.named_by_file:
        storage.write_json(files_path, {"files": files})
    images.flush()  # type: ignore[attr-defined]
    if missing:
        whole = path.with_name("whole.npy")
        np.save(whole, images[:written], allow_pickle=False)
        whole.replace(images_path)
    return shape


def _check_example(name: str, found: tuple[int, ...], shape: tuple[int, ...], label: int, classes: int) -> None:
    """Raises UserError where an image is of another shape than those before it, or its label has no class."""
    if found != shape:
        raise UserError(
            f"{name} is {_size(found)}, images before it are {_size(shape)}: "
            "set data.image_size to the side that all are to be resized to"
        )
    if not 0 <= label < classes:
        raise UserError(f"{name} has label {label}, expected 0 to {classes - 1}")


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


def _map(path: pathlib.Path) -> np.ndarray:
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"
