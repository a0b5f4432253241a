"""Mini-ImageNet for 100-way classification, from images/ and the lists of Ravi and Larochelle (ICLR 2017)."""

import csv
import pathlib
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from cnn2gnn_jax.data import sources
from cnn2gnn_jax.data.builders.mini_imagenet_names import NAMES
from cnn2gnn_jax.runtime.errors import UserError

_LISTS = ("train.csv", "val.csv", "test.csv")
_TRAIN_FRACTION = (5, 6)  # numerator and denominator


class MiniImagenet(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Mini-ImageNet with 600 images per class. In the order of the lists, the first 500 are train, the last 100 test.

    Label k is the k-th WordNet ID in sorted order. Image files are stored unchanged.
    """

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Put the folder mini-imagenet, with images/ and the three lists, into manual_dir."

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="ImageNet's images of 100 classes: the first five sixths of each are train, the rest test.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(),
                    "label": tfds.features.ClassLabel(),
                    "file_name": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://github.com/twitter-research/meta-learning-lstm",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[Any]]:
        folder = sources.published_path(self.name, pathlib.Path(dl_manager.manual_dir))
        files = files_by_class(folder)
        self.info.features["label"].names = [NAMES.get(wnid, wnid) for wnid in sorted(files)]
        cut = {wnid: len(names) * _TRAIN_FRACTION[0] // _TRAIN_FRACTION[1] for wnid, names in files.items()}
        return {
            "train": self._generate_examples(folder / "images", [files[wnid][: cut[wnid]] for wnid in sorted(files)]),
            "test": self._generate_examples(folder / "images", [files[wnid][cut[wnid] :] for wnid in sorted(files)]),
        }

    def _generate_examples(self, folder: pathlib.Path, files: list[list[str]]) -> Iterator[Any]:
        examples = ((label, name) for label, names in enumerate(files) for name in names)
        for i, (label, name) in enumerate(examples):
            try:
                encoded = (folder / name).read_bytes()
            except FileNotFoundError:
                raise UserError(f"{folder} lacks {name}, which a list names: complete the folder") from None
            yield i, {"image": encoded, "label": label, "file_name": name}


def files_by_class(folder: pathlib.Path) -> dict[str, list[str]]:
    """The file names of each WordNet ID in the three lists of `folder`, in the order of the lists.

    Raises:
      UserError: a list has another format, a name is not a valid file name or occurs twice, or a class has fewer than 6
        images.
    """
    files: dict[str, list[str]] = {}
    seen: set[str] = set()
    for name in _LISTS:
        try:
            rows = list(csv.reader((folder / name).read_text(encoding="utf-8").splitlines(), strict=True))
        except (csv.Error, UnicodeDecodeError) as error:
            raise UserError(f"{folder / name} is no list of images ({error}): fetch it again") from None
        if not rows or rows[0] != ["filename", "label"]:
            header = ",".join(rows[0])[:80] if rows else "nothing"
            raise UserError(f"{folder / name} begins with {header!r}, expected filename,label: fetch it again")
        for number, row in enumerate(rows[1:], 2):
            if len(row) != 2 or not all(row) or row[0].startswith(".") or not set(row[0]).isdisjoint("/\\\0"):
                raise UserError(f"{folder / name}, line {number}: {','.join(row)[:80]!r}, expected FILE,CLASS")
            if row[0] in seen:
                raise UserError(f"{folder / name}, line {number}: {row[0]} is listed twice: fetch the lists again")
            seen.add(row[0])
            files.setdefault(row[1], []).append(row[0])
    for wnid, names in files.items():
        if len(names) < _TRAIN_FRACTION[1]:
            raise UserError(f"{folder}: class {wnid} has {len(names)} images, expected at least {_TRAIN_FRACTION[1]}")
    return files
