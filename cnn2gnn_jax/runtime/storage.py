"""Files that are whole or absent: atomic writes, hashes, fingerprints, locks."""

import contextlib
import errno
import fcntl
import glob
import hashlib
import json
import os
import pathlib
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from cnn2gnn_jax.runtime.errors import InUse, UserError

_BLOCK = 1 << 22
_SEAL = "seal"


def fingerprint(value: Any) -> str:
    """16 hex digits that name a JSON value: equal values, whatever the order of their keys, get equal names."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def sha256(path: pathlib.Path) -> str:
    """Hex sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def naming(path: pathlib.Path) -> Iterator[None]:
    """Adds the file's name to an OSError that lacks one, as those of writing and closing do."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            raise OSError(error.errno, error.strerror or str(error), str(path)) from error
        raise


@contextlib.contextmanager
def atomic_path(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a path beside `path` to write to; on success it is synced and renamed to `path`, otherwise removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
    os.close(handle)
    beside = pathlib.Path(name)
    try:
        with naming(path):
            yield beside
            with open(beside, "rb+") as file:
                os.fsync(file.fileno())
            beside.chmod(0o644)
            os.replace(beside, path)
            _sync_folder(path.parent)
    finally:
        beside.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a new folder beside `path` to fill; on success it takes the place of `path`, otherwise it is removed.

    One process writes `path` at a time, and others wait. The first thing it does is to remove what killed ones left.
    """
    with lock(path.with_name(f".{path.name}.lock"), wait=True, keep=False):
        for remains in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
            shutil.rmtree(remains, ignore_errors=True)
        beside = _partial_folder(path)
        try:
            with naming(path):
                yield beside
                for file in beside.rglob("*"):
                    if file.is_file():
                        with open(file, "rb+") as opened:
                            os.fsync(opened.fileno())
                _sync_folder(beside)
                beside.chmod(0o755)
                _take_place(beside, path)
        finally:
            shutil.rmtree(beside, ignore_errors=True)


def _partial_folder(path: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial"))


def _take_place(beside: pathlib.Path, path: pathlib.Path) -> None:
    """Renames `beside` to `path`. What is there is moved away first, since a kill while it is removed leaves half."""
    old = _partial_folder(path)
    try:
        if path.exists():
            os.replace(path, old)
        os.replace(beside, path)
        _sync_folder(path.parent)
    finally:
        shutil.rmtree(old, ignore_errors=True)


def new_array(path: pathlib.Path, dtype: Any, shape: tuple[int | None, ...]) -> np.memmap:
    """A memory-mapped .npy file to fill, whose room on disk is reserved.

    Without that, a disk that fills up later would end the process by SIGBUS.
    """
    array = np.lib.format.open_memmap(path, "w+", dtype, shape)  # type: ignore[arg-type]
    with naming(path), open(path, "rb+") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def remove_remains(folder: pathlib.Path) -> None:
    """Removes what killed processes have left unfinished in a folder and below; call it under the folder's lock."""
    for remains in folder.rglob(".*.partial"):
        if remains.is_dir():
            shutil.rmtree(remains)
        else:
            remains.unlink()


def _sync_folder(path: pathlib.Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a text file atomically."""
    with atomic_path(path) as beside:
        beside.write_text(text, encoding="utf-8")


def write_json(path: pathlib.Path, value: dict[str, Any]) -> None:
    """Writes a JSON object atomically, sealed, so that `read_json` notices changes."""
    write_text(path, json.dumps(sealed(value), indent=1, sort_keys=True) + "\n")


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Reads a JSON object; one without a seal, from elsewhere or an earlier version, as it is.

    Raises:
      UserError: the file is no JSON object, or has changed since it was written.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        return unsealed(value)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}): delete it and run the same command again") from None


def array_sha256(array: np.ndarray) -> str:
    """Hex sha256 of an array's dtype, shape and bytes, whatever file it is in."""
    return hashlib.sha256(
        f"{array.dtype.str}{array.shape}".encode() + np.ascontiguousarray(array).tobytes()
    ).hexdigest()


def write_arrays(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays as a compressed .npz file atomically; keep their `array_sha256` elsewhere, for `read_array`."""
    with atomic_path(path) as beside, open(beside, "wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def read_array(path: pathlib.Path, name: str, sha256: str) -> np.ndarray:
    """An array of an .npz file.

    Raises:
      UserError: the file is missing or damaged, or the array is another one than was written.
    """
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            array = arrays[name]
        if array_sha256(array) != sha256:
            raise ValueError(f"{name} is not what was written")
        return array
    except Exception as error:  # of NumPy and zipfile, many kinds
        what = " ".join(str(error).split())
        raise UserError(f"{path} is damaged ({what}): delete it and run the same command again") from None


def sealed(value: dict[str, Any]) -> dict[str, Any]:
    """A JSON object with a fingerprint of itself."""
    plain = json.loads(json.dumps(value, allow_nan=False))
    return {**plain, _SEAL: fingerprint(plain)}


def unsealed(value: Any, needs_seal: bool = False) -> dict[str, Any]:
    """The object that was sealed; one without a seal as it is, unless it needs one.

    Raises:
      ValueError: it is no object, or another one than was sealed.
    """
    if not isinstance(value, dict):
        raise ValueError("no JSON object")
    if _SEAL in value:
        if value.pop(_SEAL) != fingerprint(value):
            raise ValueError("it is not what was written")
        return value
    if needs_seal:
        raise ValueError("it has no seal")
    for name, seal in value.items():
        others = {key: other for key, other in value.items() if key != name}
        if isinstance(seal, str) and len(seal) == 16 and seal == fingerprint(others):
            raise ValueError("the name of its seal is not what was written")
    return value


@contextlib.contextmanager
def lock(path: pathlib.Path, wait: bool, keep: bool = True) -> Iterator[None]:
    """Holds the lock file `path`; the kernel releases it when this process dies.

    Args:
      path: the lock file, created if missing; it holds the owner's host and process for whoever is refused.
      wait: whether to wait for another owner or to refuse at once.
      keep: whether the file stays.

    Raises:
      InUse: another process holds it and `wait` is false.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = _locked(path, wait)
    try:
        with naming(path):
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield
    finally:
        if not keep:
            path.unlink(missing_ok=True)
        os.close(handle)


def _locked(path: pathlib.Path, wait: bool) -> int:
    """A handle of the lock file, which is locked."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BaseException as error:
            owner = os.pread(handle, 200, 0).decode(errors="replace").strip() or "another process"
            os.close(handle)
            if not isinstance(error, OSError) or error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            raise InUse(f"{path.parent} is in use by {owner}: wait for it to end, or choose another folder") from None
        # Otherwise the owner before removed the file, and another process may make a new one.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), os.stat(path)):
                return handle
        os.close(handle)
