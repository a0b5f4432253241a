"""A config from the command line: the file that --config names, and fields set by --config.field=value."""

import ast
import difflib
import functools
import inspect
import operator
import pathlib
import runpy
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from cnn2gnn_jax.runtime.errors import UserError

_PREFIX = "--config."
_SIMILAR = 0.7  # of difflib's ratio: two spellings of one name are above it
_SUGGESTED = 3  # the most fields that an error suggests
_BUILT_IN = pathlib.Path(__file__).parents[2] / "configs"
_NO_CONFIGS = ("__init__.py", "base.py")
_TRUTH = {"true": True, "false": False}


def load(text: str) -> ConfigDict:
    """The config of a file, given as PATH or PATH:WORD.

    Raises:
      UserError: there is no such file, it has no `get_config`, or this fails.
    """
    name, colon, word = text.partition(":")
    path = pathlib.Path(name)
    if not path.is_file():
        built_in = sorted(file.name for file in _BUILT_IN.glob("*.py") if file.name not in _NO_CONFIGS)
        raise UserError(
            f"there is no config file {name}: give the path of one; "
            f"the built-in ones are {', '.join(f'configs/{file}' for file in built_in)}"
        )
    try:
        get_config = runpy.run_path(str(path)).get("get_config")
        if get_config is None:
            raise UserError(f"{name} is no config file: it has no function get_config()")
        if colon and not inspect.signature(get_config).parameters:
            raise UserError(f"{name} takes no word after a colon: found {word!r}")
        config = get_config(word) if colon else get_config()
    except UserError:
        raise
    except Exception as error:  # of a user's file, any kind
        reason = " ".join(str(error).split())
        raise UserError(f"{name} cannot be loaded ({type(error).__name__}: {reason}): correct the file") from error
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"{name}: get_config() returns a {type(config).__name__}, expected an ml_collections.ConfigDict"
        )
    return config


def settings(arguments: Sequence[str]) -> dict[str, str]:
    """The fields that arguments set, and their values as text: `--config.field=value` or `--config.field value`.

    Raises:
      UserError: an argument is neither.
    """
    values: dict[str, str] = {}
    left = list(arguments)
    while left:
        argument = left.pop(0)
        field, equals, value = argument.removeprefix(_PREFIX).partition("=")
        if not argument.startswith(_PREFIX) or not field:
            raise UserError(
                f"{argument!r} is no flag: fields of the config are set by --config.field=value "
                "(--help shows the flags)"
            )
        if not equals:
            if not left or left[0].startswith("--"):
                raise UserError(f"{argument} has no value: give one, as {argument}=VALUE")
            value = left.pop(0)
        values[field] = value
    return values


def set_field(config: ConfigDict, field: str, text: str) -> None:
    """Sets a field of a config from text.

    Raises:
      UserError: there is no such field, or the text is of another type.
    """
    try:
        *sections, name = field.split(".")
        kind = functools.reduce(operator.getitem, sections, config).get_type(name)
    except (AttributeError, KeyError, TypeError):
        raise _no_such_field(config, field) from None
    if kind is ConfigDict:
        inside = [name for name in _fields(config) if name.startswith(f"{field}.")]
        raise UserError(f"config.{field} is a section: set one of its fields, as --config.{inside[0]}=VALUE")
    try:
        config.update_from_flattened_dict({field: _value(kind, text)})
    except (SyntaxError, TypeError, ValueError):
        raise UserError(f"--config.{field}={text}: expected a value of type {kind.__name__}") from None


def _value(kind: type, text: str) -> Any:
    if kind is str:
        return text
    if kind is bool and text.lower() in _TRUTH:
        return _TRUTH[text.lower()]
    value = ast.literal_eval(text)
    return (value,) if kind is tuple and isinstance(value, int | float) else value


def _fields(config: ConfigDict) -> list[str]:
    """The names of all fields, with those of their sections before a dot."""
    names = []
    for name, value in config.items():
        inside = _fields(value) if isinstance(value, ConfigDict) else []
        names += [f"{name}.{field}" for field in inside] or [name]
    return names


def _no_such_field(config: ConfigDict, field: str) -> UserError:
    nearest = [f"config.{name}" for name in nearest_fields(field, _fields(config))]
    advice = f"did you mean {' or '.join(nearest)}?" if nearest else "configs/base.py lists the fields"
    return UserError(f"there is no field config.{field}: {advice}")


def nearest_fields(field: str, names: Sequence[str]) -> list[str]:
    """Of the fields called `names`, those that `field` most probably means: in another section, or spelled otherwise.

    >>> nearest_fields("sparsity", ["seed", "student.sparsity"])
    ['student.sparsity']
    """

    def likeness(name: str) -> float:
        pairs = ((field, name), (field.rpartition(".")[2], name.rpartition(".")[2]))
        # The whole name first: where two sections have the field, the section that was given decides.
        return max(
            difflib.SequenceMatcher(None, a, b).ratio() * weight
            for (a, b), weight in zip(pairs, (1, 0.99), strict=True)
        )

    elsewhere = [name for name in names if name.endswith(f".{field}")]
    if elsewhere:
        return elsewhere[:_SUGGESTED]
    best = max(map(likeness, names), default=0.0)
    return [name for name in names if likeness(name) == best][:_SUGGESTED] if best >= _SIMILAR else []
