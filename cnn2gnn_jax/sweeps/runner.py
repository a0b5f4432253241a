"""Runs the cells of a sweep one after another; other processes may run cells of the same sweep.

A *cell* is a run of the sweep, see `plan.Cell`. It is finished when its record is written. Until then it is locked by
`flock`, which the kernel releases if the process dies.
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
from cnn2gnn_jax.runtime.console import log
from cnn2gnn_jax.runtime.errors import Diverged, InUse, Stopped, UserError
from cnn2gnn_jax.sweeps import records, tuning
from cnn2gnn_jax.sweeps.plan import Cell

# In the cell's folder. The pipeline has a lock of its own, which it releases before the record is written.
LOCK = ".cell.lock"


class Outcome(NamedTuple):
    """The numbers of finished and of failed cells, and whether the time limit stopped the sweep."""

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
    """Runs the cells that are not finished and that no other process runs.

    Call `processes.install_signal_handlers` first.

    Args:
      cells: the cells of a plan, or of a shard of it.
      out: the sweep's folder, which holds the plan.
      minutes: a time limit, after which the running cell is stopped and its state saved; 0 for no limit.
      limit: the maximum number of cells to run; 0 for all.
      keep_checkpoints: whether to keep the checkpoints of the students of finished cells, which take most of a sweep's
        space on disk.

    Raises:
      Stopped: SIGTERM was received.
    """
    for cell in cells:
        if records.is_done(out, cell.name):
            _clean_up(out, cell, keep_checkpoints)  # a process may have been killed between the record and this
    time_is_up = threading.Event()

    def stop() -> None:
        time_is_up.set()
        os.kill(os.getpid(), signal.SIGTERM)  # so that the running cell saves its state

    timer = threading.Timer(60 * minutes, stop)
    timer.daemon = True
    if minutes:
        timer.start()
    try:
        _run_all(cells, out, limit, keep_checkpoints)
    except Stopped:
        if not time_is_up.is_set():
            raise
    finally:
        timer.cancel()
        records.collect(out)
    statuses = [status(out, cell) for cell in cells]
    return Outcome(statuses.count("done"), statuses.count("failed"), time_is_up.is_set())


def status(out: pathlib.Path, cell: Cell) -> str:
    """The status of a cell: `done`, `failed`, or `-` if neither."""
    return "done" if records.is_done(out, cell.name) else "-" if _failure(out, cell) is None else "failed"


def _run_all(cells: Sequence[Cell], out: pathlib.Path, limit: int, keep_checkpoints: bool) -> None:
    """Runs the cells that are due, and at most `limit` of them if that is not 0; see `run`."""
    old_failures = {cell.name: _failure(out, cell) for cell in cells}
    seconds_by_method = collections.defaultdict[str, list[float]](list)
    runs, has_run, remaining = 0, True, list(cells)

    def is_due(cell: Cell) -> bool:
        # Cells that failed before this sweep started are tried again, once.
        if records.is_done(out, cell.name) or _failure(out, cell) != old_failures[cell.name]:
            return False
        # A candidate without a record is being run by another process, or has failed.
        return all(records.is_done(out, candidate.name) for candidate in cell.candidates)

    while has_run:  # until a pass runs no cell, since another process may have left a cell unfinished
        has_run = False
        for cell in cells:
            if not is_due(cell):
                continue
            if limit and runs == limit:
                return
            try:
                with storage.lock(_folder(out, cell) / LOCK, wait=False):
                    if not is_due(cell):
                        continue  # another process has run it in the meantime
                    # Finished cells are dropped, so that each record is read once.
                    remaining = [other for other in remaining if not records.is_done(out, other.name)]
                    _log_progress(remaining, len(cells), out, cell, seconds_by_method)
                    start = time.monotonic()
                    _run_cell(out, cell, keep_checkpoints)
            except InUse:
                continue  # another process runs it
            seconds_by_method[cell.config.method].append(time.monotonic() - start)
            runs, has_run = runs + 1, True


def _run_cell(out: pathlib.Path, cell: Cell, keep_checkpoints: bool) -> None:
    """Runs a cell and writes its record, or the file of its failure."""
    workdir = _folder(out, cell)
    try:
        tuned = tuning.choose(out, cell.candidates) if cell.candidates else None
        config = cell.config
        if tuned is not None:
            log(f"chosen on held-out images: {tuning.as_text(tuned['fields'])}")
            config = tuning.with_fields(config, tuned["fields"])
        results = pipeline.run(config, workdir, "evaluate")
        assert results is not None
        records.write(out, cell.name, config, results, workdir / "metrics.jsonl", tuned)
    except InUse:
        raise
    except Exception as error:
        if isinstance(error, Diverged) and not cell.places:  # a candidate, which is then not chosen
            records.write_diverged(out, cell.name, str(error))
            _clean_up(out, cell, keep_checkpoints)
            return
        message = f"{type(error).__name__}: {error}" if not isinstance(error, UserError) else str(error)
        log(f"cell {cell.name} failed: {message}")
        facts = {"error": message, "traceback": traceback.format_exc(), "places": cell.places, "time": time.time()}
        storage.write_json(_failure_path(out, cell), facts)
    else:
        _clean_up(out, cell, keep_checkpoints)
    finally:
        jax.clear_caches()  # the programs that the next cell shares are in the compilation cache on disk


def _clean_up(out: pathlib.Path, cell: Cell, keep_checkpoints: bool) -> None:
    """Removes the files that a finished cell no longer needs."""
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


def _log_progress(
    remaining: Sequence[Cell], total: int, out: pathlib.Path, cell: Cell, seconds_by_method: Mapping[str, list[float]]
) -> None:
    """Logs the progress of a sweep, with the remaining time, estimated from earlier cells of the same methods."""
    failed = sum(_failure(out, other) is not None for other in remaining)
    line = f"[{total - len(remaining)} of {total} cells done, {failed} failed] {cell.title}"
    if seconds_by_method:
        all_seconds = [seconds for values in seconds_by_method.values() for seconds in values]
        expected = sum(statistics.mean(seconds_by_method.get(other.config.method, all_seconds)) for other in remaining)
        line += f"; about {expected / 60:.0f} min left"
    log(line)
