"""Fields of a config, each described once: its default, its meaning, the values it may have, and what it changes."""

import difflib
import math
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict, config_dict

from cnn2gnn_jax.runtime.errors import UserError

# What a field changes: the trained networks; the figures that are reported of them; or nothing but speed and place.
TRAINING, EVALUATION, NOTHING = "training", "evaluation", "nothing"

_SIMILAR = 0.7  # of difflib's ratio: two spellings of one name are above it
_SUGGESTED = 3  # the most fields that an error suggests


class Range(NamedTuple):
    """The numbers that a field, or each element of a tuple, may have.

    low, high: the least and the greatest.
    zero: what 0 stands for, where it is allowed although it is out of the range.
    exclusive: whether `low` and `high` themselves are out of the range.
    """

    low: float
    high: float = math.inf
    zero: str = ""
    exclusive: bool = False

    def holds(self, number: Any) -> bool:
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

    default: its value; or its type, for a field that is None until a recipe or a method gives its value.
    meaning: a short text.
    allowed: the numbers or the words that it may have, or each element of a tuple; None where they are checked
      elsewhere, or anything will do.
    changes: `TRAINING`, `EVALUATION` or `NOTHING`.
    """

    default: Any
    meaning: str
    allowed: Range | tuple[str, ...] | None = None
    changes: str = TRAINING


def to_config(fields: Mapping[str, Field]) -> ConfigDict:
    """A config of all fields, which are given by their dotted names, with their defaults."""
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
    """The values of a config, or of nested dictionaries, by their dotted names."""
    values: dict[str, Any] = {}
    for name, value in section.items():
        nested = isinstance(value, ConfigDict | dict)
        values |= flat(value, f"{prefix}{name}.") if nested else {prefix + name: value}
    return values


def check(config: ConfigDict, fields: Mapping[str, Field]) -> None:
    """Checks every value against its field's description; None passes, as nothing is set there.

    Raises:
      UserError: there is no such field, or its value is not allowed.
    """
    for name, value in flat(config).items():
        if name not in fields:
            raise no_such_field(name, fields)
        allowed = fields[name].allowed
        if value is None or allowed is None:
            continue
        for element in value if isinstance(value, tuple | list) else (value,):
            if isinstance(allowed, Range):
                if not allowed.holds(element):
                    raise UserError(f"{name} is {element!r}: it must be {allowed}")
            elif element not in allowed:
                raise UserError(f"{name} is {element!r}: choose one of {', '.join(allowed)}")


def select(section: ConfigDict, fields: Mapping[str, Field], changes: str, prefix: str = "") -> dict[str, Any]:
    """The values of the fields that change what `changes` says, as nested JSON values without empty sections."""
    selected: dict[str, Any] = {}
    for name, value in section.items():
        if isinstance(value, ConfigDict):
            if inside := select(value, fields, changes, f"{prefix}{name}."):
                selected[name] = inside
        elif fields[prefix + name].changes == changes:
            selected[name] = plain(value)
    return selected


def plain(value: Any) -> Any:
    """A config, a section or a value as JSON values."""
    if isinstance(value, ConfigDict):
        return {name: plain(inside) for name, inside in value.items()}
    return [plain(element) for element in value] if isinstance(value, tuple | list) else value


def no_such_field(field: str, names: Collection[str]) -> UserError:
    """The error for a field that is not among `names`; it suggests the nearest ones."""
    nearest = [f"config.{name}" for name in nearest_fields(field, sorted(names))]
    advice = f"did you mean {' or '.join(nearest)}?" if nearest else "configs/base.py lists the fields"
    return UserError(f"there is no field config.{field}: {advice}")


def nearest_fields(field: str, names: Collection[str]) -> list[str]:
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
