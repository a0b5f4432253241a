"""Data sets as uint8 arrays. `load` opens a data set from a cache, which is created once and verified on every use."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from cnn2gnn_jax.data import cache, ingest, selection
from cnn2gnn_jax.runtime import storage
from cnn2gnn_jax.runtime.errors import UserError


@dataclasses.dataclass(frozen=True)
class Split:
    """N images with their labels.

    images: (N, H, W, C) uint8. If all images are used, the array is memory-mapped and read-only.
    labels: (N,) int32.
    index: (N,) int32, the positions in this split. For `train` they are also the rows of the graph head.
    files: the file of each image relative to the image folder, with / as separator; None for other data sets.
    """

    images: np.ndarray
    labels: np.ndarray
    index: np.ndarray
    files: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.labels)


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set with its splits.

    name: the name of the data set.
    classes: the names of the classes, in the order of the labels.
    train, test: the splits.
    holdout: the held-out training images; None if there are none.
    mean, std: mean and standard deviation of each channel over all training images (regardless of `limit` and
      `holdout`), for pixels scaled to [0, 1].
    fingerprint: a hash of everything that affects results: name, image size, contents, limit and holdout. It does not
      depend on paths.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    holdout: Split | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str

    @property
    def train_images(self) -> int:
        """The number of training images."""
        return len(self.train)


def load(config: Any, cache_dir: pathlib.Path, fetch: bool = True) -> Dataset:
    """Opens a data set. On first use, its images are downloaded if necessary and decoded into `cache_dir`.

    Args:
      config: the section `data` of a config that `cnn2gnn_jax.config.resolve` has checked, or an object with the same
        attributes:
        name: `digits`, `cifar10`, `cifar100`, `stl10`, `mini_imagenet`, `image_folder`, or any data set with images and
          labels that TFDS has prepared as array_record.
        image_size: height and width to which images are cropped and resized; 0 keeps the published size.
        manual_dir: the folder with the original files, or TFDS's data_dir. If it is '', downloaded or cached files are
          used. An image folder needs it.
        classes: the number of classes to use, the first in order; 0 uses all.
        limit: the number of images to use of each class in each split, the first in order; 0 uses all.
        holdout: the fraction of the training images of each class (after `limit`) to hold out.
        holdout_seed: the seed that chooses the held-out images.
        skip_unreadable: whether to skip images that cannot be read, with a warning for each.
        test_fraction, split_seed: for an image folder without a test folder, the fraction of each class that becomes
          test images, and the seed that chooses them.
      cache_dir: the folder of the caches. Several processes may use it at the same time.
      fetch: whether to download missing files.

    Raises:
      UserError: the data set is unknown or cannot be found, or its files are wrong.
    """
    arrays = ingest.arrays(config, pathlib.Path(cache_dir), fetch)
    facts = arrays.facts
    if not min(facts["std"]) > 0:
        raise UserError(f"{config.name}: a channel is the same in all training images: they cannot be normalised")
    if config.classes > len(facts["classes"]):
        raise UserError(
            f"data.classes={config.classes}, but {config.name} has {len(facts['classes'])}: choose at most that"
        )
    train, holdout = _training_positions(config, arrays.labels["train"], facts["classes"])
    return Dataset(
        name=config.name,
        classes=tuple(facts["classes"][: config.classes or None]),
        train=_split(arrays, "train", train),
        test=_split(arrays, "test", _selected_positions(config, arrays.labels["test"])),
        holdout=None if holdout is None else _split(arrays, "train", holdout),
        mean=tuple(facts["mean"]),
        std=tuple(facts["std"]),
        fingerprint=_fingerprint(config, arrays),
    )


def _selected_positions(config: Any, labels: np.ndarray) -> np.ndarray | None:
    """The positions in a split that `limit` and `classes` select; None for all."""
    return (
        selection.first_of_each_class(labels, config.limit, config.classes) if config.limit or config.classes else None
    )


def _training_positions(
    config: Any, labels: np.ndarray, names: Sequence[str]
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """The positions of the training images (None for all) and of the held-out images (None if there are none)."""
    selected = _selected_positions(config, labels)
    if not config.holdout:
        return selected, None
    labels = labels if selected is None else labels[selected]
    train, holdout = selection.hold_out(labels, config.holdout, config.holdout_seed, names=names)
    return (train, holdout) if selected is None else (selected[train], selected[holdout])


def _fingerprint(config: Any, arrays: cache.Arrays) -> str:
    return storage.fingerprint(
        {
            "name": config.name,
            "image_shape": list(arrays.images["train"].shape[1:]),
            "sha256": arrays.sha256,
            "limit": config.limit,
            **({"classes": config.classes} if config.classes else {}),
            "holdout": config.holdout,
            "holdout_seed": config.holdout_seed if config.holdout else None,
        }
    )


def _split(arrays: cache.Arrays, split: str, selected: np.ndarray | None) -> Split:
    images, labels, files = arrays.images[split], arrays.labels[split], arrays.files[split]
    if selected is not None:
        images, labels = images[selected], labels[selected]
        files = None if files is None else tuple(files[position] for position in selected)
    return Split(images, labels, np.arange(len(labels), dtype=np.int32), files)
