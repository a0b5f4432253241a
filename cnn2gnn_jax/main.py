"""The main job.

python -m cnn2gnn_jax.main --config=configs/digits.py [--workdir=DIR] [--stage=STAGE] [--config.field=value ...]

Exit codes: 0 done, 2 a mistake in what was asked for, 74 the machine refused to read or write (a full disk, no
permission), 75 stopped by SIGTERM, 76 another process was lost: after the last three the same command goes on.
"""

import pathlib
import sys

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from cnn2gnn_jax import cli, pipeline, processes
from cnn2gnn_jax.errors import UserError
from cnn2gnn_jax.report import text

LOST = 76

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "A config file, configs/<name>.py, with an optional word: configs/cifar100.py:resnet50-resnet18."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the run is kept; by default runs/<config>-<fingerprint>.")
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "This is one of several processes, which Slurm, Open MPI, Cloud TPU or GKE started."
)
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of the first of several processes started by hand.")
_PROCESSES = flags.DEFINE_integer("processes", None, "How many there are.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which one this is, from 0.")
_STAGE = flags.DEFINE_enum("stage", pipeline.STAGES[-1], pipeline.STAGES, "Runs the chain up to this stage.")


def main(argv: list[str]) -> None:
    """Runs the pipeline and prints its table."""
    if len(argv) > 1:
        raise UserError(f"{argv[1]!r} is no flag: fields of the config are set by --config.field=value")
    if _CONFIG.value is None:
        raise UserError("no --config: give a file, as --config=configs/digits.py")
    logging.set_verbosity(logging.WARNING)
    by_hand = (_COORDINATOR.value, _PROCESSES.value, _PROCESS_ID.value)
    if _DISTRIBUTED.value or any(value is not None for value in by_hand):
        processes.join(*by_hand)
    processes.heed_sigterm()
    results = pipeline.run(_CONFIG.value, pathlib.Path(_WORKDIR.value) if _WORKDIR.value else None, _STAGE.value)
    if results is not None:
        print(text.table(results))


def run() -> None:
    """The program: what a user can mend ends in one line, see the exit codes above."""
    jax.config.config_with_absl()
    try:
        cli.run(lambda: app.run(main, argv=_parse(sys.argv), flags_parser=lambda arguments: arguments))
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        reason = str(error).strip().splitlines()[0]
        print(f"error: a process was lost ({reason}): start the same command in all of them again", file=sys.stderr)
        processes.leave(LOST)


def _parse(argv: list[str]) -> list[str]:
    """The arguments that are no flags.

    Raises:
      UserError: a flag, config file or field is wrong.
    """
    try:
        arguments = flags.FLAGS(argv)
        if _CONFIG.value is not None:
            _CONFIG.value.to_dict()  # a file that could not be loaded says so when it is used
        return arguments
    except UserError:
        raise
    except (flags.Error, OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        text = " ".join(str(error).split())
        if isinstance(error, AttributeError | KeyError):
            text = f"no such field: {text.strip(chr(34))}"
        raise UserError(f"{text} (fields and their types are in configs/base.py)") from error


if __name__ == "__main__":
    run()
