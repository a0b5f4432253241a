"""Runs of several processes, which start and stop together; only the first process writes files.

All processes run the same program. Where they might decide differently they must agree, by functions that all of them
call at the same place.
"""

import contextlib
import functools
import itertools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from cnn2gnn_jax.runtime import errors
from cnn2gnn_jax.runtime.errors import INTERRUPTED, Interrupted, Stopped, UserError

LOST_SECONDS = 30  # without a heartbeat, after which a process counts as lost
_TEXT_BYTES = 2000  # the maximum size of an error that the first process broadcasts


def join(coordinator: str | None, count: int | None, index: int | None) -> None:
    """Connects this process to the others; call it before JAX uses a device.

    All arguments are None where Slurm, Open MPI, Cloud TPU or Kubernetes provides them.

    Args:
      coordinator: host and port of the first process.
      count: the number of processes.
      index: the position of this process, from 0.

    Raises:
      UserError: the other processes cannot be reached.
    """
    try:
        jax.distributed.initialize(
            coordinator,
            count,
            index,
            heartbeat_timeout_seconds=LOST_SECONDS,
            shutdown_timeout_seconds=LOST_SECONDS,
        )
    except (ValueError, TypeError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"the processes do not come together ({reason}): give --coordinator=HOST:PORT, --processes=N and "
            "--process_id=K to each, or start them by Slurm, Open MPI, Cloud TPU or GKE with --distributed"
        ) from error


def is_first() -> bool:
    """Whether this process writes the files."""
    return jax.process_index() == 0


def agreed(value: Any) -> Any:
    """Broadcasts the first process's `value`, a number or a bool; all processes must call it."""
    if jax.process_count() == 1:
        return value
    return type(value)(multihost_utils.broadcast_one_to_all(np.asarray(value)))


def on_first(function: Callable[[], Any]) -> None:
    """Calls `function` in the first process while the others wait; all processes must call it.

    Raises:
      UserError: in all processes, if `function` raises a UserError or an OSError.
    """
    text = ""
    if is_first():
        try:
            function()
        except (UserError, OSError) as error:
            if jax.process_count() == 1:
                raise
            text = errors.of_machine(error) if isinstance(error, OSError) else str(error)
    if jax.process_count() == 1:
        return
    raw = text.encode()[:_TEXT_BYTES].ljust(_TEXT_BYTES, b"\0")
    received = multihost_utils.broadcast_one_to_all(np.frombuffer(raw, np.uint8))
    if text := bytes(np.asarray(received)).rstrip(b"\0").decode(errors="ignore"):
        raise UserError(text)


def first_before_others(function: Callable[[], Any]) -> Any:
    """Calls `function` in the first process, where it may write files, and then in the others; returns its result."""
    result: list[Any] = []
    on_first(lambda: result.append(function()))
    return result[0] if result else function()


@contextlib.contextmanager
def first_holds(context: contextlib.AbstractContextManager) -> Iterator[None]:
    """Enters `context` in the first process only, for all processes; all processes must call it.

    Raises:
      UserError: in all processes, if entering raises one.
    """
    with contextlib.ExitStack() as stack:
        on_first(lambda: stack.enter_context(context))
        yield


class _Stop:
    """The requests to stop that this process has received.

    signal: the number of the signal, 0 without one.
    training: whether a chunk of steps is running, which ends before the process stops.
    calls: numbers the calls of `must_stop` where there are several processes.
    """

    def __init__(self) -> None:
        self.signal, self.training, self.calls = 0, False, itertools.count()


@functools.cache
def _stop() -> _Stop:
    """The only instance: signals are sent to the process, not to a part of it."""
    return _Stop()


_AT_ONCE = b"stopped by Ctrl-C at once: the same command goes on from the last checkpoint\n"
_SOON = b"Ctrl-C: the state is saved after these steps; Ctrl-C again stops at once\n"


def install_signal_handlers() -> None:
    """Installs handlers by which SIGTERM and Ctrl-C stop training at the end of a chunk, after its state is saved.

    Outside of training they stop the program at once, as a second Ctrl-C always does. With several processes nothing is
    installed: JAX has a handler for SIGTERM that notifies all processes, and Ctrl-C is not handled. Call `join` first.
    """
    if jax.process_count() > 1:
        return

    def handle(number: int, frame: Any) -> None:
        del frame
        _stop().signal = number
        if not _stop().training:
            raise stopped("between two stages of training")

    signal.signal(signal.SIGTERM, handle)
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # a shell ignores it for background processes
        signal.signal(signal.SIGINT, handle)
    # Python calls a handler only after the device has finished its steps, which may take minutes. A thread that reads
    # from a pipe responds at once.
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    threading.Thread(target=_handle_interrupts, args=(read,), daemon=True).start()


def _handle_interrupts(numbers: int) -> None:
    """Reads signals from a pipe: explains what the first Ctrl-C does, and ends the process at the second."""
    interrupts = 0
    while number := os.read(numbers, 1):
        if number[0] == signal.SIGINT:
            interrupts += 1
            if interrupts > 1:
                os.write(2, _AT_ONCE)
                os._exit(INTERRUPTED)
            if _stop().training:
                os.write(2, _SOON)


@contextlib.contextmanager
def stopping_between_chunks() -> Iterator[None]:
    """A context in which signals do not interrupt training, which calls `must_stop` after each chunk.

    Raises:
      Stopped: at its end, if a signal came after the last call of `must_stop`.
    """
    _stop().training = True
    try:
        yield
    finally:
        _stop().training = False
    if _stop().signal:
        raise stopped("between two stages of training")


def must_stop() -> bool:
    """Whether to save and stop now; all processes call it once after each chunk, and stop after the same one."""
    if jax.process_count() == 1:
        return bool(_stop().signal)
    return multihost_utils.reached_preemption_sync_point(next(_stop().calls))


def stopped(where: str) -> Stopped:
    """The exception for the signal that was received; `where` says where the run stopped."""
    return Interrupted(where) if _stop().signal == signal.SIGINT else Stopped(where)


def leave(code: int) -> None:
    """Ends this process without JAX's shutdown, which would wait for a process that is lost."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
