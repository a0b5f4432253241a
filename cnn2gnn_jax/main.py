"""The main job.

python -m cnn2gnn_jax.main --config=configs/digits.py [--workdir=DIR] [--stage=STAGE] [--config.field=value ...]

Examples:

    python -m cnn2gnn_jax.main --config=configs/digits.py
    python -m cnn2gnn_jax.main --config=configs/cifar100.py:resnet50-resnet18 --config.student.sparsity=10
    python -m cnn2gnn_jax.main --config=configs/image_folder.py --config.data.manual_dir=DIR --workdir=runs/mine

configs/base.py documents every field of a config.

Exit codes: 0 done, 2 a mistake in what was asked for, 74 the machine refused to read or write (a full disk, no
permission), 75 stopped by SIGTERM, 76 another process was lost, 130 stopped by Ctrl-C: after the last four the same
command goes on.
"""

import pathlib
import sys

import jax
from absl import logging

from cnn2gnn_jax import pipeline
from cnn2gnn_jax.report import run_table
from cnn2gnn_jax.runtime import command_line, overrides, processes
from cnn2gnn_jax.runtime.errors import UserError

LOST = 76


def _parser() -> command_line.Parser:
    parser = command_line.Parser(prog="python -m cnn2gnn_jax.main", description=__doc__)
    parser.add_argument(
        "--config",
        metavar="FILE[:WORD]",
        help="required: a config file, with a word as its docstring says; --config.field=value sets a field of it",
    )
    parser.add_argument("--workdir", help="where the run is kept; by default runs/<config>-<fingerprint>")
    parser.add_argument(
        "--stage", choices=pipeline.STAGES, default=pipeline.STAGES[-1], help="runs the chain up to this stage"
    )
    parser.add_argument(
        "--distributed",
        action="store_true",
        help="this is one of several processes, which Slurm, Open MPI, Cloud TPU or GKE started",
    )
    parser.add_argument(
        "--coordinator", metavar="HOST:PORT", help="of the first of several processes that are started by hand"
    )
    parser.add_argument("--processes", type=int, metavar="N", help="how many there are")
    parser.add_argument("--process_id", type=int, metavar="K", help="which one this is, from 0")
    return parser


def main() -> None:
    """Reads the command line, runs the pipeline and prints its table."""
    flags, rest = _parser().parse_known_args()
    settings = overrides.settings(rest)
    if flags.config is None:
        raise UserError("no --config: give a file, as --config=configs/digits.py")
    config = overrides.load(flags.config)
    for field, value in settings.items():
        overrides.set_field(config, field, value)
    logging.set_verbosity(logging.WARNING)
    by_hand = (flags.coordinator, flags.processes, flags.process_id)
    if flags.distributed or any(value is not None for value in by_hand):
        processes.join(*by_hand)
    processes.heed_signals()
    results = pipeline.run(config, pathlib.Path(flags.workdir) if flags.workdir else None, flags.stage)
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
