"""Sets the fields of configs/base.py to invalid values.

    python -m tests.faults.fields

Tries the invalid values in the tables of tests/test_config.py. Prints the number of fields and values, and each value
that was accepted. The exit code is 1 if there was one.
"""

import sys

from cnn2gnn_jax.runtime.errors import UserError
from tests import test_config


def refused(field: str, value: object, dataset: object) -> bool:
    """Whether a value is refused when it is set, or by a one-line error when the config is checked."""
    try:
        config = test_config.config_of(field, value)
    except (TypeError, ValueError):  # raised by ml_collections when a flag is set; `main` prints it as one line
        return True
    try:
        test_config.check(config, dataset)
    except UserError as error:
        return "\n" not in str(error)
    return False


def main() -> None:
    """Tries all invalid values."""
    dataset = test_config.dataset.__wrapped__()
    tried = [
        *test_config.BAD,
        *((field, value) for field, kind in test_config.FIELDS.items() for value in test_config.WRONG_TYPES[kind]),
    ]
    accepted = [(field, value) for field, value in tried if not refused(field, value, dataset)]
    fields = len({field for field, _ in tried})
    print(f"{fields} of {len(test_config.FIELDS)} fields, {len(tried)} invalid values, {len(accepted)} accepted")
    for field, value in accepted:
        print(f"{field} = {value!r}")
    sys.exit(bool(accepted))


if __name__ == "__main__":
    main()
