"""Progress lines on the terminal."""

import sys

import tqdm

from cnn2gnn_jax.runtime import processes
from cnn2gnn_jax.runtime.errors import printable


def say(text: str) -> None:
    """Prints progress, of several processes in the first."""
    if processes.is_first():
        tqdm.tqdm.write("\n".join(map(printable, text.split("\n"))), file=sys.stderr)
