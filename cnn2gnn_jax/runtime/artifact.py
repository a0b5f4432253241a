"""Verified folders: arrays, files and JSON facts that are read only if they are what was written.

    FOLDER/<array>.npy      memory-mapped when it is read
    FOLDER/...              other files
    FOLDER/manifest.json    kind, format, program, fingerprint, facts; each file's sha256, each array's shape and dtype

A folder is written beside its place and renamed, by one process at a time: it is whole or absent. Reading it hashes
each file. A new kind takes a few lines:

    BANK = artifact.Kind("the bank of a run", format=1, remake="run the same command again")

    artifact.write(folder, BANK, fingerprint, {"width": 64}, {"keys": keys, "labels": labels})
    keys = artifact.read(folder, BANK, fingerprint).arrays["keys"]

Arrays too large for memory are filled in a folder of `storage.atomic_folder`, which `seal` completes.
"""

import contextlib
import importlib.metadata
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from cnn2gnn_jax.runtime import processes, storage
from cnn2gnn_jax.runtime.console import say
from cnn2gnn_jax.runtime.errors import UserError

MANIFEST = "manifest.json"


class Kind(NamedTuple):
    """What a folder holds.

    name: in errors.
    format: a number, to be raised when a reader of this version could not use what an earlier one wrote.
    remake: how it is made again, as errors end.
    """

    name: str
    format: int
    remake: str


class Artifact(NamedTuple):
    """A folder that was read.

    fingerprint: of what it was made from.
    facts: JSON values.
    arrays: by name, memory-mapped and read-only.
    files: of each file, by its path in the folder, `sha256`, and of each array also `shape` and `dtype`.
    """

    fingerprint: str
    facts: dict[str, Any]
    arrays: dict[str, np.ndarray]
    files: dict[str, dict[str, Any]]


class Refused(UserError):
    """A folder that cannot be used: `what` is wrong, without what to do about it, and `manifest` if it can be read."""

    def __init__(self, what: str, mend: str, manifest: Mapping[str, Any] | None = None) -> None:
        super().__init__(f"{what}: {mend}")
        self.what, self.manifest = what, manifest or {}


class Missing(Refused):
    """There is no folder."""


class Damaged(Refused):
    """The folder is there, but not as it was written."""


class Outdated(Refused):
    """Another version of this program wrote the folder, in another format."""


class Foreign(Refused):
    """The folder is of another kind or has another fingerprint."""


def write(
    folder: pathlib.Path, kind: Kind, fingerprint: str, facts: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> None:
    """Writes a folder, the whole or nothing; it takes the place of one that is there."""
    with storage.atomic_folder(folder) as beside:
        for name, array in arrays.items():
            np.save(beside / f"{name}.npy", array, allow_pickle=False)
        seal(beside, kind, fingerprint, facts)


def seal(
    folder: pathlib.Path, kind: Kind, fingerprint: str, facts: Mapping[str, Any], unlisted: Sequence[str] = ()
) -> None:
    """Writes the manifest of all files in a folder but the `unlisted` names, before the folder gets its place."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path != folder / MANIFEST and path.name not in unlisted:
            shape = _shape(_open(path)) if path.suffix == ".npy" else {}
            files[path.relative_to(folder).as_posix()] = {"sha256": storage.sha256(path), **shape}
    manifest = {"kind": kind.name, "format": kind.format, "program": _program(), "fingerprint": fingerprint}
    storage.write_json(folder / MANIFEST, {**manifest, "facts": dict(facts), "files": files})


def read(folder: pathlib.Path, kind: Kind, fingerprint: str | None = None) -> Artifact:
    """Opens a folder after each of its files was hashed; `fingerprint` is what it must have, None for any.

    Raises:
      Missing, Damaged, Outdated, Foreign: it cannot be used.
    """
    manifest = read_manifest(folder, kind, fingerprint)
    arrays = {}
    with intact(folder, kind):
        for name, file in manifest["files"].items():
            if (array := _checked(folder, name, file)) is not None:
                arrays[name.removesuffix(".npy")] = array
    return Artifact(manifest["fingerprint"], manifest["facts"], arrays, manifest["files"])


def _checked(folder: pathlib.Path, name: str, file: Mapping[str, Any]) -> np.ndarray | None:
    """The array in a file, None in other files; a ValueError if it is not as the manifest says."""
    path, array = folder / name, None
    if ".." in path.parts or not path.is_relative_to(folder) or not path.is_file():
        raise ValueError(f"{name} is missing")
    if "shape" in file:
        try:
            array = _open(path)  # before it is hashed, so that it is what was hashed even if the folder is replaced
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    if storage.sha256(path) != file["sha256"]:
        raise ValueError(f"{name} is not what was written")
    if array is not None and _shape(array) != {key: file[key] for key in ("shape", "dtype")}:
        raise ValueError(f"{name} is {array.dtype}{list(array.shape)}, unlike in {MANIFEST}")
    return array


def read_manifest(folder: pathlib.Path, kind: Kind, fingerprint: str | None = None) -> dict[str, Any]:
    """The manifest of a folder whose files are not looked at; with the errors of `read`."""
    if not folder.is_dir():
        raise Missing(f"{folder} is missing", kind.remake)
    mend = f"delete it and {kind.remake}"
    with intact(folder, kind):
        if not (folder / MANIFEST).is_file():
            raise ValueError(f"{MANIFEST} is missing")
        try:
            manifest = storage.unsealed(json.loads((folder / MANIFEST).read_text(encoding="utf-8")), needs_seal=True)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{MANIFEST}: {error}") from None
    if (name := manifest.get("kind", kind.name)) != kind.name:
        raise Foreign(f"{folder} holds {name}, expected {kind.name}", mend, manifest)
    if (number := manifest.get("format")) != kind.format:
        written = f"{manifest['program']}, format {number}" if "program" in manifest else f"format {number}"
        here = f"this one is {_program()}, format {kind.format}"
        what = f"{folder} was written by another version of this program ({written}; {here})"
        raise Outdated(what, mend, manifest)
    with intact(folder, kind):
        if not all(isinstance(manifest[key], dict) for key in ("facts", "files")):
            raise TypeError(f"{MANIFEST} has no facts or files")
        if fingerprint not in (None, manifest["fingerprint"]):
            what = f"{folder} holds {kind.name} with the fingerprint {manifest['fingerprint']}, expected {fingerprint}"
            raise Foreign(what, mend, manifest)
    return manifest


@contextlib.contextmanager
def intact(folder: pathlib.Path, kind: Kind) -> Iterator[None]:
    """Raises Damaged where what is read of a folder cannot be used, as by a fact that is missing or of another type."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:  # of values of other types, many kinds
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
            raise  # of the machine, and not of the folder
        what = f"{MANIFEST} lacks {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise Damaged(f"{folder} is damaged ({what})", f"delete it and {kind.remake}") from error


def ensure(
    folder: pathlib.Path, kind: Kind, fingerprint: str, make: Callable[[], None], replaces: bool = False
) -> Artifact:
    """What `read` gives, after `make` where the folder is missing, damaged or of another version.

    To be called by all processes. All of them call `make`, in which the first one writes. `replaces` says whether a
    folder with another fingerprint is made anew, too.

    Raises:
      Foreign: it is not to be replaced.
    """
    kept: list[Artifact] = []

    def look() -> None:
        try:
            kept.append(read(folder, kind, fingerprint))
        except Refused as error:
            if isinstance(error, Foreign) and not replaces:
                raise
            if isinstance(error, Damaged | Outdated):
                say(f"made anew: {error.what}")

    processes.on_first(look)
    if not processes.agreed(bool(kept)):
        make()
    return kept[0] if kept else read(folder, kind, fingerprint)


def _program() -> str:
    try:
        return f"cnn2gnn_jax {importlib.metadata.version('cnn2gnn_jax')}"
    except importlib.metadata.PackageNotFoundError:
        return "cnn2gnn_jax of unknown version"


def _open(path: pathlib.Path) -> np.ndarray:
    # Unlike np.load, this reads .npy files alone, and no pickles in them.
    return np.lib.format.open_memmap(path, mode="r")


def _shape(array: np.ndarray) -> dict[str, Any]:
    return {"shape": list(array.shape), "dtype": str(array.dtype)}
