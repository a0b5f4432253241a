"""Atomic writes, hashes, fingerprints and locks: a file is either complete or absent."""

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
from collections.abc import Iterator
from typing import Any

import numpy as np

from cnn2gnn_jax.runtime.errors import InUse, UserError

_BLOCK = 1 << 22
_SEAL = "seal"


def fingerprint(value: Any) -> str:
    """16 hex digits that identify a JSON value; the order of keys does not matter."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def sha256(path: pathlib.Path) -> str:
    """The SHA-256 of a file, in hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def naming(path: pathlib.Path) -> Iterator[None]:
    """Adds a file name to an OSError that has none, as errors of writing and closing do."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            raise OSError(error.errno, error.strerror or str(error), str(path)) from error
        raise


@contextlib.contextmanager
def atomic_path(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a temporary path in the folder of `path`; on success it is renamed to `path`, otherwise removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
    os.close(handle)
    temporary = pathlib.Path(name)
    try:
        with naming(path):
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            temporary.chmod(0o644)
            os.replace(temporary, path)
            _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a temporary folder next to `path`; on success it replaces `path`, otherwise it is removed.

    One process writes `path` at a time, and others wait. Temporary folders of killed processes are removed first.
    """
    with lock(path.with_name(f".{path.name}.lock"), wait=True, keep=False):
        for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
            shutil.rmtree(leftover, ignore_errors=True)
        temporary = _partial_folder(path)
        try:
            with naming(path):
                yield temporary
                for file in temporary.rglob("*"):
                    if file.is_file():
                        with open(file, "rb+") as opened:
                            os.fsync(opened.fileno())
                _sync_folder(temporary)
                temporary.chmod(0o755)
                _take_place(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _partial_folder(path: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial"))


def _take_place(temporary: pathlib.Path, path: pathlib.Path) -> None:
    """Renames `temporary` to `path`. An existing folder is moved away first, so that it is never partly removed."""
    old = _partial_folder(path)
    try:
        if path.exists():
            os.replace(path, old)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    finally:
        shutil.rmtree(old, ignore_errors=True)


def new_array(path: pathlib.Path, dtype: Any, shape: tuple[int | None, ...]) -> np.memmap:
    """Creates a memory-mapped .npy file and reserves its space on disk.

    Without reserved space, a disk that becomes full ends the process by SIGBUS.
    """
    array = np.lib.format.open_memmap(path, "w+", dtype, shape)  # type: ignore[arg-type]
    with naming(path), open(path, "rb+") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def remove_remains(folder: pathlib.Path) -> None:
    """Removes temporary files of killed processes in a folder and below; call it under the folder's lock."""
    for leftover in folder.rglob(".*.partial"):
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()


def _sync_folder(path: pathlib.Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: pathlib.Path, value: dict[str, Any]) -> None:
    """Writes a JSON object atomically, with a seal by which `read_json` detects changes."""
    write_text(path, json.dumps(sealed(value), indent=1, sort_keys=True) + "\n")


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Reads a JSON object; a seal is verified if there is one.

    Raises:
      UserError: the file is not a JSON object, or has changed since it was written.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        return unsealed(value)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}): delete it and run the same command again") from None


def sealed(value: dict[str, Any]) -> dict[str, Any]:
    """Returns a JSON object with a seal, the fingerprint of its content."""
    plain = json.loads(json.dumps(value, allow_nan=False))
    return {**plain, _SEAL: fingerprint(plain)}


def unsealed(value: Any, needs_seal: bool = False) -> dict[str, Any]:
    """Verifies and removes the seal of a JSON object.

    Args:
      value: the object, with or without a seal.
      needs_seal: whether an object without a seal is refused.

    Raises:
      ValueError: it is not an object, or has changed since it was sealed.
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
      path: the lock file, which is created if missing. It names the host and process of its owner.
      wait: whether to wait for another owner, instead of raising InUse.
      keep: whether to keep the file afterwards.

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
    """Opens and locks the lock file, and returns its handle."""
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
        # If the file is another one now, the previous owner removed it, and this lock is worthless: try again.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), os.stat(path)):
                return handle
        os.close(handle)
