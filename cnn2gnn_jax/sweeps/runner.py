"""Runs the cells of a sweep, one after another, beside other processes that may run the same ones.

A cell is locked by `flock` until its record is written; the kernel releases the lock of a process that dies.
"""

import collections
import os
import pathlib
import shutil
import signal
import statistics
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax

from cnn2gnn_jax import pipeline
from cnn2gnn_jax.runtime import storage
from cnn2gnn_jax.runtime.console import say
from cnn2gnn_jax.runtime.errors import Diverged, InUse, Stopped, UserError
from cnn2gnn_jax.sweeps import records, tuning
from cnn2gnn_jax.sweeps.plan import Cell

# In a cell's folder, beside the pipeline's own lock, which is free before the record is written.
LOCK = ".cell.lock"


class Outcome(NamedTuple):
    """How many cells are done, how many have failed, and whether the time was up before the work was done."""

    done: int
    failed: int
    time_is_up: bool


def run(
    cells: Sequence[Cell],
    out: pathlib.Path,
    *,
    minutes: float = 0,
    limit: int = 0,
    keep_checkpoints: bool = False,
) -> Outcome:
    """Runs the cells that are not done and that no other process runs; call `processes.heed_signals` first.

    Args:
      cells: of a plan, or of a shard of it.
      out: the sweep's folder, where the plan is.
      minutes: after which the running cell is stopped and its state saved; 0 for no end.
      limit: the most cells to run; 0 for all.
      keep_checkpoints: of the students of cells that are done; they are most of what a sweep takes of the disk.

    Raises:
      Stopped: SIGTERM.
    """
    for cell in cells:
        if records.is_done(out, cell.name):
            _tidy(out, cell, keep_checkpoints)  # a kill may have come before it
    time_is_up = threading.Event()

    def end() -> None:
        time_is_up.set()
        os.kill(os.getpid(), signal.SIGTERM)  # so that the running cell saves its state

    timer = threading.Timer(60 * minutes, end) if minutes else None
    if timer is not None:
        timer.daemon = True
        timer.start()
    try:
        _run_all(cells, out, limit, keep_checkpoints)
    except Stopped:
        if not time_is_up.is_set():
            raise
    finally:
        if timer is not None:
            timer.cancel()
        records.collect(out)
    states = [state(out, cell) for cell in cells]
    return Outcome(states.count("done"), states.count("failed"), time_is_up.is_set())


def state(out: pathlib.Path, cell: Cell) -> str:
    """What has become of a cell: `done`, `failed`, or `-` if neither."""
    return "done" if records.is_done(out, cell.name) else "-" if _failure(out, cell) is None else "failed"


def _run_all(cells: Sequence[Cell], out: pathlib.Path, limit: int, keep_checkpoints: bool) -> None:
    old_failures = {cell.name: _failure(out, cell) for cell in cells}
    times = collections.defaultdict[str, list[float]](list)
    ran, progress, left = 0, True, list(cells)

    def is_due(cell: Cell) -> bool:
        if records.is_done(out, cell.name) or _failure(out, cell) != old_failures[cell.name]:
            return False
        # Otherwise another process runs a candidate, or it has failed.
        return all(records.is_done(out, candidate.name) for candidate in cell.candidates)

    while progress:  # until a pass runs nothing: another process may have left a cell unfinished meanwhile
        progress = False
        for cell in cells:
            if not is_due(cell):
                continue
            if limit and ran == limit:
                return
            try:
                with storage.lock(_folder(out, cell) / LOCK, wait=False):
                    if not is_due(cell):
                        continue  # another process has run it just now
                    left = [other for other in left if not records.is_done(out, other.name)]  # reads a record once
                    _show(left, len(cells), out, cell, times)
                    began = time.monotonic()
                    _run_cell(out, cell, keep_checkpoints)
            except InUse:
                continue  # another process runs it
            times[cell.config.method].append(time.monotonic() - began)
            ran, progress = ran + 1, True


def _run_cell(out: pathlib.Path, cell: Cell, keep_checkpoints: bool) -> None:
    workdir = _folder(out, cell)
    try:
        tuned = tuning.choose(out, cell.candidates) if cell.candidates else None
        config = cell.config
        if tuned is not None:
            say(f"chosen on held-out images: {tuning.as_text(tuned['fields'])}")
            config = tuning.with_fields(config, tuned["fields"])
        results = pipeline.run(config, workdir, "evaluate")
        assert results is not None
        records.write(out, cell.name, config, results, workdir / "metrics.jsonl", tuned)
    except InUse:
        raise
    except Exception as error:
        if isinstance(error, Diverged) and not cell.places:
            records.write_diverged(out, cell.name, str(error))
            _tidy(out, cell, keep_checkpoints)
            return
        what = f"{type(error).__name__}: {error}" if not isinstance(error, UserError) else str(error)
        say(f"cell {cell.name} failed: {what}")
        facts = {"error": what, "traceback": traceback.format_exc(), "places": cell.places, "time": time.time()}
        storage.write_json(_failure_path(out, cell), facts)
    else:
        _tidy(out, cell, keep_checkpoints)
    finally:
        jax.clear_caches()  # of the last cell; what the next one shares with it is in the cache on disk


def _tidy(out: pathlib.Path, cell: Cell, keep_checkpoints: bool) -> None:
    """Removes what a cell that is done no longer needs."""
    _failure_path(out, cell).unlink(missing_ok=True)
    if not keep_checkpoints:
        shutil.rmtree(_folder(out, cell) / "checkpoints", ignore_errors=True)


def _folder(out: pathlib.Path, cell: Cell) -> pathlib.Path:
    return out / "cells" / cell.name


def _failure_path(out: pathlib.Path, cell: Cell) -> pathlib.Path:
    return out / "failures" / f"{cell.name}.json"


def _failure(out: pathlib.Path, cell: Cell) -> str | None:
    try:
        return _failure_path(out, cell).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


def _show(
    left: Sequence[Cell], total: int, out: pathlib.Path, cell: Cell, times: Mapping[str, Sequence[float]]
) -> None:
    """A line of progress, with the time left as cells of the same methods took up to now."""
    failed = sum(_failure(out, other) is not None for other in left)
    line = f"[{total - len(left)} of {total} cells done, {failed} failed] {cell.title}"
    if times:
        every = [seconds for own in times.values() for seconds in own]
        expected = sum(statistics.mean(times.get(other.config.method, every)) for other in left)
        line += f"; about {expected / 60:.0f} min left"
    say(line)
