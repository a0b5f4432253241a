"""The compilation cache: compile time of the digits demo with an empty cache and with a filled one."""

import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

from benchmarks.timing import Row


def rows() -> list[Row]:
    """The rows of the table."""
    with tempfile.TemporaryDirectory() as folder:
        cold, warm = _run(pathlib.Path(folder)), _run(pathlib.Path(folder))
    detail = f"cold {cold['compilation']:.1f} s, warm {warm['compilation']:.1f} s"
    return [
        Row(
            "compile time warm : cold, `digits:smoke`",
            warm["compilation"] / cold["compilation"],
            "at most 0.25",
            detail,
        )
    ]


def _run(folder: pathlib.Path) -> dict[str, float]:
    """The seconds that a run records, which has only decoded data and compiled programs in its cache."""
    workdir, cache = folder / "run", folder / "cache"
    shutil.rmtree(workdir, ignore_errors=True)
    shutil.rmtree(cache / "teachers", ignore_errors=True)
    command = [sys.executable, "-m", "cnn2gnn_jax.main", "--config=configs/digits.py:smoke"]
    command += [f"--config.cache_dir={cache}", f"--workdir={workdir}"]
    subprocess.run(command, check=True, capture_output=True)
    return json.loads((workdir / "results.json").read_text())["seconds"]
