"""The flags --config=FILE and --config.field=value of ml_collections, with errors of one line.

For a missing file, a file that raises, and an unknown field, ml_collections shows a traceback or a KeyError, and it
accepts a value for a whole section. All of this is therefore checked here, before it sets the fields.
"""

import inspect
import pathlib
import re
import runpy
import sys

from absl import flags
from ml_collections import ConfigDict, config_flags

from cnn2gnn_jax.runtime import fields
from cnn2gnn_jax.runtime.errors import UserError

_BUILT_IN = pathlib.Path(__file__).parents[2] / "configs"
_NOT_CONFIGS = ("__init__.py", "base.py")
_FIELD = re.compile(r"--?(?:no)?config\.([^=]*)")


def define_file(values: flags.FlagValues) -> None:
    """Defines `--config=FILE[:WORD]`; its value is the file's config with the fields that the command line sets."""
    help_text = (
        "FILE[:WORD], as configs/digits.py; the file's docstring lists the words; --config.field=value sets a field"
    )
    config_flags.DEFINE_config_file("config", None, help_text, flag_values=values)
    values["config"].parser = _FileParser()


def define_fields(values: flags.FlagValues, config: ConfigDict) -> None:
    """Defines `--config.field=value` for each field of a config; see `config_flags.get_override_values`.

    Raises:
      UserError: the command line sets a field that the config does not have.
    """
    _check_names(config)
    help_text = "--config.field=value sets a field of all configs"
    config_flags.DEFINE_config_dict("config", config, help_text, flag_values=values)


class _FileParser(flags.ArgumentParser):
    """Reads the config of a file, given as PATH or PATH:WORD."""

    def parse(self, argument: str) -> ConfigDict:
        config = load(argument)
        _check_names(config)
        return config.lock()


def load(text: str) -> ConfigDict:
    """Loads the config of a file, which is given as PATH or PATH:WORD.

    Raises:
      UserError: there is no such file, it has no `get_config`, or `get_config` raises an exception.
    """
    name, colon, word = text.partition(":")
    path = pathlib.Path(name)
    if not path.is_file():
        built_in = sorted(file.name for file in _BUILT_IN.glob("*.py") if file.name not in _NOT_CONFIGS)
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
    except Exception as error:  # a user's file may raise any type
        reason = " ".join(str(error).split())
        raise UserError(f"{name} cannot be loaded ({type(error).__name__}: {reason}): correct the file") from error
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"{name}: get_config() returns a {type(config).__name__}, expected an ml_collections.ConfigDict"
        )
    return config


def _check_names(config: ConfigDict) -> None:
    """Raises UserError if the command line sets a section, or a field that the config does not have."""
    names = fields.flat(config)
    for field in [match[1] for argument in sys.argv[1:] if (match := _FIELD.match(argument))]:
        section_fields = [name for name in names if name.startswith(f"{field}.")]
        if section_fields:
            raise UserError(
                f"config.{field} is a section: set one of its fields, as --config.{section_fields[0]}=VALUE"
            )
        if field not in names:
            raise fields.no_such_field(field, names)
