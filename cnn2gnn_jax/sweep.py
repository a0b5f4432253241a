"""Sweeps: a grid of configs, run cell by cell, by any number of processes that share a folder.

python -m cnn2gnn_jax.sweep --sweep=configs/sweeps/table1.py[:smoke|:digits] --out=DIR [--minutes=M] [--cells=N]
    [--config.field=value ...]

A sweep file has a function `sweep(add, size)` that calls `add(config, kind, name, **place)` for each cell: `kind` is a
layout of cnn2gnn_jax/report, `name` what its table or figure is called, `place` where the cell stands in it. With
`tune={"student.train.learning_rate": (0.01, 0.02)}` the values of fields are chosen on held-out training images first,
see cnn2gnn_jax/sweeps/tuning.py. Cells that would compute the same are one. The same command goes on after any
interruption, tries again what had failed, and may run several times at once, on machines that share DIR and the cache.
Several sweeps may share DIR; then run python -m cnn2gnn_jax.report --out=DIR
"""

import collections
import functools
import math
import os
import pathlib
import runpy
import shutil
import signal
import statistics
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
from absl import logging
from ml_collections import ConfigDict

from cnn2gnn_jax import config as configs
from cnn2gnn_jax import pipeline
from cnn2gnn_jax.report import records
from cnn2gnn_jax.runtime import command_line, overrides, processes, storage
from cnn2gnn_jax.runtime.console import say
from cnn2gnn_jax.runtime.errors import Diverged, InUse, Stopped, UserError
from cnn2gnn_jax.sweeps import tuning
from cnn2gnn_jax.sweeps.claims import Claims

SIZES = ("", "smoke", "digits")
_TIME_IS_UP = "the time is up"


class Cell(NamedTuple):
    """A run of a sweep.

    name, config: its own.
    places: in tables and figures; none of a candidate, which another cell chooses from.
    candidates: what this cell chooses from before it runs, none of most.
    title: tells it in a line of progress.
    """

    name: str
    config: ConfigDict
    places: list[dict[str, Any]]
    candidates: Sequence[tuning.Candidate]
    title: str


def plan(path: pathlib.Path, size: str, settings: Mapping[str, str]) -> list[Cell]:
    """The cells of a sweep file, in its order.

    Args:
      path: of the file.
      size: the word after its colon.
      settings: the values of config fields that hold for every cell, as text.

    Raises:
      UserError: there is no such file, it is no sweep, or a config makes no sense.
    """
    if not path.is_file():
        raise UserError(f"{path} is no file: give a sweep, as --sweep=configs/sweeps/table1.py:smoke")
    if size not in SIZES:
        raise UserError(f"{size!r} after the colon is no size: choose one of {', '.join(SIZES[1:])}, or none")
    found = runpy.run_path(str(path)).get("sweep")
    if found is None:
        raise UserError(f"{path} is no sweep: it has no function sweep(add, size)")
    cells: dict[str, Cell] = {}

    def add(
        config: ConfigDict, kind: str, name: str, tune: Mapping[str, Sequence[Any]] | None = None, **place: Any
    ) -> None:
        if kind not in records.KINDS:
            raise UserError(f"{path}: {kind!r} is no kind of table or figure: choose one of {', '.join(records.KINDS)}")
        config = ConfigDict(config.to_dict())
        for field, value in settings.items():
            overrides.set_field(config, field, value)
        config.tensorboard = False
        # What is set for every cell is not chosen.
        tune = {field: values for field, values in (tune or {}).items() if field not in settings}
        standing = {"kind": kind, "name": name, **place}
        try:
            *candidates, cell = _with_candidates(config, tune, ", ".join(map(str, standing.values())))
        except UserError as error:
            raise UserError(f"{path}, the cell {place} of {name}: {error}") from None
        for candidate in candidates:
            cells.setdefault(candidate.name, candidate)
        cells.setdefault(cell.name, cell).places.append(standing)

    found(add, size)
    return list(cells.values())


def _with_candidates(config: ConfigDict, tune: Mapping[str, Sequence[Any]], title: str) -> list[Cell]:
    """The cell of a config, after those that it chooses from."""
    name, tried = configs.cell_fingerprint(configs.resolve(config)), tuning.candidates(config, tune)
    if tried:
        name = storage.fingerprint({"cell": name, "candidates": [candidate.name for candidate in tried]})
    candidates = [Cell(one.name, one.config, [], (), f"candidate {_values(one.fields)}: {title}") for one in tried]
    return [*candidates, Cell(name, config, [], tried, title)]


def _values(fields: Mapping[str, Any]) -> str:
    return ", ".join(f"{field} {value}" for field, value in fields.items())


class Outcome(NamedTuple):
    """Of the cells of a sweep, how many are done, how many have failed, and why the work ended early, if it did."""

    done: int
    failed: int
    ended: str | None


class _End:
    """Ends the work early, as SIGTERM would: the running cell saves its state."""

    def __init__(self) -> None:
        self.why: str | None = None

    def ask(self, why: str) -> None:
        self.why = why
        os.kill(os.getpid(), signal.SIGTERM)


def run(
    cells: Sequence[Cell],
    out: pathlib.Path,
    title: str,
    *,
    minutes: float = 0,
    limit: int = 0,
    keep_checkpoints: bool = False,
) -> Outcome:
    """Runs the cells that are neither done nor claimed, one after another; call `processes.heed_signals` first.

    Args:
      cells: of `plan`.
      out: the sweep's folder.
      title: names the plan in `out`.
      minutes: after which the running cell is stopped and its state saved; 0 for no end.
      limit: the most cells to run; 0 for all.
      keep_checkpoints: of the students of cells that are done; they are most of what a sweep takes of the disk.

    Raises:
      Stopped: SIGTERM.
      UserError: another process has taken over a cell, because this one was silent too long.
    """
    records.write_plan(out, title, [(cell.name, cell.places) for cell in cells])
    for cell in cells:
        if records.is_done(out, cell.name):
            _tidy(out, cell, keep_checkpoints)  # a kill may have come before it
    claims, end, times = Claims(out / "claims"), _End(), collections.defaultdict[str, list[float]](list)
    old_failures = {cell.name: _failure(out, cell) for cell in cells}
    timer = threading.Timer(60 * minutes, end.ask, [_TIME_IS_UP]) if minutes else None
    if timer is not None:
        timer.daemon = True
        timer.start()
    try:
        _run_all(cells, out, claims, end, times, old_failures, limit, keep_checkpoints)
    except Stopped:
        if end.why is None:
            raise
        if end.why != _TIME_IS_UP:
            raise UserError(f"{end.why}: start the same command again") from None
    finally:
        if timer is not None:
            timer.cancel()
        records.collect(out)
    done = sum(records.is_done(out, cell.name) for cell in cells)
    failed = sum(_failure(out, cell) is not None for cell in cells if not records.is_done(out, cell.name))
    return Outcome(done, failed, end.why)


def _run_all(
    cells: Sequence[Cell],
    out: pathlib.Path,
    claims: Claims,
    end: _End,
    times: dict[str, list[float]],
    old_failures: Mapping[str, str | None],
    limit: int,
    keep_checkpoints: bool,
) -> None:
    ran, progress, left = 0, True, list(cells)
    while progress:  # until a pass finds nothing to do: another process may have left a cell unfinished meanwhile
        progress = False
        for cell in cells:
            if records.is_done(out, cell.name) or _failure(out, cell) != old_failures[cell.name]:
                continue
            if not all(records.is_done(out, candidate.name) for candidate in cell.candidates):
                continue  # another process runs a candidate, or it has failed
            if limit and ran == limit:
                return
            lost = f"another process has taken over the cell {cell.name}, as this one was silent too long"
            with claims.hold(cell.name, functools.partial(end.ask, lost)) as mine:
                if not mine or records.is_done(out, cell.name):
                    continue
                left = [other for other in left if not records.is_done(out, other.name)]  # reads a record once
                _show(left, len(cells), out, cell, claims, times)
                began = time.monotonic()
                try:
                    _run_cell(out, cell, keep_checkpoints)
                except InUse as error:  # whoever was silent lives, and goes on with it
                    say(f"cell {cell.name} is left to its owner: {error}")
                    continue
                times[cell.config.method].append(time.monotonic() - began)
                ran, progress = ran + 1, True


def _run_cell(out: pathlib.Path, cell: Cell, keep_checkpoints: bool) -> None:
    workdir, failure = out / "cells" / cell.name, _failure_path(out, cell)
    try:
        tuned = tuning.choose(out, cell.candidates) if cell.candidates else None
        config = cell.config
        if tuned is not None:
            say(f"chosen on held-out images: {_values(tuned['fields'])}")
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
        storage.write_json(failure, facts)
    else:
        _tidy(out, cell, keep_checkpoints)
    finally:
        jax.clear_caches()  # of the last cell; what the next one shares with it is in the cache on disk


def _tidy(out: pathlib.Path, cell: Cell, keep_checkpoints: bool) -> None:
    """Removes what a cell that is done no longer needs."""
    _failure_path(out, cell).unlink(missing_ok=True)
    if not keep_checkpoints:
        shutil.rmtree(out / "cells" / cell.name / "checkpoints", ignore_errors=True)


def _failure_path(out: pathlib.Path, cell: Cell) -> pathlib.Path:
    return out / "failures" / f"{cell.name}.json"


def _failure(out: pathlib.Path, cell: Cell) -> str | None:
    try:
        return _failure_path(out, cell).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


def _show(
    left: Sequence[Cell],
    total: int,
    out: pathlib.Path,
    cell: Cell,
    claims: Claims,
    times: Mapping[str, Sequence[float]],
) -> None:
    """A line of progress, with the time left as cells of the same methods took up to now."""
    failed = sum(_failure(out, other) is not None for other in left)
    line = f"[{total - len(left)} of {total} cells done, {failed} failed] {cell.title}"
    if times:
        every = [seconds for one in times.values() for seconds in one]
        expected = sum(statistics.mean(times.get(other.config.method, every)) for other in left)
        workers = max(claims.held(), 1)
        line += f"; about {expected / workers / 60:.0f} min left" + (f" for {workers}" if workers > 1 else "")
    say(line)


def main() -> None:
    """Reads the command line, runs the sweep."""
    parser = command_line.Parser(prog="python -m cnn2gnn_jax.sweep", description=__doc__)
    parser.add_argument(
        "--sweep", required=True, metavar="FILE[:SIZE]", help="configs/sweeps/<name>.py, sizes: smoke, digits"
    )
    parser.add_argument("--out", required=True, type=pathlib.Path, help="kept there: cells, records, claims, failures")
    parser.add_argument("--minutes", type=float, default=0, help="stop after that time, the running cell's state saved")
    parser.add_argument("--cells", type=int, default=0, help="run at most so many")
    parser.add_argument("--keep_checkpoints", action="store_true", help="of the students of cells that are done")
    parser.add_argument("--dry_run", action="store_true", help="list the cells and what is done")
    given, rest = parser.parse_known_args()
    if not math.isfinite(given.minutes) or given.minutes < 0 or given.cells < 0:
        raise UserError(f"--minutes={given.minutes} --cells={given.cells}: expected 0, for no limit, or more")
    settings = overrides.settings(rest)
    path, _, size = given.sweep.partition(":")
    cells = plan(pathlib.Path(path), size, settings)
    if given.dry_run:
        for cell in cells:
            state = "done" if records.is_done(given.out, cell.name) else "failed" if _failure(given.out, cell) else "-"
            titles = [", ".join(map(str, place.values())) for place in cell.places]
            print(cell.name, state, *(titles or [cell.title]), sep="  ")
        return
    logging.set_verbosity(logging.WARNING)
    processes.heed_signals()
    title = pathlib.Path(path).stem + (f"-{size}" if size else "")
    outcome = run(
        cells, given.out, title, minutes=given.minutes, limit=given.cells, keep_checkpoints=given.keep_checkpoints
    )
    left = len(cells) - outcome.done - outcome.failed
    print(f"{outcome.done} of {len(cells)} cells done, {outcome.failed} failed, {left} left" + _why(outcome))
    print(f"python -m cnn2gnn_jax.report --out={given.out} makes tables, figures and a page of them")
    if outcome.failed:
        raise UserError(f"{outcome.failed} cells failed, see {given.out / 'failures'}: the same command tries again")


def _why(outcome: Outcome) -> str:
    return f" ({outcome.ended})" if outcome.ended else ""


if __name__ == "__main__":
    command_line.run(main)
