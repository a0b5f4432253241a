"""Messages and tables on the terminal."""

import sys
from collections.abc import Sequence

import tqdm

from cnn2gnn_jax.runtime import processes
from cnn2gnn_jax.runtime.errors import printable


def log(text: str) -> None:
    """Prints a message to stderr; where there are several processes, only the first one prints."""
    if processes.is_first():
        tqdm.tqdm.write("\n".join(map(printable, text.split("\n"))), file=sys.stderr)


def right_aligned(rows: Sequence[Sequence[str]]) -> str:
    """Formats the rows of a table as text with right-aligned columns."""
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
