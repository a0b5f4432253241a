"""Finds the original files of a data set, and computes a key that identifies them.

The key of a folder is a fingerprint of the names, sizes and modification times of its files. It does not depend on
their contents, so the files need not be read. Runs are identified by the fingerprint of the data set instead, which
depends on the contents.
"""

import dataclasses
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from cnn2gnn_jax.data import download, image_folders
from cnn2gnn_jax.runtime import storage
from cnn2gnn_jax.runtime.errors import UserError

DIGITS = "digits"
IMAGE_FOLDER = "image_folder"


@dataclasses.dataclass(frozen=True)
class Archive:
    """A published archive: file name, URL, size in bytes, and sha256."""

    name: str
    url: str
    size: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Published:
    """The layout of a published data set.

    page: the web page of the data set.
    folders, files: possible names of its folder, and the files in it.
    images: the number of images in a file, for files in which it is fixed.
    archive: the published archive; None if there is none.
    """

    page: str
    folders: tuple[str, ...]
    files: tuple[str, ...]
    images: Mapping[str, int] = dataclasses.field(default_factory=dict)
    archive: Archive | None = None


@dataclasses.dataclass(frozen=True)
class Source:
    """The original files of a data set.

    path: a folder or an archive; None for data that are part of scikit-learn.
    key: identifies the files.
    options: arguments of the builder that reads them.
    left_out: messages about files that are not read.
    """

    path: pathlib.Path | None
    key: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    left_out: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class FolderSplit:
    """How test images are chosen in an image folder without a test folder: a fraction of each class, and a seed."""

    test_fraction: float = 0.2
    split_seed: int = 0


DEFAULT_SPLIT = FolderSplit()


PUBLISHED = {
    "cifar10": Published(
        page="https://www.cs.toronto.edu/~kriz/cifar.html",
        folders=("cifar-10-batches-bin",),
        files=(*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin", "batches.meta.txt"),
        images={**{f"data_batch_{i}.bin": 10_000 for i in range(1, 6)}, "test_batch.bin": 10_000},
        archive=Archive(
            name="cifar-10-binary.tar.gz",
            url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
            size=170_052_171,
            sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        ),
    ),
    "cifar100": Published(
        page="https://www.cs.toronto.edu/~kriz/cifar.html",
        folders=("cifar-100-binary",),
        files=("train.bin", "test.bin", "fine_label_names.txt"),
        images={"train.bin": 50_000, "test.bin": 10_000},
        archive=Archive(
            name="cifar-100-binary.tar.gz",
            url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
            size=168_513_733,
            sha256="58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
        ),
    ),
    "stl10": Published(
        page="https://cs.stanford.edu/~acoates/stl10/",
        folders=("stl10_binary",),
        files=("train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin", "class_names.txt"),
        images={"train_X.bin": 5_000, "test_X.bin": 8_000},
        archive=Archive(
            name="stl10_binary.tar.gz",
            url="http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz",
            size=2_640_397_119,
            sha256="f31fd99273a1acb8609c8db427cebb1de3f71de77758cdc0e22956e1289b9866",
        ),
    ),
    "mini_imagenet": Published(
        page="https://github.com/twitter-research/meta-learning-lstm (lists) and https://image-net.org (images)",
        folders=("mini-imagenet", "mini_imagenet", "miniImageNet", "miniImagenet"),
        files=("train.csv", "val.csv", "test.csv", "images"),
    ),
}
NAMES = (DIGITS, *PUBLISHED, IMAGE_FOLDER)


def find(name: str, manual_dir: str, downloads: pathlib.Path, split: FolderSplit = DEFAULT_SPLIT) -> Source | None:
    """Finds the original files of a data set. Returns None if they are missing.

    Args:
      name: one of `NAMES`, or a data set that TFDS has prepared: `name` or `name/config`, optionally with `:version`.
      manual_dir: '' or a folder: the folder of the data set, its parent, or a folder with its archive. For a TFDS data
        set it is TFDS's data_dir.
      downloads: the folder to which `fetch` downloads archives.
      split: how test images are chosen in an image folder without a test folder.

    Raises:
      UserError: `manual_dir` is not a valid image folder, or it is set although the data set needs no folder.
    """
    if name == DIGITS:
        if manual_dir:
            raise UserError(
                f"data.manual_dir={manual_dir}, but {DIGITS} come with scikit-learn: leave data.manual_dir out, or set "
                f"data.name, as to {IMAGE_FOLDER}"
            )
        return Source(None, storage.fingerprint(DIGITS))
    if name == IMAGE_FOLDER:
        return _image_folder_source(pathlib.Path(manual_dir).expanduser(), split) if manual_dir else None
    if name not in PUBLISHED:
        return _tfds_source(name, manual_dir)
    for place in [pathlib.Path(manual_dir).expanduser()] if manual_dir else [downloads]:
        if source := _published_source(PUBLISHED[name], place):
            return source
    return None


def published_path(name: str, manual_dir: pathlib.Path) -> pathlib.Path:
    """The folder or archive of a published data set in a folder in which `find` has found it."""
    source = _published_source(PUBLISHED[name], manual_dir)
    assert source is not None and source.path is not None, (name, manual_dir)
    return source.path


def fetch(name: str, downloads: pathlib.Path) -> Source:
    """Downloads a published archive and verifies it. Only one of several processes downloads it.

    Raises:
      UserError: the download failed.
    """
    archive = PUBLISHED[name].archive
    assert archive is not None, name
    with storage.lock(downloads / f"{archive.name}.lock", wait=True):
        path = downloads / archive.name
        if not path.exists():
            download.fetch(archive.url, path, archive.size, archive.sha256)
    return Source(path, _archive_key(archive))


def verify(name: str, source: Source) -> None:
    """Checks an archive, but no folder. Raises UserError if its size or sha256 is not the published one."""
    archive = PUBLISHED[name].archive if name in PUBLISHED else None
    if archive and source.path and source.path.is_file():
        download.verify(source.path, archive.size, archive.sha256)


def published_key(name: str) -> str | None:
    """The key of the archive that `fetch` downloads; None if there is none."""
    archive = PUBLISHED[name].archive if name in PUBLISHED else None
    return _archive_key(archive) if archive else None


def missing_message(name: str, manual_dir: str, downloads: pathlib.Path) -> str:
    """The error message for a missing data set: the expected files, where they were searched, and what to do."""
    place = pathlib.Path(manual_dir).expanduser()
    if manual_dir and not place.is_dir():
        return f"{name}: data.manual_dir={manual_dir} is no folder: set it to the one that holds the data set"
    if name == IMAGE_FOLDER:
        return (
            f"{name}: data.manual_dir is not set: set it to a folder that holds <class>/<image>, or "
            "train/<class>/<image> and test/<class>/<image>"
        )
    if name not in PUBLISHED:
        return (
            f"unknown data set {name!r}: the known ones are {', '.join(NAMES)}; a TensorFlow Datasets name must have "
            f"been prepared in {_tfds_dir(manual_dir)} (tfds build --file_format=array_record)"
        )
    published = PUBLISHED[name]
    files = f"{published.folders[0]}/ with {', '.join(published.files)}"
    if published.archive:
        files = f"{published.archive.name} or {files}"
    searched = place if manual_dir else downloads
    incomplete = [
        f", where {folder.name} lacks {', '.join(missing)}"
        for folder in _folders(published, searched)
        if folder != searched and (missing := _missing(folder, published.files))
    ]
    problem = (
        f"not in {searched}{''.join(incomplete[:1])}" if manual_dir or published.archive else "data.manual_dir is ''"
    )
    return (
        f"{name}: expected {files}; {problem}: fetch it from {published.page} and set data.manual_dir to the folder "
        "that holds it"
    )


def _published_source(published: Published, place: pathlib.Path) -> Source | None:
    for folder in _folders(published, place):
        if not _missing(folder, published.files):
            return _folder_source(folder, published.files)
    if published.archive:
        for path in (place / published.archive.name, place):
            if path.name == published.archive.name and path.is_file():
                return Source(path, _archive_key(published.archive))
    return None


def _folders(published: Published, place: pathlib.Path) -> list[pathlib.Path]:
    return [folder for folder in (*(place / name for name in published.folders), place) if folder.is_dir()]


def _missing(folder: pathlib.Path, files: tuple[str, ...]) -> list[str]:
    return [name for name in files if not (folder / name).exists()]


def _image_folder_source(folder: pathlib.Path, split: FolderSplit) -> Source:
    scanned = image_folders.scan(folder)
    paths = [path for part in (scanned.train, scanned.test or {}) for files in part.values() for path in files]
    listing = sorted(_entry(path, str(path.relative_to(folder))) for path in (*paths, *scanned.lists))
    options = {} if scanned.test else dataclasses.asdict(split)
    return Source(folder, storage.fingerprint([str(folder.resolve()), listing, options]), options, scanned.left_out)


def _folder_source(folder: pathlib.Path, files: tuple[str, ...]) -> Source:
    listing = []
    for name in files:
        path = folder / name
        listing += _entries(path, name) if path.is_dir() else [_entry(path, name)]
    return Source(folder, storage.fingerprint(sorted(listing)))


def _entry(path: pathlib.Path | os.DirEntry[str], name: str) -> tuple[str, int, int, int]:
    """The name, size, modification time and change time of a file.

    A copy of a file may keep the modification time, but not the change time. Thus they distinguish files of the same
    name and size.
    """
    stat = path.stat()
    return name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _entries(folder: pathlib.Path, prefix: str) -> list[tuple[str, int, int, int]]:
    listing = []
    with os.scandir(folder) as entries:
        for entry in entries:
            name = f"{prefix}/{entry.name}"
            listing += _entries(pathlib.Path(entry.path), name) if entry.is_dir() else [_entry(entry, name)]
    return listing


def _archive_key(archive: Archive) -> str:
    return storage.fingerprint(archive.sha256)


def _tfds_dir(manual_dir: str) -> pathlib.Path:
    return pathlib.Path(manual_dir or os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()


def _tfds_source(name: str, manual_dir: str) -> Source | None:
    match = re.fullmatch(r"(\w+(?:/\w[\w.-]*)?)(?::(\d+\.\d+\.\d+))?", name, re.ASCII)
    if match is None:
        return None
    folder, version = _tfds_dir(manual_dir) / match[1], match[2]
    versions = [
        path.parent
        for path in folder.glob(f"{version or '*'}/dataset_info.json")
        if re.fullmatch(r"\d+\.\d+\.\d+", path.parent.name)
    ]
    if not versions:
        return None
    newest = max(versions, key=lambda path: [int(number) for number in path.name.split(".")])
    return Source(newest, storage.fingerprint([newest.name, *sorted(_entries(newest, ""))]))
