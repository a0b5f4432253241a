"""Artifacts: folders of arrays and other files that are used only if they have not changed since they were written.

    FOLDER/<array>.npy      memory-mapped when the folder is read
    FOLDER/...              other files
    FOLDER/manifest.json    kind, format, program, fingerprint, facts; each file's sha256, each array's shape and dtype

*Facts* are JSON values that describe the content. The *fingerprint* is a hash of everything that the content depends
on, such as config fields; it tells whether a folder is the wanted one.

A folder is written under a temporary name and renamed, by one process at a time, so it is complete or absent. Reading a
folder hashes each file. A new kind takes a few lines:

    BANK = artifact.Kind("the bank of a run", format=1, remake="run the same command again")

    artifact.write(folder, BANK, fingerprint, {"width": 64}, {"keys": keys, "labels": labels})
    keys = artifact.read(folder, BANK, fingerprint).arrays["keys"]

Arrays that are too large for memory are written into a folder of `storage.atomic_folder`, which `seal` completes.
"""

import contextlib
import importlib.metadata
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from cnn2gnn_jax.runtime import processes, storage
from cnn2gnn_jax.runtime.console import log
from cnn2gnn_jax.runtime.errors import UserError

MANIFEST = "manifest.json"


class Kind(NamedTuple):
    """The kind of a folder's content.

    name: the name in error messages.
    format: a number; raise it if this version cannot use folders that an earlier version wrote.
    remake: how to make the folder again, as an imperative clause, with which error messages end.
    """

    name: str
    format: int
    remake: str


class Artifact(NamedTuple):
    """A folder that was read.

    fingerprint: the fingerprint in its manifest.
    facts: the facts in its manifest.
    arrays: memory-mapped, read-only arrays by name.
    files: the `sha256` of each file, by its path in the folder; for arrays also `shape` and `dtype`.
    """

    fingerprint: str
    facts: dict[str, Any]
    arrays: dict[str, np.ndarray]
    files: dict[str, dict[str, Any]]


class Refused(UserError):
    """A folder that cannot be used.

    reason: the error message without the remedy with which it ends.
    manifest: its manifest, if that can be read; otherwise empty.
    """

    def __init__(self, reason: str, remedy: str, manifest: Mapping[str, Any] | None = None) -> None:
        super().__init__(f"{reason}: {remedy}")
        self.reason, self.manifest = reason, manifest or {}


class Missing(Refused):
    """The folder does not exist."""


class Damaged(Refused):
    """The folder has changed since it was written."""


class Outdated(Refused):
    """The folder was written by another version of this program, in another format."""


class Foreign(Refused):
    """The folder is of another kind or has another fingerprint."""


def write(
    folder: pathlib.Path, kind: Kind, fingerprint: str, facts: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> None:
    """Writes a folder atomically. An existing folder is replaced.

    Args:
      folder: the folder.
      kind: its kind.
      fingerprint: its fingerprint.
      facts: JSON values.
      arrays: the arrays by name, which becomes the name of a file.

    Raises:
      OSError: the disk is full or cannot be written for another reason.
    """
    with storage.atomic_folder(folder) as temporary:
        for name, array in arrays.items():
            np.save(temporary / f"{name}.npy", array, allow_pickle=False)
        seal(temporary, kind, fingerprint, facts)


def seal(
    folder: pathlib.Path, kind: Kind, fingerprint: str, facts: Mapping[str, Any], unlisted: Sequence[str] = ()
) -> None:
    """Completes a temporary folder: writes the manifest of all its files, except those with `unlisted` names."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path != folder / MANIFEST and path.name not in unlisted:
            shape = _shape(_open(path)) if path.suffix == ".npy" else {}
            files[path.relative_to(folder).as_posix()] = {"sha256": storage.sha256(path), **shape}
    manifest = {"kind": kind.name, "format": kind.format, "program": _program(), "fingerprint": fingerprint}
    storage.write_json(folder / MANIFEST, {**manifest, "facts": dict(facts), "files": files})


def read(folder: pathlib.Path, kind: Kind, fingerprint: str | None = None) -> Artifact:
    """Opens a folder and verifies each of its files.

    Args:
      folder: the folder.
      kind: the expected kind.
      fingerprint: the expected fingerprint; None accepts any.

    Raises:
      Missing, Damaged, Outdated, Foreign: the folder cannot be used.
    """
    manifest = read_manifest(folder, kind, fingerprint)
    arrays = {}
    with intact(folder, kind):
        for name, file in manifest["files"].items():
            if (array := _verified(folder, name, file)) is not None:
                arrays[name.removesuffix(".npy")] = array
    return Artifact(manifest["fingerprint"], manifest["facts"], arrays, manifest["files"])


def _verified(folder: pathlib.Path, name: str, file: Mapping[str, Any]) -> np.ndarray | None:
    """Verifies a file and returns its array, None for other files; raises ValueError if it has changed."""
    path, array = folder / name, None
    if ".." in path.parts or not path.is_relative_to(folder) or not path.is_file():
        raise ValueError(f"{name} is missing")
    if "shape" in file:
        try:
            array = _open(path)  # before hashing, so that both read the same file even if the folder is replaced
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    if storage.sha256(path) != file["sha256"]:
        raise ValueError(f"{name} is not what was written")
    if array is not None and _shape(array) != {key: file[key] for key in ("shape", "dtype")}:
        raise ValueError(f"{name} is {array.dtype}{list(array.shape)}, unlike in {MANIFEST}")
    return array


def read_manifest(folder: pathlib.Path, kind: Kind, fingerprint: str | None = None) -> dict[str, Any]:
    """Reads the manifest of a folder without verifying its files; raises the errors of `read`."""
    if not folder.is_dir():
        raise Missing(f"{folder} is missing", kind.remake)
    remedy = f"delete it and {kind.remake}"
    with intact(folder, kind):
        if not (folder / MANIFEST).is_file():
            raise ValueError(f"{MANIFEST} is missing")
        try:
            manifest = storage.unsealed(json.loads((folder / MANIFEST).read_text(encoding="utf-8")), needs_seal=True)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{MANIFEST}: {error}") from None
    if (name := manifest.get("kind", kind.name)) != kind.name:
        raise Foreign(f"{folder} holds {name}, expected {kind.name}", remedy, manifest)
    if (written := manifest.get("format")) != kind.format:
        writer = f"{manifest['program']}, format {written}" if "program" in manifest else f"format {written}"
        reader = f"this one is {_program()}, format {kind.format}"
        reason = f"{folder} was written by another version of this program ({writer}; {reader})"
        raise Outdated(reason, remedy, manifest)
    with intact(folder, kind):
        if not all(isinstance(manifest[key], dict) for key in ("facts", "files")):
            raise TypeError(f"{MANIFEST} has no facts or files")
        if fingerprint not in (None, manifest["fingerprint"]):
            actual = manifest["fingerprint"]
            reason = f"{folder} holds {kind.name} with the fingerprint {actual}, expected {fingerprint}"
            raise Foreign(reason, remedy, manifest)
    return manifest


@contextlib.contextmanager
def intact(folder: pathlib.Path, kind: Kind) -> Iterator[None]:
    """A context in which a folder is read. An exception, for example for a missing fact, is raised as Damaged.

    Errors that do not come from the content, such as a UserError, a full memory or a failed disk, pass through.
    """
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:  # a value of an unexpected type may raise any exception
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
            raise  # an error of the machine, not of the folder
        detail = f"{MANIFEST} lacks {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise Damaged(f"{folder} is damaged ({detail})", f"delete it and {kind.remake}") from error


def ensure(
    folder: pathlib.Path, kind: Kind, fingerprint: str, make: Callable[[], None], replaces: bool = False
) -> Artifact:
    """Reads a folder, and makes it first if it is missing, damaged or of another version.

    All processes must call this function.

    Args:
      folder: the folder.
      kind: its kind.
      fingerprint: its fingerprint.
      make: makes the folder. All processes call it, and only the first one writes.
      replaces: whether a folder with another fingerprint is also made again.

    Raises:
      Foreign: it has another fingerprint and is not replaced.
    """
    intact_folder: list[Artifact] = []

    def read_if_intact() -> None:
        try:
            intact_folder.append(read(folder, kind, fingerprint))
        except Refused as error:
            if isinstance(error, Foreign) and not replaces:
                raise
            if isinstance(error, Damaged | Outdated):
                log(f"made anew: {error.reason}")

    processes.on_first(read_if_intact)
    if not processes.agreed(bool(intact_folder)):
        make()
    return intact_folder[0] if intact_folder else read(folder, kind, fingerprint)


def _program() -> str:
    try:
        return f"cnn2gnn_jax {importlib.metadata.version('cnn2gnn_jax')}"
    except importlib.metadata.PackageNotFoundError:
        return "cnn2gnn_jax of unknown version"


def _open(path: pathlib.Path) -> np.ndarray:
    # Unlike np.load, this reads only .npy files, and no pickled objects in them.
    return np.lib.format.open_memmap(path, mode="r")


def _shape(array: np.ndarray) -> dict[str, Any]:
    return {"shape": list(array.shape), "dtype": str(array.dtype)}
