"""Claims: which of several processes that share a folder does which piece of work.

A claim is a file that is created exclusively and touched every half minute while its owner works. One that nobody has
touched for five minutes is taken over, and that of a process of this machine which is no more at once. Ages are told by
the folder's own clock, that of the machine which keeps it.
"""

import contextlib
import os
import pathlib
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator

RENEW_SECONDS = 30.0
STALE_SECONDS = 300.0
_REMAINS_SECONDS = 3600.0


class Claims:
    """The claims in a folder.

    Args:
      folder: created if missing.
      renew_seconds: between touches.
      stale_seconds: without a touch until a claim may be taken over.
    """

    def __init__(
        self, folder: pathlib.Path, renew_seconds: float = RENEW_SECONDS, stale_seconds: float = STALE_SECONDS
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for remains in folder.glob(".*"):  # of processes that were killed
            with contextlib.suppress(FileNotFoundError):
                if time.time() - remains.stat().st_mtime > _REMAINS_SECONDS:
                    remains.unlink()
        self.folder, self.renew_seconds, self.stale_seconds = folder, renew_seconds, stale_seconds
        self.owner = f"process {os.getpid()} on {socket.gethostname()} {_boot()}, {uuid.uuid4().hex}"

    @contextlib.contextmanager
    def hold(self, name: str, on_loss: Callable[[], None]) -> Iterator[bool]:
        """Holds the claim `name`, if it is free, while the context lasts; the value tells whether it does.

        `on_loss` is called, in another thread, if someone has taken the claim over: this process was silent too long.
        One that was given back meanwhile is taken again.
        """
        path = self.folder / name
        if not self._take(path):
            yield False
            return
        done = threading.Event()
        thread = threading.Thread(target=self._renew, args=(path, done, on_loss), daemon=True)
        thread.start()
        try:
            yield True
        finally:
            done.set()
            thread.join()
            if self._is_mine(path):
                path.unlink(missing_ok=True)

    def held(self) -> int:
        """How many claims are alive."""
        return sum(not self._is_stale(path) for path in self.folder.iterdir() if not path.name.startswith("."))

    def _take(self, path: pathlib.Path) -> bool:
        if not self._is_stale(path):
            return self._create(path)
        # Of several that take over, one creates the new claim beside; as it takes the old one's place, no claim is
        # free in between.
        beside = path.with_name(f".{path.name}.takeover")
        if not self._create(beside):
            if self._is_stale(beside):
                beside.unlink(missing_ok=True)  # of one that was killed
            return False
        if not self._is_stale(path):
            beside.unlink(missing_ok=True)
            return False
        with contextlib.suppress(FileNotFoundError):
            os.replace(beside, path)
        return self._is_mine(path)

    def _create(self, path: pathlib.Path) -> bool:
        try:
            with open(path, "x", encoding="utf-8") as file:
                file.write(self.owner)
        except FileExistsError:
            return False
        return True

    def _renew(self, path: pathlib.Path, done: threading.Event, on_loss: Callable[[], None]) -> None:
        while not done.wait(self.renew_seconds):
            try:
                if not self._is_mine(path) and not self._create(path):
                    on_loss()
                    return
                os.utime(path)
            except OSError:
                continue  # a shared folder may be away for a while

    def _is_mine(self, path: pathlib.Path) -> bool:
        try:
            return path.read_text(encoding="utf-8") == self.owner
        except FileNotFoundError:
            return False

    def _is_stale(self, path: pathlib.Path) -> bool:
        try:
            touched = path.stat().st_mtime
        except FileNotFoundError:
            return False
        clock = self.folder / f".clock.{uuid.uuid4().hex}"
        clock.touch()
        now = clock.stat().st_mtime
        clock.unlink()
        return now - touched > self.stale_seconds or _is_dead(path)


def _is_dead(path: pathlib.Path) -> bool:
    """Whether a claim is of a process that ran on this machine and has ended."""
    with contextlib.suppress(FileNotFoundError, PermissionError):
        found = re.fullmatch(r"process (\d+) on (.+), \w+", path.read_text(encoding="utf-8", errors="replace"))
        if found is not None and found[2] == f"{socket.gethostname()} {_boot()}":
            try:
                os.kill(int(found[1]), 0)
            except ProcessLookupError:
                return True
    return False


def _boot() -> str:
    """Names this machine since it was started: containers may share a name, and not the processes."""
    with contextlib.suppress(OSError):
        namespace = os.readlink("/proc/self/ns/pid")
        return pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip() + namespace
    return uuid.uuid4().hex
