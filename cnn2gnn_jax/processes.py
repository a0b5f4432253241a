"""Several processes as one run: they start together, the first one alone writes files, and they stop together.

All processes run the same program, so whatever they do not compute from the same values they must agree on: functions
here that say so are to be called by all of them at the same place.
"""

import contextlib
import itertools
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from cnn2gnn_jax import errors
from cnn2gnn_jax.errors import Stopped, UserError

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


class _Sigterm:
    """Whether a single process was asked to stop, and whether it waits for the end of a chunk to do so."""

    asked = False
    training = False


_questions = itertools.count()


def heed_sigterm() -> None:
    """From now on SIGTERM stops training at the end of a chunk, with its state saved, and anything else at once.

    With several processes JAX has its own handler, which tells them all; call `join` first.
    """
    if jax.process_count() > 1:
        return

    def handle(number: int, frame: Any) -> None:
        del number, frame
        _Sigterm.asked = True
        if not _Sigterm.training:
            raise Stopped("between two stages of training")

    signal.signal(signal.SIGTERM, handle)


@contextlib.contextmanager
def stopping_between_chunks() -> Iterator[None]:
    """Training asks `must_stop` after each chunk, so that SIGTERM need not interrupt it."""
    _Sigterm.training = True
    try:
        yield
    finally:
        _Sigterm.training = False


def must_stop() -> bool:
    """Whether to save and stop now; call it once after each chunk. All processes stop after the same one."""
    if jax.process_count() == 1:
        return _Sigterm.asked
    return multihost_utils.reached_preemption_sync_point(next(_questions))


def leave(code: int) -> None:
    """Ends this process without the farewell to the others, which would wait for one that is lost."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
