"""Prepares our data sets as TFDS array_record, and reads any TFDS data set in this format, without TensorFlow."""

import contextlib
import importlib
import io
import os
import pathlib
import sys
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from cnn2gnn_jax.data import cache, images, sources
from cnn2gnn_jax.runtime import storage
from cnn2gnn_jax.runtime.errors import UserError

_BUILDERS = {
    "cifar10": ("cifar", "Cifar10"),
    "cifar100": ("cifar", "Cifar100"),
    "stl10": ("stl10", "Stl10"),
    "mini_imagenet": ("mini_imagenet", "MiniImagenet"),
    "image_folder": ("image_folder", "ImageFolder"),
}
_CHUNK = 512
_TEST_SPLITS = ("test", "validation")


class Damaged(UserError):
    """Records that cannot be read."""


def prepare(name: str, original: pathlib.Path, folder: pathlib.Path, options: Mapping[str, Any]) -> pathlib.Path:
    """Writes one of our data sets to `folder` as array_record, or nothing if it fails. The caller must hold a lock.

    Args:
      name: the name of the data set, a key of `_BUILDERS`.
      original: the folder or archive with the original files.
      folder: TFDS's data_dir, which is replaced.
      options: arguments of the builder.

    Returns:
      The folder of the prepared version, for `examples`.
    """
    builder_class = _builder_class(name)
    config = tfds.download.DownloadConfig(
        manual_dir=original if original.is_dir() else original.parent, try_download_gcs=False
    )
    with storage.atomic_folder(folder) as temporary, tempfile.TemporaryDirectory() as unused, _quiet():
        builder = builder_class(data_dir=temporary, file_format="array_record", **options)
        builder.download_and_prepare(download_dir=unused, download_config=config)
    return _version_folder(builder_class, folder)


def prepared(name: str, folder: pathlib.Path) -> pathlib.Path | None:
    """The folder of the version that `prepare` has written to `folder`; None if there is none."""
    version = _version_folder(_builder_class(name), folder)
    return version if version.exists() else None


def examples(name: str, version: pathlib.Path, image_size: int) -> tuple[list[str], dict[str, cache.Examples]]:
    """Returns the class names, and the decoded images of `train` and `test` (or `validation` if there is no test).

    Args:
      name: the name of the data set in errors.
      version: the folder of a prepared version.
      image_size: height and width to which images are resized; 0 keeps the size.

    Raises:
      UserError: the format is not array_record, a split is missing, or the examples have no image and label.
      Damaged: the records cannot be read. This may also be raised later, while the images are iterated.
    """
    with _quiet():
        builder = tfds.builder_from_directory(version)
    features, splits = builder.info.features, builder.info.splits
    file_format = getattr(builder.info.file_format, "value", builder.info.file_format)
    if file_format != "array_record":
        raise UserError(
            f"{name}: {version} is stored as {file_format}, expected array_record: prepare it with "
            "tfds build --file_format=array_record"
        )
    test = next((split for split in _TEST_SPLITS if split in splits), None)
    if "train" not in splits or test is None:
        raise UserError(f"{name}: splits {', '.join(splits) or 'none'}; expected train and test (or validation)")
    image, label = (dict(features).get(key) for key in ("image", "label"))
    if not isinstance(image, tfds.features.Image) or not isinstance(label, tfds.features.ClassLabel):
        raise UserError(f"{name}: features {', '.join(features)}; expected an Image `image` and a ClassLabel `label`")
    channels = image.shape[-1] or 3
    if channels not in (1, 3) or np.dtype(image.np_dtype) != np.uint8:
        raise UserError(f"{name}: images of {channels} channels of {image.np_dtype}, expected 1 or 3 of uint8")
    return label.names, {
        split: cache.Examples(
            splits[original].num_examples,
            _triples(builder, f"{name}: {split}", original, channels, image_size),
            named_by_file=name == sources.IMAGE_FOLDER,
        )
        for split, original in (("train", "train"), ("test", test))
    }


def _builder_class(name: str) -> type[tfds.core.GeneratorBasedBuilder]:
    module, builder_name = _BUILDERS[name]
    return getattr(importlib.import_module(f"cnn2gnn_jax.data.builders.{module}"), builder_name)


def _version_folder(builder_class: type[tfds.core.GeneratorBasedBuilder], folder: pathlib.Path) -> pathlib.Path:
    return folder / builder_class.name / str(builder_class.VERSION)


def _triples(
    builder: Any, what: str, split: str, channels: int, image_size: int
) -> Iterator[tuple[np.ndarray | images.ImageError, int, str]]:
    count = builder.info.splits[split].num_examples
    with _reading(builder, what):
        # Images stay encoded, because TFDS decodes with OpenCV or Pillow, whichever is installed. Their pixels of JPEG
        # files differ.
        source = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    for start in range(0, count, _CHUNK):
        with _reading(builder, what):
            rows = source.__getitems__(list(range(start, min(start + _CHUNK, count))))
        names = [
            os.fsdecode(row["file_name"]) if "file_name" in row else f"{what} image {start + i}"
            for i, row in enumerate(rows)
        ]
        decoded = images.decode_all([row["image"] for row in rows], names, channels, image_size)
        yield from zip(decoded, (int(row["label"]) for row in rows), names, strict=True)


@contextlib.contextmanager
def _reading(builder: Any, what: str) -> Iterator[None]:
    try:
        with _quiet():
            yield
    except Exception as error:  # array_record has no specific exception for damaged files
        raise Damaged(f"{what}: {builder.data_dir} cannot be read ({error}): delete it and run again") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses the messages of TFDS, and its progress bars if the output is not a terminal."""
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):
        yield
