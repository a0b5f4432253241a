"""The fields of configs/base.py, each with values that make no sense.

    python -m tests.faults.fields

Tries the tables of tests/test_config.py and prints how many fields and values there were, and what was not refused.
"""

import sys

from cnn2gnn_jax.runtime.errors import UserError
from tests import test_config as table


def refused(field: str, value: object, dataset: object) -> bool:
    """Whether a value is refused in one line when it is set, or when the config is checked."""
    try:
        config = table.config_of(field, value)
    except (TypeError, ValueError):  # of ml_collections, where a flag is read: `main` makes one line of it
        return True
    try:
        table.check(config, dataset)
    except UserError as error:
        return "\n" not in str(error)
    return False


def main() -> None:
    """Tries all values."""
    dataset = table.dataset.__wrapped__()
    tried = [*table.BAD, *((field, value) for field, kind in table.FIELDS.items() for value in table.WRONG_TYPES[kind])]
    taken = [(field, value) for field, value in tried if not refused(field, value, dataset)]
    fields = len({field for field, _ in tried})
    print(f"{fields} of {len(table.FIELDS)} fields, {len(tried)} values that make no sense, {len(taken)} not refused")
    for field, value in taken:
        print(f"{field} = {value!r}")
    sys.exit(bool(taken))


if __name__ == "__main__":
    main()
