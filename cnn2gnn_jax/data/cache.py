"""Decoded data sets on disk. Each is a verified folder with {train,test}_{images,labels}.npy and a manifest.

For an image folder there is also {train,test}_files.json with the file of each image.
"""

import dataclasses
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from cnn2gnn_jax.data.images import ImageError
from cnn2gnn_jax.runtime import artifact, storage
from cnn2gnn_jax.runtime.errors import UserError

# The format must also be raised if the same original files would give different arrays.
KIND = artifact.Kind("a data set", format=4, remake="run the same command again")
_SPLITS = ("train", "test")
_ARRAYS = tuple(f"{split}_{kind}" for split in _SPLITS for kind in ("images", "labels"))
_CHUNK = 1024
_MAX_NAMED = 5  # number of unreadable images that an error lists


@dataclasses.dataclass(frozen=True)
class Examples:
    """The images of a split.

    count: the number of images.
    triples: the image (H, W, C) uint8, the label and the name of each image. If an image cannot be read, its error
      takes its place. Errors use the names.
    named_by_file: whether the names are the files of the images, which are then stored.
    """

    count: int
    triples: Iterable[tuple[np.ndarray | ImageError, int, str]]
    named_by_file: bool = False


@dataclasses.dataclass(frozen=True)
class Arrays:
    """The arrays of a cached data set, by split.

    images: (N, H, W, C) uint8, memory-mapped.
    labels: (N,) int32.
    files: the N files of the images relative to the image folder; None for other data sets.
    facts: a dictionary with `name`, `classes`, `mean`, `std`, `source` and `unreadable`.
    sha256: the sha256 of the file of each array.
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
    """Writes a data set to `folder`, and replaces an earlier one.

    Args:
      folder: the folder.
      name: the name of the data set.
      classes: the names of the classes, in the order of the labels.
      splits: the images of `train` and `test`.
      source: the original files: their `key` and their `path`.
      skip_unreadable: whether to skip images that cannot be read. The facts list them.

    Raises:
      UserError: a split is empty, images differ in shape, a label has no class, or images cannot be read.
    """
    with storage.atomic_folder(folder) as temporary:
        shape: tuple[int, ...] = ()
        unreadable: list[str] = []
        for split in _SPLITS:
            shape = _write_split(temporary / split, f"{name}: {split}", splits[split], len(classes), shape, unreadable)
        if not skip_unreadable:
            refuse_unreadable(name, unreadable)
        if unreadable:
            counts = np.bincount(np.load(temporary / "train_labels.npy", allow_pickle=False), minlength=len(classes))
            if not counts.all():
                raise UserError(
                    f"{name}: no training image of class {classes[int(counts.argmin())]} can be read: replace them"
                )
        mean, std = _mean_and_std(_histogram(_map(temporary / "train_images.npy")))
        facts = {
            "name": name,
            "classes": list(classes),
            "mean": mean,
            "std": std,
            "source": dict(source),
            "unreadable": unreadable,
        }
        artifact.seal(temporary, KIND, source["key"], facts)


def refuse_unreadable(name: str, unreadable: Sequence[str]) -> None:
    """Raises UserError if there are unreadable images. The error lists the first ones."""
    if unreadable:
        more = f"; and {len(unreadable) - _MAX_NAMED} more" if len(unreadable) > _MAX_NAMED else ""
        raise UserError(
            f"{name}: {len(unreadable)} images cannot be read ({'; '.join(unreadable[:_MAX_NAMED])}{more}): "
            "replace or remove them, or set data.skip_unreadable=True to leave them out"
        )


def read(folder: pathlib.Path) -> Arrays:
    """Opens the data set in `folder`, and checks the hashes of its files.

    Raises:
      artifact.Refused: the data set is missing, damaged, or of another version.
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
    """Writes one split to files whose names begin with `path`.

    All images must have the shape `shape`, or the same shape if `shape` is (). Errors of unreadable images are added to
    `unreadable`. Returns the shape of the images.
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
    unreadable_before = len(unreadable)
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
    skipped = len(unreadable) - unreadable_before
    assert written + skipped == examples.count, (what, written, skipped, examples.count)
    if images is None:
        refuse_unreadable(what, unreadable)
    assert images is not None
    np.save(labels_path, labels[:written], allow_pickle=False)
    if examples.named_by_file:
        storage.write_json(files_path, {"files": files})
    images.flush()  # type: ignore[attr-defined]
    if skipped:
        readable_path = path.with_name("readable.npy")
        np.save(readable_path, images[:written], allow_pickle=False)
        readable_path.replace(images_path)
    return shape


def _check_example(
    name: str, shape: tuple[int, ...], expected_shape: tuple[int, ...], label: int, classes: int
) -> None:
    """Raises UserError if the shape of an image differs from the expected one, or its label is out of range."""
    if shape != expected_shape:
        raise UserError(
            f"{name} is {_size(shape)}, images before it are {_size(expected_shape)}: "
            "set data.image_size to the side that all are to be resized to"
        )
    if not 0 <= label < classes:
        raise UserError(f"{name} has label {label}, expected 0 to {classes - 1}")


def _histogram(images: np.ndarray) -> np.ndarray:
    """The number of pixels with each value in each channel, (C, 256) int64."""
    counts = np.zeros((images.shape[-1], 256), np.int64)
    for start in range(0, len(images), _CHUNK):
        for channel, count in enumerate(counts):
            count += np.bincount(images[start : start + _CHUNK, ..., channel].ravel(), minlength=256)
    return counts


def _mean_and_std(counts_Cx256: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, for pixels scaled to [0, 1].

    They are computed from sums of integers, so that they are the same on all machines.
    """
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
