"""The main job.

python -m cnn2gnn_jax.main --config=CONFIG[:WORD] [--workdir=DIR] [--stage=STAGE] [--config.field=value ...]

CONFIG is a file or the name of a built-in config. `cnn2gnn` is the same command.

Examples:

    cnn2gnn --config=digits
    cnn2gnn --config=cifar100:resnet50-resnet18 --config.student.sparsity=10
    cnn2gnn --config=image_folder --config.data.manual_dir=DIR --workdir=runs/mine
    python -m cnn2gnn_jax.main --config=configs/digits.py

configs/base.py documents every field of a config, and so does --helpfull.

Exit codes: 0 done, 2 a mistake in what was asked for, 74 the machine refused to read or write (a full disk, no
permission), 75 stopped by SIGTERM, 76 another process was lost, 130 stopped by Ctrl-C: after the last four the same
command goes on.
"""

import pathlib
import sys

import jax
from absl import flags, logging

from cnn2gnn_jax import pipeline
from cnn2gnn_jax.configs import base
from cnn2gnn_jax.report import run_table
from cnn2gnn_jax.runtime import command_line, config_flag, processes, xla

LOST = 76


def _flags() -> flags.FlagValues:
    values = flags.FlagValues()
    config_flag.define_file(values)
    flags.DEFINE_string(
        "workdir", None, "where the run is kept; by default runs/<config>-<fingerprint>", flag_values=values
    )
    flags.DEFINE_enum(
        "stage", pipeline.STAGES[-1], pipeline.STAGES, "run the chain up to this stage", flag_values=values
    )
    flags.DEFINE_bool(
        "distributed",
        False,
        "this is one of several processes, which Slurm, Open MPI, Cloud TPU or GKE started",
        flag_values=values,
    )
    flags.DEFINE_string(
        "coordinator",
        None,
        "HOST:PORT of the first of several processes that are started by hand",
        flag_values=values,
    )
    flags.DEFINE_integer("processes", None, "how many processes there are", flag_values=values)
    flags.DEFINE_integer("process_id", None, "which one this is, from 0", flag_values=values)
    command_line.parse(values, __doc__, required=["config"], fields=config_flag.meanings(base.FIELDS))
    return values


def main() -> None:
    """Reads the command line, runs the pipeline and prints its table."""
    values = _flags()
    logging.set_verbosity(logging.WARNING)
    by_hand = (values.coordinator, values.processes, values.process_id)
    if values.distributed or any(value is not None for value in by_hand):
        processes.join(*by_hand)
    processes.heed_signals()
    xla.keep_programs(values.config)
    results = pipeline.run(values.config, pathlib.Path(values.workdir) if values.workdir else None, values.stage)
    if results is not None:
        print(run_table.terminal(results))


def run() -> None:
    """The program: what a user can mend ends in one line, see the exit codes above."""
    try:
        command_line.run(main)
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        reason = str(error).strip().splitlines()[0]
        print(f"error: a process was lost ({reason}): start the same command in all of them again", file=sys.stderr)
        processes.leave(LOST)


if __name__ == "__main__":
    run()
