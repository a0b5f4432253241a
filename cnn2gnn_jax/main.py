"""The main job: trains a teacher and its students, evaluates them and writes a report.

python -m cnn2gnn_jax.main --config=CONFIG[:WORD] [--workdir=DIR] [--stage=STAGE] [--config.field=value ...]

CONFIG is a file or the name of a built-in config. `cnn2gnn` is the same command.

Examples:

    cnn2gnn --config=digits
    cnn2gnn --config=cifar100:resnet50-resnet18 --config.student.sparsity=10
    cnn2gnn --config=image_folder --config.data.manual_dir=DIR --workdir=runs/my_images
    python -m cnn2gnn_jax.main --config=configs/digits.py

configs/base.py documents every field of a config, and so does --helpfull.

Exit codes: 0 done, 2 wrong input, 74 a file could not be read or written (a full disk, no permission), 75 stopped by
SIGTERM, 76 another process was lost, 130 stopped by Ctrl-C. After 74, 75, 76 and 130 the same command continues.
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
        "workdir", None, "the folder of the run; by default runs/<config>-<fingerprint>", flag_values=values
    )
    flags.DEFINE_enum("stage", pipeline.STAGES[-1], pipeline.STAGES, "the last stage to run", flag_values=values)
    flags.DEFINE_bool(
        "distributed",
        False,
        "whether this is one of several processes that were started by Slurm, Open MPI, Cloud TPU or GKE",
        flag_values=values,
    )
    flags.DEFINE_string(
        "coordinator",
        None,
        "HOST:PORT of the first of several processes that are started by hand",
        flag_values=values,
    )
    flags.DEFINE_integer("processes", None, "the number of processes", flag_values=values)
    flags.DEFINE_integer("process_id", None, "the position of this process, from 0", flag_values=values)
    command_line.parse(values, __doc__, required=["config"], fields=config_flag.meanings(base.FIELDS))
    return values


def main() -> None:
    """Parses the command line, runs the pipeline and prints its table."""
    values = _flags()
    logging.set_verbosity(logging.WARNING)
    process_flags = (values.coordinator, values.processes, values.process_id)
    if values.distributed or any(value is not None for value in process_flags):
        processes.join(*process_flags)
    processes.install_signal_handlers()
    xla.enable_compilation_cache(values.config)
    results = pipeline.run(values.config, pathlib.Path(values.workdir) if values.workdir else None, values.stage)
    if results is not None:
        print(run_table.terminal(results))


def run() -> None:
    """Runs the program: mistakes of the user end in one line, see the exit codes above."""
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
