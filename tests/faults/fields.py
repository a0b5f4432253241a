"""Tries invalid values for the fields of configs/base.py.

    python -m tests.faults.fields

Tries the tables of tests/test_config.py, and prints the number of fields and values, and those that were accepted.
"""

import sys

from cnn2gnn_jax.runtime.errors import UserError
from tests import test_config as table


def refused(field: str, value: object, dataset: object) -> bool:
    """Whether a value is refused with a one-line error when it is set, or when the config is checked."""
    try:
        config = table.config_of(field, value)
    except (TypeError, ValueError):  # raised by ml_collections for a flag; `main` prints it in one line
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
    print(f"{fields} of {len(table.FIELDS)} fields, {len(tried)} invalid values, {len(taken)} accepted")
    for field, value in taken:
        print(f"{field} = {value!r}")
    sys.exit(bool(taken))


if __name__ == "__main__":
    main()
