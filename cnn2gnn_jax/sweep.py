"""Sweeps: a grid of configs, run cell by cell, by one process or divided among many.

python -m cnn2gnn_jax.sweep --sweep=SWEEP[:smoke|:digits] --out=DIR [--shard=K/N] [--minutes=M] [--cells=N]
    [--config.field=value ...]

SWEEP is a file or the name of a built-in sweep. `cnn2gnn-sweep` is the same command.

Examples:

    cnn2gnn-sweep --sweep=table1:smoke --out=DIR
    cnn2gnn-sweep --sweep=figure4:digits --out=DIR --dry_run
    python -m cnn2gnn_jax.sweep --sweep=configs/sweeps/table1.py --out=DIR --shard=1/4

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

import math
import pathlib
from collections.abc import Sequence

from absl import flags, logging
from ml_collections import config_flags

from cnn2gnn_jax.configs import base
from cnn2gnn_jax.runtime import built_in, command_line, config_flag, processes, xla
from cnn2gnn_jax.runtime.errors import UserError
from cnn2gnn_jax.sweeps import plan, records, runner, shards


def _flags() -> flags.FlagValues:
    values = flags.FlagValues()
    what = f"FILE[:SIZE], as configs/sweeps/table1.py:smoke, or NAME[:SIZE], of {', '.join(built_in.names('sweep'))}"
    flags.DEFINE_string("sweep", None, what, flag_values=values)
    flags.DEFINE_string("out", None, "the folder where cells, records and failures are kept", flag_values=values)
    config_flag.define_fields(values, base.get_config())
    flags.DEFINE_string("shard", "1/1", "K/N, to run the K-th of N parts of the cells, K from 1", flag_values=values)
    flags.DEFINE_float(
        "minutes", 0.0, "stop after that time, the running cell's state saved; 0 for no limit", flag_values=values
    )
    flags.DEFINE_integer("cells", 0, "run at most so many; 0 for all", flag_values=values)
    flags.DEFINE_bool(
        "keep_checkpoints", False, "keep those of the students of cells that are done", flag_values=values
    )
    flags.DEFINE_bool("dry_run", False, "list the cells and what is done", flag_values=values)
    meanings = config_flag.meanings(base.FIELDS)
    command_line.parse(values, __doc__, required=["sweep", "out"], fields=meanings)
    if not math.isfinite(values.minutes) or values.minutes < 0 or values.cells < 0:
        raise UserError(f"--minutes={values.minutes} --cells={values.cells}: expected 0, for no limit, or more")
    return values


def _list(cells: Sequence[plan.Cell], out: pathlib.Path) -> None:
    for cell in cells:
        titles = [", ".join(map(str, place.values())) for place in cell.places]
        print(cell.name, runner.state(out, cell), *(titles or [cell.title]), sep="  ")


def main() -> None:
    """Reads the command line, runs the sweep."""
    values = _flags()
    out, shard = pathlib.Path(values.out), shards.parse(values.shard)
    path, _, size = values.sweep.partition(":")
    cells = plan.load(pathlib.Path(path), size, config_flags.get_override_values(values["config"]))
    own = shards.share(cells, shard)
    if values.dry_run:
        _list(own, out)
        return
    logging.set_verbosity(logging.WARNING)
    processes.heed_signals()
    if cells:
        xla.keep_programs(cells[0].config)
    title = pathlib.Path(path).stem + (f"-{size}" if size else "")
    # The plan is whole, whatever the shard: every shard writes the same, and tables need all of it.
    records.write_plan(out, title, [(cell.name, cell.places) for cell in cells])
    outcome = runner.run(own, out, minutes=values.minutes, limit=values.cells, keep_checkpoints=values.keep_checkpoints)
    left = len(own) - outcome.done - outcome.failed
    part = f" of shard {shard.number}/{shard.total}" if shard != shards.WHOLE else ""
    why = " (the time is up)" if outcome.time_is_up else ""
    print(f"{outcome.done} of {len(own)} cells{part} done, {outcome.failed} failed, {left} left{why}")
    print(f"python -m cnn2gnn_jax.report --out={out} makes tables, figures and a page of them")
    if outcome.failed:
        raise UserError(f"{outcome.failed} cells failed, see {out / 'failures'}: the same command tries again")


def run() -> None:
    """The program: what a user can mend ends in one line, see `command_line.run`."""
    command_line.run(main)


if __name__ == "__main__":
    run()
