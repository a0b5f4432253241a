"""Fields of a config. Each field has a default, a description, allowed values, and a note of what it affects."""

import difflib
import math
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict, config_dict

from cnn2gnn_jax.runtime.errors import UserError

# What a field affects: the trained networks, only the accuracies that are reported for them, or no result at all.
TRAINING, EVALUATION, NOTHING = "training", "evaluation", "nothing"

# New names of renamed fields, by their old names. An error for an old name gives the new one.
RENAMED = {
    "evaluate.reading": "evaluate.mechanism2_graph",
    "student.off_weight": "student.graph_off_loss_weight",
    "student.threshold": "student.edge_threshold",
}

_MIN_SIMILARITY = 0.7  # difflib's ratio above which two names are taken for spellings of the same name
_MAX_SUGGESTIONS = 3


class Range(NamedTuple):
    """The numbers that are allowed for a field, or for each element of a tuple.

    low, high: the smallest and the largest allowed number.
    zero: what 0 stands for. If it is not empty, 0 is allowed even outside the range.
    exclusive: whether `low` and `high` themselves are excluded.
    """

    low: float
    high: float = math.inf
    zero: str = ""
    exclusive: bool = False

    def contains(self, number: Any) -> bool:
        """Whether `number` is a number in the range."""
        if not isinstance(number, int | float) or isinstance(number, bool):
            return False
        if self.zero and number == 0:
            return True
        if self.exclusive:
            return self.low < number < self.high
        return self.low <= number <= self.high and number != math.inf

    def __str__(self) -> str:
        zero = f"0 ({self.zero}) or " if self.zero else ""
        if self.exclusive:
            return f"{zero}above {self.low:g} and below {self.high:.10g}"
        return zero + (
            f"at least {self.low:g}" if self.high == math.inf else f"between {self.low:g} and {self.high:.10g}"
        )


class Field(NamedTuple):
    """A field of a config.

    default: its default value, or its type if the field is None until a recipe or a method sets its value.
    description: what the field does, for the documentation.
    allowed: the allowed numbers or strings, for a tuple those of each element. None if any value is allowed, or if
      values are checked elsewhere.
    changes: what the field affects: `TRAINING`, `EVALUATION` or `NOTHING`.
    """

    default: Any
    description: str
    allowed: Range | tuple[str, ...] | None = None
    changes: str = TRAINING


def to_config(fields: Mapping[str, Field]) -> ConfigDict:
    """Returns a config with the defaults of all fields, which are given by their dotted names."""
    config = ConfigDict()
    for name, field in fields.items():
        *sections, last = name.split(".")
        section = config
        for part in sections:
            if part not in section:
                section[part] = ConfigDict()
            section = section[part]
        section[last] = config_dict.placeholder(field.default) if isinstance(field.default, type) else field.default
    return config


def flat(section: Any, prefix: str = "") -> dict[str, Any]:
    """Returns the values of a config, or of nested dictionaries, by their dotted names."""
    values: dict[str, Any] = {}
    for name, value in section.items():
        nested = isinstance(value, ConfigDict | dict)
        values |= flat(value, f"{prefix}{name}.") if nested else {prefix + name: value}
    return values


def check(config: ConfigDict, fields: Mapping[str, Field]) -> None:
    """Checks that the fields of a config exist and that their values are allowed. None is always allowed.

    Raises:
      UserError: a field does not exist, or its value is not allowed.
    """
    for name, value in flat(config).items():
        if name not in fields:
            raise no_such_field(name, fields)
        allowed = fields[name].allowed
        if value is None or allowed is None:
            continue
        for element in value if isinstance(value, tuple | list) else (value,):
            if isinstance(allowed, Range):
                if not allowed.contains(element):
                    raise UserError(f"{name} is {element!r}: it must be {allowed}")
            elif element not in allowed:
                raise UserError(f"{name} is {element!r}: choose one of {', '.join(allowed)}")


def select(section: ConfigDict, fields: Mapping[str, Field], changes: str, prefix: str = "") -> dict[str, Any]:
    """Selects fields by what they affect.

    Args:
      section: a config, or a section of it.
      fields: all fields, by their dotted names.
      changes: `TRAINING`, `EVALUATION` or `NOTHING`.
      prefix: the dotted name of the section with a dot at the end; '' for a whole config.

    Returns:
      The values of the selected fields, as nested JSON values without empty sections.
    """
    selected: dict[str, Any] = {}
    for name, value in section.items():
        if isinstance(value, ConfigDict):
            if subsection := select(value, fields, changes, f"{prefix}{name}."):
                selected[name] = subsection
        elif fields[prefix + name].changes == changes:
            selected[name] = plain(value)
    return selected


def plain(value: Any) -> Any:
    """Converts a config, a section or a value to JSON values."""
    if isinstance(value, ConfigDict):
        return {name: plain(item) for name, item in value.items()}
    return [plain(element) for element in value] if isinstance(value, tuple | list) else value


def no_such_field(field: str, names: Collection[str]) -> UserError:
    """The error for a field that is not among `names`. It gives the new name of a renamed field, or similar names."""
    if field in RENAMED:
        return UserError(f"{field} is now called {RENAMED[field]}: use the new name")
    suggestions = [f"config.{name}" for name in nearest_fields(field, sorted(names))]
    advice = f"did you mean {' or '.join(suggestions)}?" if suggestions else "configs/base.py lists the fields"
    return UserError(f"there is no field config.{field}: {advice}")


def nearest_fields(field: str, names: Collection[str]) -> list[str]:
    """The names that `field` most probably stands for: the same field of another section, or a similar spelling.

    >>> nearest_fields("sparsity", ["seed", "student.sparsity"])
    ['student.sparsity']
    """

    def similarity(name: str) -> float:
        pairs = ((field, name), (field.rpartition(".")[2], name.rpartition(".")[2]))
        # The whole name has a slightly larger weight, so that `field`'s section decides between two sections.
        return max(
            difflib.SequenceMatcher(None, a, b).ratio() * weight
            for (a, b), weight in zip(pairs, (1, 0.99), strict=True)
        )

    same_field = [name for name in names if name.endswith(f".{field}")]
    if same_field:
        return same_field[:_MAX_SUGGESTIONS]
    best = max(map(similarity, names), default=0.0)
    if best < _MIN_SIMILARITY:
        return []
    return [name for name in names if similarity(name) == best][:_MAX_SUGGESTIONS]
