"""The flags --config=FILE and --config.field=value of ml_collections, with errors of one line.

For a missing file, a file that raises, and an unknown field, ml_collections shows a traceback or a KeyError, and it
accepts a value for a whole section. All of this is therefore checked here, before it sets the fields.
"""

import inspect
import re
import runpy
import sys
from collections.abc import Mapping

from absl import flags
from ml_collections import ConfigDict, config_flags

from cnn2gnn_jax.runtime import built_in, fields
from cnn2gnn_jax.runtime.errors import UserError

_FIELD = re.compile(r"--?(?:no)?config\.([^=]*)")


def define_file(values: flags.FlagValues) -> None:
    """Defines `--config`, a file or a built-in name. Its value is that config with the fields that are set."""
    help_text = (
        f"FILE[:WORD], as configs/digits.py, or NAME[:WORD], of {', '.join(built_in.names('config'))}; "
        "the file's docstring lists the words; --config.field=value sets a field"
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


def meanings(described: Mapping[str, fields.Field]) -> dict[str, str]:
    """What `command_line.parse` lists under --helpfull: each field as a flag, its meaning, values and default."""
    shown = {}
    for name, field in described.items():
        allowed = str(field.allowed) if isinstance(field.allowed, fields.Range) else ", ".join(field.allowed or ())
        default = "of the recipe or method" if isinstance(field.default, type) else repr(field.default)
        shown[f"config.{name}"] = "; ".join(filter(None, (field.description, allowed, f"default: {default}")))
    return shown


class _FileParser(flags.ArgumentParser):
    """Reads the config of a file, given as PATH, PATH:WORD, NAME or NAME:WORD."""

    def parse(self, argument: str) -> ConfigDict:
        config = load(argument)
        _check_names(config)
        return config.lock()


def load(text: str) -> ConfigDict:
    """Loads the config of a file, given as PATH or PATH:WORD, or of a built-in one, given as NAME or NAME:WORD.

    Raises:
      UserError: there is no such file, it has no `get_config`, or `get_config` raises an exception.
    """
    name, colon, word = text.partition(":")
    path = built_in.path_of(name, "config")
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
