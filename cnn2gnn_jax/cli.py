"""Command lines whose mistakes end in one line and exit code 2."""

import argparse
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from cnn2gnn_jax.errors import Stopped, UserError

STOPPED = 75


class Parser(argparse.ArgumentParser):
    """A parser that raises UserError instead of printing its usage."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **arguments)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (--help shows the flags)")


def run(main: Callable[[], None]) -> None:
    """Runs a program: a user's mistake ends in one line and exit code 2, SIGTERM, where it is heeded, in 75."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except Stopped as stopped:
        print(f"stopped by SIGTERM {stopped}: the same command goes on", file=sys.stderr)
        sys.exit(STOPPED)
