"""Command lines that end in one line and an exit code, whatever goes wrong."""

import argparse
import functools
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from absl import logging

from cnn2gnn_jax.runtime import errors, xla
from cnn2gnn_jax.runtime.errors import INTERRUPTED, Interrupted, Stopped, UserError

MACHINE, STOPPED = 74, 75
_AFTER_ERROR = "Event loop is closed"  # as TensorStore's threads print after the error that is raised


class Parser(argparse.ArgumentParser):
    """A parser that raises UserError instead of printing its usage."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **arguments)
        # As programs with absl flags have them.
        self.add_argument("--helpfull", "--helpshort", action="help", help=argparse.SUPPRESS)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (--help shows the flags)")


def run(main: Callable[[], None]) -> None:
    """Runs a program: what a user can mend ends in one line and a code.

    2 for a mistake, 74 for what the machine refuses, 75 for SIGTERM where it is heeded, 130 for Ctrl-C.
    """
    xla.set_cpu_options()
    _silence_checkpoint_threads()
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        print(f"error: {errors.of_machine(error)}", file=sys.stderr)
        sys.exit(MACHINE)
    except Interrupted as stopped:
        print(f"stopped by Ctrl-C {stopped}: the same command goes on", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except Stopped as stopped:
        print(f"stopped by SIGTERM {stopped}: the same command goes on", file=sys.stderr)
        sys.exit(STOPPED)
    except KeyboardInterrupt:
        print("stopped by Ctrl-C: the same command starts again", file=sys.stderr)
        sys.exit(INTERRUPTED)


@functools.cache
def _silence_checkpoint_threads() -> None:
    """What the threads of Orbax and TensorStore suffer from is raised where a state is saved: one line, not pages."""
    logging.get_absl_logger().addFilter(lambda record: not (record.exc_info and "orbax" in record.pathname))
    show = sys.unraisablehook
    sys.unraisablehook = lambda unraisable: None if str(unraisable.exc_value) == _AFTER_ERROR else show(unraisable)
