"""The base class of builders for data sets that are published as plain arrays of pixels."""

import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from cnn2gnn_jax.data import binary, images, sources
from cnn2gnn_jax.runtime.errors import UserError


class ArraysBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Stores images as PNG in the published order. All files are read and checked before the first image is stored."""

    VERSION = tfds.core.Version("1.1.0")  # version 1.0.0 accepted files with any number of images
    SIDE: int
    CLASSES: int
    FOLDER: str
    NAMES_FILE: str

    def _read(self, files: dict[str, bytes], path: pathlib.Path, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns images (N, H, W, 3) uint8 and labels (N,) of a split. Errors use `path`."""
        raise NotImplementedError

    def _checked(self, file: str, path: pathlib.Path, images_and_labels: tuple[np.ndarray, np.ndarray]) -> Any:
        """Returns the images and labels of a file after checking their number.

        Raises:
          UserError: the number of images differs from the published one.
        """
        count, expected = len(images_and_labels[1]), sources.PUBLISHED[self.name].images[file]
        if count != expected:
            raise UserError(
                f"{path}: {file} holds {count:,} images, expected the {expected:,} of the published file: fetch it "
                "again, or set data.limit to use a part of it"
            )
        return images_and_labels

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"Images of {self.SIDE} x {self.SIDE} pixels in {self.CLASSES} classes.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(self.SIDE, self.SIDE, 3), encoding_format="png"),
                    "label": tfds.features.ClassLabel(num_classes=self.CLASSES),
                }
            ),
            supervised_keys=("image", "label"),
            homepage=sources.PUBLISHED[self.name].page,
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[Any]]:
        path = sources.published_path(self.name, pathlib.Path(dl_manager.manual_dir))
        files = binary.read_files(path, self.FOLDER, sources.PUBLISHED[self.name].files)
        self.info.features["label"].names = binary.class_names(
            files[self.NAMES_FILE], self.CLASSES, f"{path}: {self.NAMES_FILE}"
        )
        splits = {split: self._read(files, path, split) for split in ("train", "test")}
        return {split: self._generate_examples(*arrays) for split, arrays in splits.items()}

    def _generate_examples(self, pixels: np.ndarray, labels: np.ndarray) -> Iterator[Any]:
        for i, (image, label) in enumerate(zip(pixels, labels, strict=True)):
            yield i, {"image": images.encode_png(image), "label": int(label)}
