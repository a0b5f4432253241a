"""Converts original files to a verified cache. Only missing steps are carried out.

    original files -> <cache>/tfds/<name>-<key>/ (array_record) -> <cache>/datasets/<name>-<size>-<key>/ (arrays)

`key` identifies the original files (see `sources`). If data.manual_dir is not set and the original files are missing,
an existing cache or array_record of the same name is used, provided there is only one. Image folders must always exist.
"""

import contextlib
import pathlib
import re
import shutil
from collections.abc import Sequence
from typing import Any

from absl import logging

from cnn2gnn_jax.data import cache, sources
from cnn2gnn_jax.runtime import artifact, errors, storage
from cnn2gnn_jax.runtime.console import log
from cnn2gnn_jax.runtime.errors import UserError


def arrays(config: Any, cache_dir: pathlib.Path, fetch: bool = True) -> cache.Arrays:
    """Opens the decoded data set. It is decoded first if its cache is missing or damaged.

    Several processes may call this at the same time. Arguments and errors are those of `data.load`.
    """
    try:
        decoded = _arrays(config, cache_dir, fetch)
    except OSError as error:
        raise UserError(f"{config.name}: {errors.of_machine(error)}") from error
    if not config.skip_unreadable:
        cache.refuse_unreadable(config.name, decoded.facts["unreadable"])
    return decoded


def _arrays(config: Any, cache_dir: pathlib.Path, fetch: bool) -> cache.Arrays:
    name, downloads = config.name, cache_dir / "downloads"
    split = sources.FolderSplit(config.test_fraction, config.split_seed)
    source = sources.find(name, config.manual_dir, downloads, split)
    if source is None and (config.manual_dir or name == sources.IMAGE_FOLDER):
        # The cache of another folder must not be used instead.
        raise UserError(sources.missing_message(name, config.manual_dir, downloads))
    key = source.key if source else _only_key(config, cache_dir)
    if key is None:
        source = _fetch(name, downloads, fetch)
        key = source.key
    for line in source.left_out if source else ():
        log(f"{name}: left out: {line}")
    folder = _cache_folder(config, cache_dir, key)
    # An intact cache is opened without a lock, because locks are impossible on a read-only disk.
    with contextlib.suppress(artifact.Refused):
        return cache.read(folder)
    with storage.lock(folder.with_name(f"{folder.name}.lock"), wait=True):
        try:
            return cache.read(folder)
        except artifact.Refused as error:
            state = error.reason
            if not isinstance(error, artifact.Missing):
                logging.warning("made anew: %s", error.reason)
        if source is None and key == sources.published_key(name) and not _has_records(name, key, cache_dir):
            source = _fetch(name, downloads, fetch)
        logging.info("preparing %s in %s", name, folder)
        _build(config, source, key, state, cache_dir)
        decoded = cache.read(folder)
        for reason in decoded.facts["unreadable"]:
            logging.warning("left out: %s", reason)
        return decoded


def _has_records(name: str, key: str, cache_dir: pathlib.Path) -> bool:
    """Whether the array_record of a data set exists for this version of its builder."""
    from cnn2gnn_jax.data import records  # imported here because importing TFDS takes a second

    return records.prepared(name, _records_folder(name, cache_dir, key)) is not None


def _fetch(name: str, downloads: pathlib.Path, fetch: bool) -> sources.Source:
    message = sources.missing_message(name, "", downloads)
    if not fetch or sources.published_key(name) is None:
        raise UserError(message)
    try:
        return sources.fetch(name, downloads)
    except UserError as error:
        raise UserError(f"{message}; the download failed: {error}") from None


def _build(config: Any, source: sources.Source | None, key: str, state: str, cache_dir: pathlib.Path) -> None:
    """Writes the cache from the records, which are first prepared from the original files if necessary.

    `state` describes what is wrong with the present cache. It is used in errors.
    """
    name, folder = config.name, _cache_folder(config, cache_dir, key)
    if name == sources.DIGITS:
        _write_digits(folder, config.image_size)
        return
    # Imported here because importing TFDS takes a second, and most runs have a cache.
    from cnn2gnn_jax.data import records

    origin = {"key": key, "path": str(source.path.absolute()) if source and source.path else ""}

    def write(version: pathlib.Path) -> None:
        classes, splits = records.examples(name, version, config.image_size)
        _check_classes(name, classes)
        cache.write(folder, name, classes, splits, origin, config.skip_unreadable)

    if source and name not in sources.NAMES:
        assert source.path is not None
        write(source.path)
        return
    prepared_folder = _records_folder(name, cache_dir, key)
    with storage.lock(prepared_folder.with_name(f"{prepared_folder.name}.lock"), wait=True):
        version = records.prepared(name, prepared_folder)
        try:
            if version:
                write(version)
                return
        except records.Damaged as error:
            if source is None:
                raise
            logging.warning("%s; preparing it anew", error)
        if source is None or source.path is None:
            raise UserError(
                f"{state}, and the original files of {name} are not at hand: set data.manual_dir to the folder that "
                "holds them"
            )
        sources.verify(name, source)
        try:
            write(records.prepare(name, source.path, prepared_folder, source.options))
        except UserError:
            # Otherwise a corrected file of the same size would not be read the next time.
            shutil.rmtree(prepared_folder, ignore_errors=True)
            raise


def _write_digits(folder: pathlib.Path, image_size: int) -> None:
    from cnn2gnn_jax.data import digits, images  # imported here because importing scikit-learn takes a second

    splits = {}
    for split, (pixels, labels) in digits.load().items():
        resized = (images.resize(image, image_size) if image_size else image for image in pixels)
        names = [f"digits: {split} image {i}" for i in range(len(labels))]
        splits[split] = cache.Examples(len(labels), zip(resized, labels.tolist(), names, strict=True))
    cache.write(folder, sources.DIGITS, digits.CLASSES, splits, {"path": "", "key": "scikit-learn"})


def _check_classes(name: str, classes: Sequence[str]) -> None:
    if len(classes) < 2:
        raise UserError(f"{name}: {len(classes)} class, expected at least 2")


def _cache_folder(config: Any, cache_dir: pathlib.Path, key: str) -> pathlib.Path:
    return cache_dir / "datasets" / f"{_slug(config.name)}-{config.image_size or 'native'}-{key}"


def _records_folder(name: str, cache_dir: pathlib.Path, key: str) -> pathlib.Path:
    return cache_dir / "tfds" / f"{_slug(name)}-{key}"


def _only_key(config: Any, cache_dir: pathlib.Path) -> str | None:
    """The key of the only cache of a data set at this size, or else of its only records; None if there are none.

    Raises:
      UserError: there are several with different contents.
    """
    for path_without_key in (_cache_folder(config, cache_dir, ""), _records_folder(config.name, cache_dir, "")):
        parent, prefix = path_without_key.parent, path_without_key.name
        pattern = re.compile(re.escape(prefix) + r"([0-9a-f]{16})")
        folders = parent.iterdir() if parent.is_dir() else ()
        keys = sorted(match[1] for path in folders if (match := pattern.fullmatch(path.name)) and path.is_dir())
        if len({_contents(parent / f"{prefix}{key}") for key in keys}) > 1:
            raise UserError(
                f"{config.name}: {parent} holds {len(keys)} versions ({', '.join(prefix + key for key in keys)}): "
                "set data.manual_dir to the original files of one, or delete the others"
            )
        if keys:
            return keys[0]
    return None


def _contents(folder: pathlib.Path) -> str:
    """A fingerprint of the arrays of a cache. Caches that are made from copies of the same files have equal ones."""
    try:
        return storage.fingerprint(artifact.read_manifest(folder, cache.KIND)["files"])
    except (artifact.Refused, OSError):
        return folder.name


def _slug(name: str) -> str:
    return re.sub(r"[^\w.-]", ".", name)
