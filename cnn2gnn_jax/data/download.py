"""Downloads of published archives.

A download is verified and complete, or it leaves no file. Without a network it fails within seconds. The library pooch
also verifies a hash, but its time limit does not apply to a name server that does not answer (pooch 1.9 waited 12
seconds despite a limit of 2), and it does not stop when a file is larger than expected.
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
    """Downloads `url` to `path`. The file is written only if its size in bytes and its sha256 are the expected ones.

    Raises:
      UserError: the server does not answer, closes the connection early, or sends another file.
    """
    logging.info("downloading %s (%.0f MB)", url, size / 1e6)
    digest, received = hashlib.sha256(), 0
    with (
        contextlib.closing(_open(url)) as response,
        storage.atomic_path(path) as temporary,
        open(temporary, "wb") as file,
    ):
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
    """Checks the size in bytes and the sha256 of a published archive.

    Raises:
      UserError: the size or the sha256 differs from the published one.
    """
    actual_size = path.stat().st_size
    if actual_size != size:
        raise UserError(f"{path} has {actual_size:,} bytes, expected {size:,}: fetch it again")
    if (actual_sha256 := storage.sha256(path)) != sha256:
        raise UserError(f"{path} has sha256 {actual_sha256}, expected {sha256}: fetch it again")


def _open(url: str) -> Any:
    """Returns the response to `url`. Raises UserError if there is no answer within `_ANSWER_SECONDS`.

    The request runs in a thread, because the timeout of a socket does not apply to the name server.
    """
    responses: queue.Queue[Any] = queue.Queue()

    def request() -> None:
        try:
            responses.put(urllib.request.urlopen(url, timeout=_STALL_SECONDS))
        except Exception as error:
            responses.put(error)

    threading.Thread(target=request, daemon=True).start()
    try:
        response = responses.get(timeout=_ANSWER_SECONDS)
    except queue.Empty:
        raise UserError(f"{url} did not answer in {_ANSWER_SECONDS:.0f} seconds") from None
    if isinstance(response, Exception):
        raise UserError(f"{url} cannot be reached ({getattr(response, 'reason', response)})")
    return response


def _blocks(response: Any) -> Iterator[bytes]:
    while block := response.read(_BLOCK):
        yield block


def _progress(name: str, received: int, size: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{name}: {received / 1e6:.0f} of {size / 1e6:.0f} MB", end="", file=sys.stderr)
        if received >= size:
            print(file=sys.stderr)
