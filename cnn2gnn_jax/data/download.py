"""Downloads of published archives: whole and verified, or absent; offline it says so within seconds.

The library pooch verifies a hash, too, but its time limit does not cover a name server that does not answer (tried with
pooch 1.9: a limit of 2 seconds, and the server's 12 were waited for), and it reads to the end what is larger than the
published file.
"""

import contextlib
import hashlib
import http.client
import pathlib
import queue
import sys
import threading
import urllib.request
from collections.abc import Iterator
from typing import Any

from absl import logging

from cnn2gnn_jax.runtime import storage
from cnn2gnn_jax.runtime.errors import UserError

_ANSWER_SECONDS = 6.0
_STALL_SECONDS = 60.0
_BLOCK = 1 << 20


def fetch(url: str, path: pathlib.Path, size: int, sha256: str) -> None:
    """Downloads `url` to `path`, which is written only if its size and sha256 are as given.

    Raises:
      UserError: the server does not answer, breaks off, or sends something else.
    """
    logging.info("downloading %s (%.0f MB)", url, size / 1e6)
    digest, received = hashlib.sha256(), 0
    with contextlib.closing(_open(url)) as response, storage.atomic_path(path) as beside, open(beside, "wb") as file:
        try:
            for block in _blocks(response):
                received += len(block)
                if received > size:
                    break
                digest.update(block)
                file.write(block)
                _progress(path.name, received, size)
        except (OSError, http.client.HTTPException) as error:
            raise UserError(f"{url} broke off after {received:,} of {size:,} bytes ({error}): try again") from None
        if received != size:
            raise UserError(f"{url} sent {'more than' if received > size else f'{received:,} of'} {size:,} bytes")
        if digest.hexdigest() != sha256:
            raise UserError(f"{url} sent a file of sha256 {digest.hexdigest()}, expected {sha256}")


def verify(path: pathlib.Path, size: int, sha256: str) -> None:
    """Checks a published archive.

    Raises:
      UserError: its size or sha256 is another than the published one.
    """
    found = path.stat().st_size
    if found != size:
        raise UserError(f"{path} has {found:,} bytes, expected {size:,}: fetch it again")
    if (found_sha256 := storage.sha256(path)) != sha256:
        raise UserError(f"{path} has sha256 {found_sha256}, expected {sha256}: fetch it again")


def _open(url: str) -> Any:
    """The response to `url`, or UserError once the time for an answer is over.

    In a thread, since no timeout of the socket covers a name server that does not answer.
    """
    answers: queue.Queue[Any] = queue.Queue()

    def ask() -> None:
        try:
            answers.put(urllib.request.urlopen(url, timeout=_STALL_SECONDS))
        except Exception as error:
            answers.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=_ANSWER_SECONDS)
    except queue.Empty:
        raise UserError(f"{url} did not answer in {_ANSWER_SECONDS:.0f} seconds") from None
    if isinstance(answer, Exception):
        raise UserError(f"{url} cannot be reached ({getattr(answer, 'reason', answer)})")
    return answer


def _blocks(response: Any) -> Iterator[bytes]:
    while block := response.read(_BLOCK):
        yield block


def _progress(name: str, received: int, size: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{name}: {received / 1e6:.0f} of {size / 1e6:.0f} MB", end="", file=sys.stderr)
        if received >= size:
            print(file=sys.stderr)
