"""Progress messages on the terminal."""

import sys

import tqdm

from cnn2gnn_jax.runtime import processes
from cnn2gnn_jax.runtime.errors import printable


def log(text: str) -> None:
    """Prints a message to stderr; where there are several processes, only the first one prints."""
    if processes.is_first():
        tqdm.tqdm.write("\n".join(map(printable, text.split("\n"))), file=sys.stderr)
