"""Several processes as one run: they start together, the first one alone writes files, and they stop together.

All processes run the same program, so whatever they do not compute from the same values they must agree on: functions
here that say so are to be called by all of them at the same place.
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

LOST_SECONDS = 30  # of silence after which a process is taken for lost
_TEXT_BYTES = 2000  # of an error that the first process tells the others


def join(coordinator: str | None, count: int | None, index: int | None) -> None:
    """Makes this process one of several; call it before any device is touched.

    Args:
      coordinator: host and port of the first process; None, as the other two, where Slurm, Open MPI, Cloud TPU or
        Kubernetes say it.
      count: of processes.
      index: of this one, from 0.

    Raises:
      UserError: the others cannot be found or reached.
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
    """The first process's `value`, a number or a truth value, in all of them."""
    if jax.process_count() == 1:
        return value
    return type(value)(multihost_utils.broadcast_one_to_all(np.asarray(value)))


def on_first(function: Callable[[], Any]) -> None:
    """Calls `function` in the first process while all others wait.

    Raises:
      UserError: in all processes, if `function` raised one, or an OSError.
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
    told = multihost_utils.broadcast_one_to_all(np.frombuffer(raw, np.uint8))
    if text := bytes(np.asarray(told)).rstrip(b"\0").decode(errors="ignore"):
        raise UserError(text)


def first_before_others(function: Callable[[], Any]) -> Any:
    """What `function` returns; the others call it when the first process, which may write files in it, has."""
    found: list[Any] = []
    on_first(lambda: found.append(function()))
    return found[0] if found else function()


@contextlib.contextmanager
def first_holds(context: contextlib.AbstractContextManager) -> Iterator[None]:
    """Enters `context` in the first process, for all.

    Raises:
      UserError: in all processes, if entering raised one.
    """
    with contextlib.ExitStack() as held:
        on_first(lambda: held.enter_context(context))
        yield


class _Stop:
    """Whether this single process was asked to stop, by which signal, and whether it waits for the end of a chunk.

    questions: numbers the calls of `must_stop`, where there are several processes.
    """

    def __init__(self) -> None:
        self.signal, self.training, self.questions = 0, False, itertools.count()


@functools.cache
def _stop() -> _Stop:
    """This process's own one: signals are sent to the process, so there is one for all that runs in it."""
    return _Stop()


_AT_ONCE = b"stopped by Ctrl-C at once: the same command goes on from the last checkpoint\n"
_SOON = b"Ctrl-C: the state is saved after these steps; Ctrl-C again stops at once\n"


def heed_signals() -> None:
    """From now on SIGTERM and Ctrl-C stop training at the end of a chunk, with its state saved; anything else at once.

    A second Ctrl-C ends the process at once. With several processes JAX has its own handler of SIGTERM, which tells
    them all, and Ctrl-C is not heeded; call `join` first.
    """
    if jax.process_count() > 1:
        return

    def handle(number: int, frame: Any) -> None:
        del frame
        _stop().signal = number
        if not _stop().training:
            raise stopped("between two stages of training")

    signal.signal(signal.SIGTERM, handle)
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # as a shell has it for what it starts in the background
        signal.signal(signal.SIGINT, handle)
    # Python calls a handler when the device has done its steps, which may take minutes; a thread is told at once.
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    threading.Thread(target=_answer_interrupts, args=(read,), daemon=True).start()


def _answer_interrupts(numbers: int) -> None:
    """Reads the numbers of signals from a pipe: says what the first Ctrl-C does, and ends the process at the second."""
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
    """Training asks `must_stop` after each chunk, so that no signal need interrupt it.

    Raises:
      Stopped: at the end, if a signal came during the last chunk, after which training does not ask any more.
    """
    _stop().training = True
    try:
        yield
    finally:
        _stop().training = False
    if _stop().signal:
        raise stopped("between two stages of training")


def must_stop() -> bool:
    """Whether to save and stop now; call it once after each chunk. All processes stop after the same one."""
    if jax.process_count() == 1:
        return bool(_stop().signal)
    return multihost_utils.reached_preemption_sync_point(next(_stop().questions))


def stopped(where: str) -> Stopped:
    """The exception that ends this process, by the signal that it was sent; `where` says how far it came."""
    return Interrupted(where) if _stop().signal == signal.SIGINT else Stopped(where)


def leave(code: int) -> None:
    """Ends this process without the farewell to the others, which would wait for one that is lost."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
