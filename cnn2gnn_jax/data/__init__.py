"""Data sets as uint8 arrays: `load` opens one, from a cache that is made once and verified each time."""

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

    images: (N, H, W, C) uint8, memory-mapped (read-only) where nothing was selected.
    labels: (N,) int32.
    index: (N,) int32, the position in this split; for `train` the row of the graph head's table.
    files: of an image folder the file of each image, relative to the folder, with / between its parts; None for other
      data sets.
    """

    images: np.ndarray
    labels: np.ndarray
    index: np.ndarray
    files: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.labels)


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set, ready for use.

    classes: the name of label k at position k.
    mean, std: per channel, of all training images at this size (whatever `limit` and `holdout`), in units of [0, 1].
    fingerprint: of name, image size, contents, limit and holdout, that is of what changes a result; never of paths.
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
        """How many there are."""
        return len(self.train)


def load(config: Any, cache_dir: pathlib.Path, fetch: bool = True) -> Dataset:
    """Opens a data set; the first time, its images are decoded into `cache_dir`, and downloaded if need be.

    Args:
      config: the section `data` of a config whose values `cnn2gnn_jax.config.resolve` has checked, or an object with
        the same attributes:
        name: `digits`, `cifar10`, `cifar100`, `stl10`, `mini_imagenet`, `image_folder`, or any data set with an image
          and a label that TFDS has prepared as array_record;
        image_size: 0 (as published) or the side of the square that images are cropped and resized to;
        manual_dir: the folder that holds the original files (TFDS's data_dir for its data sets), which must be there;
          or '', which takes what was downloaded or is in the cache, of all data sets but an image folder;
        classes: 0 (all) or how many classes are kept, the first in order;
        limit: 0 (all) or how many images of each class are kept in each split, the first in order;
        holdout: 0, or the fraction of each class's training images (after `limit`) that `holdout` gets instead;
        holdout_seed: chooses those;
        skip_unreadable: whether images that cannot be read are left out, with a warning each;
        test_fraction, split_seed: of an image folder without a test folder, the part of each class that is tested on
          and what chooses it.
      cache_dir: where caches are kept; runs at the same time may share it.
      fetch: whether to download what is not at hand.

    Raises:
      UserError: the data set is unknown or not at hand, or its files are wrong.
    """
    arrays = ingest.arrays(config, pathlib.Path(cache_dir), fetch)
    facts = arrays.facts
    if not min(facts["std"]) > 0:
        raise UserError(f"{config.name}: a channel is the same in all training images: they cannot be normalised")
    if config.classes > len(facts["classes"]):
        raise UserError(
            f"data.classes={config.classes}, but {config.name} has {len(facts['classes'])}: choose at most that"
        )
    train, holdout = _training_images(config, arrays.labels["train"], facts["classes"])
    return Dataset(
        name=config.name,
        classes=tuple(facts["classes"][: config.classes or None]),
        train=_split(arrays, "train", train),
        test=_split(arrays, "test", _first(config, arrays.labels["test"])),
        holdout=None if holdout is None else _split(arrays, "train", holdout),
        mean=tuple(facts["mean"]),
        std=tuple(facts["std"]),
        fingerprint=_fingerprint(config, arrays),
    )


def _first(config: Any, labels: np.ndarray) -> np.ndarray | None:
    """The positions that `limit` and `classes` keep of a split; None for all."""
    return (
        selection.first_of_each_class(labels, config.limit, config.classes) if config.limit or config.classes else None
    )


def _training_images(
    config: Any, labels: np.ndarray, names: Sequence[str]
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """The positions of the training images, None for all, and of those that are held out, None for none."""
    train = _first(config, labels)
    if not config.holdout:
        return train, None
    usable = labels if train is None else labels[train]
    kept, held = selection.hold_out(usable, config.holdout, config.holdout_seed, names=names)
    return (kept, held) if train is None else (train[kept], train[held])


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
