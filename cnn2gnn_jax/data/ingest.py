"""From original files to a verified cache: finds what is at hand and does only what is missing.

    original files -> <cache>/tfds/<name>-<key>/ (array_record) -> <cache>/datasets/<name>-<size>-<key>/ (arrays)

`key` names the original files (see `sources`). Where data.manual_dir is not set and they are not at hand, the one cache
or the one array_record of that name serves; an image folder must always be at hand.
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
    """The decoded data set, from its cache if that is sound, otherwise made anew; safe to call in many processes.

    Arguments and errors are those of `data.load`.
    """
    try:
        found = _arrays(config, cache_dir, fetch)
    except OSError as error:
        raise UserError(f"{config.name}: {errors.of_machine(error)}") from error
    if not config.skip_unreadable:
        cache.refuse_unreadable(config.name, found.facts["unreadable"])
    return found


def _arrays(config: Any, cache_dir: pathlib.Path, fetch: bool) -> cache.Arrays:
    name, downloads = config.name, cache_dir / "downloads"
    split = sources.FolderSplit(config.test_fraction, config.split_seed)
    source = sources.find(name, config.manual_dir, downloads, split)
    if source is None and (config.manual_dir or name == sources.IMAGE_FOLDER):
        raise UserError(sources.wanted(name, config.manual_dir, downloads))  # and never the cache of another folder
    key = source.key if source else _only_key(config, cache_dir)
    if key is None:
        source = _fetch(name, downloads, fetch)
        key = source.key
    for line in source.left_out if source else ():
        log(f"{name}: left out: {line}")
    folder = _cache_folder(config, cache_dir, key)
    # A sound cache is opened without the lock, which a cache on a read-only disk could not have.
    with contextlib.suppress(artifact.Refused):
        return cache.read(folder)
    with storage.lock(folder.with_name(f"{folder.name}.lock"), wait=True):
        try:
            return cache.read(folder)
        except artifact.Refused as error:
            state = error.what
            if not isinstance(error, artifact.Missing):
                logging.warning("made anew: %s", error.what)
        if source is None and key == sources.published_key(name) and not _has_records(name, key, cache_dir):
            source = _fetch(name, downloads, fetch)
        logging.info("preparing %s in %s", name, folder)
        _build(config, source, key, state, cache_dir)
        found = cache.read(folder)
        for reason in found.facts["unreadable"]:
            logging.warning("left out: %s", reason)
        return found


def _has_records(name: str, key: str, cache_dir: pathlib.Path) -> bool:
    """Whether this version of the program has prepared the records of a data set of its own."""
    from cnn2gnn_jax.data import records  # imported here: TFDS costs a second

    return records.prepared(name, _records_folder(name, cache_dir, key)) is not None


def _fetch(name: str, downloads: pathlib.Path, fetch: bool) -> sources.Source:
    wanted = sources.wanted(name, "", downloads)
    if not fetch or sources.published_key(name) is None:
        raise UserError(wanted)
    try:
        return sources.fetch(name, downloads)
    except UserError as error:
        raise UserError(f"{wanted}; the download failed: {error}") from None


def _build(config: Any, source: sources.Source | None, key: str, state: str, cache_dir: pathlib.Path) -> None:
    """Makes the cache from the records, and these from the original files where need be; `state` is the old cache's."""
    name, folder = config.name, _cache_folder(config, cache_dir, key)
    if name == sources.DIGITS:
        _write_digits(folder, config.image_size)
        return
    # Imported here: TFDS costs a second, and most runs find the cache.
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
            shutil.rmtree(prepared_folder, ignore_errors=True)  # or a mended file of the same size would not be read
            raise


def _write_digits(folder: pathlib.Path, image_size: int) -> None:
    from cnn2gnn_jax.data import digits, images  # imported here: scikit-learn costs a second

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
    """The key under which the cache holds this data set, at this size if it can be; None where it holds none."""
    for unkeyed in (_cache_folder(config, cache_dir, ""), _records_folder(config.name, cache_dir, "")):
        place, prefix = unkeyed.parent, unkeyed.name
        pattern = re.compile(re.escape(prefix) + r"([0-9a-f]{16})")
        folders = place.iterdir() if place.is_dir() else ()
        keys = sorted(match[1] for path in folders if (match := pattern.fullmatch(path.name)) and path.is_dir())
        if len({_contents(place / f"{prefix}{key}") for key in keys}) > 1:
            raise UserError(
                f"{config.name}: {place} holds {len(keys)} versions ({', '.join(prefix + key for key in keys)}): "
                "set data.manual_dir to the original files of one, or delete the others"
            )
        if keys:
            return keys[0]
    return None


def _contents(folder: pathlib.Path) -> str:
    """What tells the arrays of a cache from those of another: copies of the same files make equal ones."""
    try:
        return storage.fingerprint(artifact.read_manifest(folder, cache.KIND)["files"])
    except (artifact.Refused, OSError):
        return folder.name


def _slug(name: str) -> str:
    return re.sub(r"[^\w.-]", ".", name)
