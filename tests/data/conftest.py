"""Fixtures: small data sets in the published formats."""

import dataclasses
import pathlib
import tarfile
import types
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

from cnn2gnn_jax.data import sources
from cnn2gnn_jax.runtime import storage


@pytest.fixture
def config():
    """Returns a function that makes a data configuration, for example `config(name="digits", limit=3)`."""

    def make(**fields: Any) -> types.SimpleNamespace:
        base = {"name": "digits", "image_size": 0, "manual_dir": "", "limit": 0, "holdout": 0.0, "holdout_seed": 0}
        base |= {"classes": 0, "skip_unreadable": False, "test_fraction": 0.2, "split_seed": 0}
        return types.SimpleNamespace(**base | {key: str(v) if key == "manual_dir" else v for key, v in fields.items()})

    return make


@pytest.fixture(autouse=True)
def _away_from_the_users_files(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tensorflow_datasets"))


class Cifar100:
    """A small CIFAR-100 with 300 training and 200 test images of noise, in the published format."""

    IMAGES: ClassVar[dict[str, int]] = {"train.bin": 300, "test.bin": 200}

    def __init__(self, parent: pathlib.Path, seed: int = 0):
        rng = np.random.default_rng(seed)
        self.parent, self.folder = parent, parent / "cifar-100-binary"
        self.images, self.labels = {}, {}
        self.folder.mkdir(parents=True)
        for split, repeats in (("train", 3), ("test", 2)):
            self.labels[split] = rng.permutation(np.arange(100).repeat(repeats)).astype(np.int32)
            n = len(self.labels[split])
            self.images[split] = rng.integers(0, 256, (n, 32, 32, 3), np.uint8)
            planes = self.images[split].transpose(0, 3, 1, 2).reshape(n, -1)
            coarse = rng.integers(0, 20, n)
            records = np.concatenate([coarse[:, None], self.labels[split][:, None], planes], 1).astype(np.uint8)
            (self.folder / f"{split}.bin").write_bytes(records.tobytes())
        self.classes = tuple(f"class_{k}" for k in range(100))
        (self.folder / "fine_label_names.txt").write_text("\n".join(self.classes) + "\n\n")

    def pack(self, path: pathlib.Path) -> sources.Archive:
        """Packs the folder as the published archive does, and returns its entry for `sources`."""
        with tarfile.open(path, "w:gz") as archive:
            archive.add(self.folder, self.folder.name)
        return sources.Archive(path.name, path.as_uri(), path.stat().st_size, storage.sha256(path))


@pytest.fixture
def published_images(monkeypatch):
    """Returns a function that changes the published numbers of images in the files of a data set."""

    def change(name: str, images: dict[str, int]) -> None:
        monkeypatch.setitem(sources.PUBLISHED, name, dataclasses.replace(sources.PUBLISHED[name], images=images))

    return change


@pytest.fixture
def cifar100(tmp_path, published_images):
    published_images("cifar100", Cifar100.IMAGES)
    return Cifar100(tmp_path / "originals")


@pytest.fixture
def publish(monkeypatch):
    """Returns a function that changes the published archive of a data set."""

    def publish(name: str, archive: sources.Archive) -> None:
        monkeypatch.setitem(sources.PUBLISHED, name, dataclasses.replace(sources.PUBLISHED[name], archive=archive))

    return publish


@pytest.fixture
def mini_imagenet(tmp_path):
    """Returns a function that writes a Mini-ImageNet with 3 classes of 7, 12 and 6 images.

    The pixels of an image encode its class and its position in the list.
    """

    def write(size_of=lambda label, i: (84, 84)) -> pathlib.Path:
        folder = tmp_path / "originals" / "mini-imagenet"
        (folder / "images").mkdir(parents=True)
        lists = {"train": ("n01558993", 7), "val": ("n99999999", 12), "test": ("n01532829", 6)}
        wnids = sorted(wnid for wnid, _ in lists.values())
        for split, (wnid, count) in lists.items():
            lines = ["filename,label"]
            for i in range(count):
                # The numbers descend, so that the order of the list differs from the order of the names.
                name, label = f"{wnid}{count - i:08d}.jpg", wnids.index(wnid)
                pixels = np.full((*size_of(label, i), 3), 16 * i, np.uint8)
                pixels[..., 2] = 80 * label
                Image.fromarray(pixels).save(folder / "images" / name, "JPEG", quality=100, subsampling=0)
                lines.append(f"{name},{wnid}")
            (folder / f"{split}.csv").write_text("\n".join(lines) + "\n")
        return folder

    return write


@pytest.fixture
def image_folder(tmp_path):
    """Writes a folder of images with the splits `train` and `val` and the classes `ant` and `bee`, and returns it."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for name in ("ant", "bee"):
            folder = tmp_path / "mine" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8)).save(folder / f"{i}.png")
    return tmp_path / "mine"
