"""Sweeps: a grid of configs, run cell by cell, by one process or divided among many.

python -m cnn2gnn_jax.sweep --sweep=configs/sweeps/table1.py[:smoke|:digits] --out=DIR [--shard=K/N] [--minutes=M]
    [--cells=N] [--config.field=value ...]

A sweep file has a function `sweep(add, size)` that calls `add(config, kind, name, **place)` for each cell: `kind` is a
layout of cnn2gnn_jax/report, `name` what its table or figure is called, `place` where the cell stands in it. With
`tune={"student.train.learning_rate": (0.01, 0.02)}` the values of fields are chosen on held-out training images first,
see cnn2gnn_jax/sweeps/tuning.py. Cells that would compute the same are one. The same command goes on after any
interruption, and tries again what had failed.

--shard=K/N runs the K-th of N parts of the cells, K from 1 to N, and launch/slurm_array.sh runs them as a job array.
Cells that share a teacher, and a cell and the candidates that it chooses from, are in the same part: no part waits for
another. Processes that share DIR and the cache may also run the same part: each skips the cells that another one runs.
Several sweeps may share DIR; then run python -m cnn2gnn_jax.report --out=DIR
"""

import argparse
import math
import pathlib
from collections.abc import Sequence

from absl import logging

from cnn2gnn_jax.runtime import command_line, overrides, processes
from cnn2gnn_jax.runtime.errors import UserError
from cnn2gnn_jax.sweeps import plan, records, runner, shards


def _parse() -> tuple[argparse.Namespace, dict[str, str]]:
    """The flags, and the config fields that are set for every cell."""
    parser = command_line.Parser(prog="python -m cnn2gnn_jax.sweep", description=__doc__)
    parser.add_argument(
        "--sweep", required=True, metavar="FILE[:SIZE]", help="configs/sweeps/<name>.py, sizes: smoke, digits"
    )
    parser.add_argument("--out", required=True, type=pathlib.Path, help="kept there: cells, records, failures")
    parser.add_argument("--shard", default="1/1", metavar="K/N", help="run the K-th of N parts of the cells, K from 1")
    parser.add_argument("--minutes", type=float, default=0, help="stop after that time, the running cell's state saved")
    parser.add_argument("--cells", type=int, default=0, help="run at most so many")
    parser.add_argument("--keep_checkpoints", action="store_true", help="of the students of cells that are done")
    parser.add_argument("--dry_run", action="store_true", help="list the cells and what is done")
    flags, rest = parser.parse_known_args()
    if not math.isfinite(flags.minutes) or flags.minutes < 0 or flags.cells < 0:
        raise UserError(f"--minutes={flags.minutes} --cells={flags.cells}: expected 0, for no limit, or more")
    flags.shard = shards.parse(flags.shard)
    return flags, overrides.settings(rest)


def _list(cells: Sequence[plan.Cell], out: pathlib.Path) -> None:
    for cell in cells:
        titles = [", ".join(map(str, place.values())) for place in cell.places]
        print(cell.name, runner.state(out, cell), *(titles or [cell.title]), sep="  ")


def main() -> None:
    """Reads the command line, runs the sweep."""
    flags, settings = _parse()
    path, _, size = flags.sweep.partition(":")
    cells = plan.load(pathlib.Path(path), size, settings)
    own = shards.share(cells, flags.shard)
    if flags.dry_run:
        _list(own, flags.out)
        return
    logging.set_verbosity(logging.WARNING)
    processes.heed_signals()
    title = pathlib.Path(path).stem + (f"-{size}" if size else "")
    # The plan is whole, whatever the shard: every shard writes the same, and tables need all of it.
    records.write_plan(flags.out, title, [(cell.name, cell.places) for cell in cells])
    outcome = runner.run(
        own, flags.out, minutes=flags.minutes, limit=flags.cells, keep_checkpoints=flags.keep_checkpoints
    )
    left = len(own) - outcome.done - outcome.failed
    part = f" of shard {flags.shard.number}/{flags.shard.total}" if flags.shard != shards.WHOLE else ""
    why = " (the time is up)" if outcome.time_is_up else ""
    print(f"{outcome.done} of {len(own)} cells{part} done, {outcome.failed} failed, {left} left{why}")
    print(f"python -m cnn2gnn_jax.report --out={flags.out} makes tables, figures and a page of them")
    if outcome.failed:
        raise UserError(f"{outcome.failed} cells failed, see {flags.out / 'failures'}: the same command tries again")


if __name__ == "__main__":
    command_line.run(main)
