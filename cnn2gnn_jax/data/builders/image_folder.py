"""The builder for a user's folder of images; see `image_folders`."""

import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from cnn2gnn_jax.data import image_folders, selection, sources
from cnn2gnn_jax.data.image_folders import Files
from cnn2gnn_jax.data.permutations import Stream
from cnn2gnn_jax.runtime.errors import UserError


class ImageFolder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Classes are the subfolders, sorted by name. The images of a class are sorted by path.

    If there is no test folder, `test_fraction` and `split_seed` determine the test images.
    """

    VERSION = tfds.core.Version("1.1.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "manual_dir must hold <class>/<image>, or such folders in train/ and test/ (or val/)."
    )

    def __init__(self, *, test_fraction: float = 0.2, split_seed: int = 0, **arguments: Any) -> None:
        self._split = sources.FolderSplit(test_fraction, split_seed)
        super().__init__(**arguments)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Images of the user's.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(),
                    "label": tfds.features.ClassLabel(),
                    "file_name": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "label"),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[Any]]:
        root = pathlib.Path(dl_manager.manual_dir)
        scanned = image_folders.scan(root)
        train, test = (scanned.train, scanned.test) if scanned.test else divide(scanned.train, self._split)
        self.info.features["label"].names = sorted(train)
        return {
            "train": self._generate_examples(root, train, train),
            "test": self._generate_examples(root, test, train),
        }

    def _generate_examples(self, root: pathlib.Path, files: Files, classes: Files) -> Iterator[Any]:
        examples = ((k, path) for k, name in enumerate(sorted(classes)) for path in files.get(name, ()))
        for i, (label, path) in enumerate(examples):
            file_name = os.fsencode(path.relative_to(root))  # bytes: a name need not be valid UTF-8
            yield i, {"image": path.read_bytes(), "label": label, "file_name": file_name}


def divide(files: Files, split: sources.FolderSplit) -> tuple[Files, Files]:
    """Divides the files of each class into training and test files.

    Raises:
      UserError: a class has only one image.
    """
    for name, paths in files.items():
        if len(paths) < 2:
            raise UserError(f"class {name} has 1 image ({paths[0]}): expected 2 or more, to train and to test on")
    pairs = [(name, path) for name in sorted(files) for path in files[name]]
    labels = np.unique([name for name, _ in pairs], return_inverse=True)[1]
    train: Files = {name: [] for name in files}
    test: Files = {name: [] for name in files}
    parts = selection.hold_out(labels, split.test_fraction, split.split_seed, Stream.FOLDER_SPLIT)
    for files_of_split, positions in zip((train, test), parts, strict=True):
        for position in positions:
            name, path = pairs[position]
            files_of_split[name].append(path)
    return train, test
