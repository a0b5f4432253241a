"""Command lines: flags that a command defines for itself, and an end in one line and an exit code, whatever goes wrong.

A command makes an `absl.flags.FlagValues` of its own, so that several commands may be imported in one program and help
shows no flags of libraries.
"""

import functools
import sys
from collections.abc import Callable, Mapping, Sequence

import jax
from absl import flags, logging

from cnn2gnn_jax import __version__
from cnn2gnn_jax.runtime import errors, xla
from cnn2gnn_jax.runtime.errors import INTERRUPTED, Interrupted, Stopped, UserError

MACHINE, STOPPED = 74, 75
_HELP = {"--help", "-h", "--helpshort", "--helpfull"}
_SEE_HELP = "(--help shows the flags)"
_TYPES = ("int", "float", "bool", "tuple")
_AFTER_ERROR = "Event loop is closed"  # as TensorStore's threads print after the error that is raised


def parse(
    values: flags.FlagValues,
    description: str | None,
    required: Sequence[str] = (),
    positional: str = "",
    fields: Mapping[str, str] | None = None,
) -> list[str]:
    """Reads `sys.argv` into flags; --help, which prints them, and --version end the program.

    Args:
      values: the flags of the command.
      description: what --help prints above them, the module's docstring.
      required: the names of flags that must be set.
      positional: what the other arguments are; '' for none.
      fields: further flags that --helpfull lists, and what each means.

    Returns:
      The other arguments.

    Raises:
      UserError: a flag is unknown, lacks a value or has one of another type, or a required one is missing.
    """
    if _HELP & set(sys.argv[1:]):
        print(_help(values, description or "", fields or {}))
        sys.exit(0)
    if "--version" in sys.argv[1:]:
        print(f"cnn2gnn_jax {__version__}, JAX {jax.__version__}")
        sys.exit(0)
    values.set_gnu_getopt(True)  # flags may follow other arguments
    try:
        others = values(sys.argv)[1:]
    except flags.IllegalFlagValueError as error:
        raise UserError(_wrong_value(values, error)) from None
    except flags.UnrecognizedFlagError as error:
        _require(values, required)  # without --config its fields are unknown, too
        raise UserError(f"{error} {_SEE_HELP}") from None
    except flags.Error as error:
        raise UserError(f"{error} {_SEE_HELP}") from None
    _require(values, required)
    if others and not positional:
        raise UserError(f"{others[0]!r} is no flag {_SEE_HELP}")
    if positional and not others:
        raise UserError(f"no {positional}: give at least one {_SEE_HELP}")
    return others


def _require(values: flags.FlagValues, required: Sequence[str]) -> None:
    for name in required:
        if values[name].value is None:
            raise UserError(f"no --{name}: give {values[name].help.partition(';')[0]} {_SEE_HELP}")


def _wrong_value(values: flags.FlagValues, error: flags.IllegalFlagValueError) -> str:
    """The error of a value, which absl says in Python's words where it is of another type."""
    message = str(error).removesuffix(f": {error.__context__}").removeprefix("flag ")
    name = message.removeprefix("--").partition("=")[0]
    kind = values[name].parser.flag_type() if name in values else ""
    return f"{message}: expected a value of type {kind}" if kind in _TYPES else str(error)


def _help(values: flags.FlagValues, description: str, fields: Mapping[str, str]) -> str:
    meanings = {}
    for name in values:
        flag = values[name]
        default = f" (default: {flag.default})" if flag.default and isinstance(flag.default, str | int | float) else ""
        meanings[name] = f"{flag.help}{default}"
    meanings["version"] = "print the versions of this package and of JAX"
    if "--helpfull" in sys.argv[1:]:
        meanings |= fields
    elif fields:
        meanings["helpfull"] = "print the fields of a config, too"
    lines = [flags.text_wrap(f"--{name}: {meaning}", 100, "      ", "  ") for name, meaning in meanings.items()]
    return "\n".join([description.strip(), "", "Flags:", *lines])


def run(main: Callable[[], None]) -> None:
    """Runs a program: what a user can mend ends in one line and a code.

    2 for a mistake, 74 for what the machine refuses, 75 for SIGTERM where it is heeded, 130 for Ctrl-C.
    """
    if not sys.flags.safe_path:
        # A config file may import modules of the working directory, which only `python -m` puts on the path.
        sys.path.append("")
    xla.set_cpu_options()
    _silence_checkpoint_threads()
    try:
        main()
    except (UserError, flags.Error) as error:
        print(f"error: {errors.printable(str(error))}", file=sys.stderr)
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
