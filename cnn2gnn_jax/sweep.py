"""Runs a sweep: a grid of configs, cell by cell, in one process or divided among many.

python -m cnn2gnn_jax.sweep --sweep=SWEEP[:WORD] --out=DIR [--shard=K/N] [--minutes=M] [--cells=N]
    [--config.field=value ...]

SWEEP is a file or the name of a built-in sweep. `cnn2gnn-sweep` is the same command.

Examples:

    cnn2gnn-sweep --sweep=table1:smoke --out=DIR
    cnn2gnn-sweep --sweep=figure4:digits --out=DIR --dry_run
    python -m cnn2gnn_jax.sweep --sweep=configs/sweeps/table1.py --out=DIR --shard=1/4

A sweep file has a function `sweep(add, size)` that calls `add(config, kind, name, **place)` for each cell. `kind` is a
layout of cnn2gnn_jax/report, `name` is the title of its table or figure, and `place` is the cell's place in it. With
`tune={"student.train.learning_rate": (0.01, 0.02)}` the values of fields are first chosen on held-out training images,
see cnn2gnn_jax/sweeps/tuning.py. Cells that would compute the same are run once. After any interruption the same
command continues, and it runs failed cells again.

--shard=K/N runs the K-th of N parts of the cells, K from 1 to N; launch/slurm_array.sh runs them as a job array. Cells
that share a teacher are in the same part, and so are a cell and its candidates, so no part waits for another. Processes
that share DIR and the cache may also run the same part: each skips the cells that another one runs. Several sweeps may
share DIR. Afterwards run python -m cnn2gnn_jax.report --out=DIR
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
    names = ", ".join(built_in.names("sweep"))
    help_text = f"FILE[:SIZE], as configs/sweeps/table1.py:smoke, or NAME[:SIZE], with NAME one of {names}"
    flags.DEFINE_string("sweep", None, help_text, flag_values=values)
    flags.DEFINE_string("out", None, "the folder for cells, records and failures", flag_values=values)
    config_flag.define_fields(values, base.get_config())
    flags.DEFINE_string("shard", "1/1", "K/N, to run the K-th of N parts of the cells, K from 1", flag_values=values)
    flags.DEFINE_float(
        "minutes",
        0.0,
        "stop after this time and save the state of the running cell; 0 for no limit",
        flag_values=values,
    )
    flags.DEFINE_integer("cells", 0, "the maximum number of cells to run; 0 for all", flag_values=values)
    flags.DEFINE_bool(
        "keep_checkpoints", False, "keep the checkpoints of the students of finished cells", flag_values=values
    )
    flags.DEFINE_bool("dry_run", False, "list the cells and their states", flag_values=values)
    meanings = config_flag.meanings(base.FIELDS)
    command_line.parse(values, __doc__, required=["sweep", "out"], fields=meanings)
    if not math.isfinite(values.minutes) or values.minutes < 0 or values.cells < 0:
        raise UserError(f"--minutes={values.minutes} --cells={values.cells}: expected 0, for no limit, or more")
    return values


def _list(cells: Sequence[plan.Cell], out: pathlib.Path) -> None:
    for cell in cells:
        titles = [", ".join(map(str, place.values())) for place in cell.places]
        print(cell.name, runner.status(out, cell), *(titles or [cell.title]), sep="  ")


def main() -> None:
    """Parses the command line and runs the sweep."""
    values = _flags()
    out, shard = pathlib.Path(values.out), shards.parse(values.shard)
    path, _, size = values.sweep.partition(":")
    cells = plan.load(pathlib.Path(path), size, config_flags.get_override_values(values["config"]))
    shard_cells = shards.share(cells, shard)
    if values.dry_run:
        _list(shard_cells, out)
        return
    logging.set_verbosity(logging.WARNING)
    processes.install_signal_handlers()
    if cells:
        xla.enable_compilation_cache(cells[0].config)
    title = pathlib.Path(path).stem + (f"-{size}" if size else "")
    # Every shard writes the whole plan, since tables need all of it.
    records.write_plan(out, title, [(cell.name, cell.places) for cell in cells])
    outcome = runner.run(
        shard_cells, out, minutes=values.minutes, limit=values.cells, keep_checkpoints=values.keep_checkpoints
    )
    remaining = len(shard_cells) - outcome.done - outcome.failed
    part = f" of shard {shard.number}/{shard.total}" if shard != shards.WHOLE else ""
    reason = " (the time is up)" if outcome.time_is_up else ""
    print(f"{outcome.done} of {len(shard_cells)} cells{part} done, {outcome.failed} failed, {remaining} left{reason}")
    print(f"python -m cnn2gnn_jax.report --out={out} makes tables, figures and a page with both")
    if outcome.failed:
        raise UserError(f"{outcome.failed} cells failed, see {out / 'failures'}: the same command tries again")


def run() -> None:
    """The program: what a user can mend ends in one line, see `command_line.run`."""
    command_line.run(main)


if __name__ == "__main__":
    run()
