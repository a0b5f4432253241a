"""A folder of the user's own images: train/<class>/<image> and test/<class>/<image>."""

import pathlib
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds
from absl import logging

from cnn2gnn_jax.data import sources
from cnn2gnn_jax.errors import UserError


class ImageFolder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Classes are the sub-folders of train/, sorted by name; images are sorted by name within a class."""

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = "manual_dir must hold train/<class>/<image> and test/ (or val/) likewise."

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
        test_folder = next(root / name for name in sources.TEST_FOLDERS if (root / name).is_dir())
        train, test = files_by_class(root / "train"), files_by_class(test_folder)
        if unknown := sorted(set(test) - set(train)):
            raise UserError(f"{test_folder}: class {unknown[0]} is not in {root / 'train'}: add or remove it")
        self.info.features["label"].names = sorted(train)
        return {"train": self._generate_examples(train, train), "test": self._generate_examples(test, train)}

    def _generate_examples(
        self, files: dict[str, list[pathlib.Path]], classes: dict[str, list[pathlib.Path]]
    ) -> Iterator[Any]:
        examples = ((k, path) for k, name in enumerate(sorted(classes)) for path in files.get(name, ()))
        for i, (label, path) in enumerate(examples):
            yield i, {"image": path.read_bytes(), "label": label, "file_name": f"{path.parent.name}/{path.name}"}


def files_by_class(folder: pathlib.Path) -> dict[str, list[pathlib.Path]]:
    """The image files in each sub-folder of `folder`, sorted by name; hidden ones are passed over.

    Raises:
      UserError: a sub-folder holds no image.
    """
    files: dict[str, list[pathlib.Path]] = {}
    for sub in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        visible = sorted(path for path in sub.iterdir() if path.is_file() and not path.name.startswith("."))
        files[sub.name] = [path for path in visible if path.suffix.lower() in sources.IMAGE_SUFFIXES]
        if not files[sub.name]:
            raise UserError(f"{sub} holds no image ({', '.join(sources.IMAGE_SUFFIXES)}): add some or remove it")
        if len(visible) > len(files[sub.name]):
            logging.warning("%s: %d files are no images and not read", sub, len(visible) - len(files[sub.name]))
    return files
