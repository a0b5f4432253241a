"""The main job.

python -m cnn2gnn_jax.main --config=configs/digits.py [--workdir=DIR] [--stage=STAGE] [--config.field=value ...]
"""

import pathlib
import sys

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from cnn2gnn_jax import pipeline
from cnn2gnn_jax.errors import UserError
from cnn2gnn_jax.report import text

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "A config file, configs/<name>.py, with an optional word: configs/cifar100.py:resnet50-resnet18."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the run is kept; by default runs/<config>-<fingerprint>.")
_STAGE = flags.DEFINE_enum("stage", pipeline.STAGES[-1], pipeline.STAGES, "Runs the chain up to this stage.")


def main(argv: list[str]) -> None:
    """Runs the pipeline and prints its table."""
    if len(argv) > 1:
        raise UserError(f"{argv[1]!r} is no flag: fields of the config are set by --config.field=value")
    if _CONFIG.value is None:
        raise UserError("no --config: give a file, as --config=configs/digits.py")
    logging.set_verbosity(logging.WARNING)
    results = pipeline.run(_CONFIG.value, pathlib.Path(_WORKDIR.value) if _WORKDIR.value else None, _STAGE.value)
    if results is not None:
        print(text.table(results))


def run() -> None:
    """The program: a user's mistake ends in one line and exit code 2."""
    jax.config.config_with_absl()
    try:
        app.run(main, argv=_parse(sys.argv), flags_parser=lambda arguments: arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


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
