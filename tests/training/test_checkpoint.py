"""Tests that the import of checkpoints patches no library, and that a command silences repeated errors.

The threads of Orbax print errors that the command prints as well.
"""

import subprocess
import sys

from tests.conftest import ONE_CPU, ROOT

PROGRAM = """
import logging, sys
from absl import logging as absl_logging
import orbax.checkpoint
logger = absl_logging.get_absl_logger()
hook, filters = sys.unraisablehook, list(logger.filters)
from cnn2gnn_jax import main, predict
from cnn2gnn_jax.runtime import command_line
from cnn2gnn_jax.training import checkpoint
assert sys.unraisablehook is hook and logger.filters == filters

for _ in range(2):
    command_line.run(lambda: None)
assert len(logger.filters) == len(filters) + 1
for path, error in (("/x/orbax/checkpoint.py", RuntimeError("lost")), ("/x/mine.py", RuntimeError("kept"))):
    trace = (type(error), error, None)
    logger.handle(logging.LogRecord("absl", logging.ERROR, path, 1, "saving failed: %s", (error,), trace))

class Fails:
    def __init__(self, what):
        self.what = what
    def __del__(self):
        raise RuntimeError(self.what)

for what in ("Event loop is closed", "another"):
    Fails(what)
"""


def test_importing_patches_nothing_and_a_command_silences_messages_after_an_error():
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, env=ONE_CPU, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "saving failed: kept" in done.stderr and "RuntimeError: another" in done.stderr
    assert "lost" not in done.stderr and "Event loop" not in done.stderr
