"""The notebook runs from start to end, and is kept without outputs."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
CELLS = json.loads((ROOT / "launch" / "colab.ipynb").read_text())["cells"]


def test_its_outputs_are_stripped():
    code = [cell for cell in CELLS if cell["cell_type"] == "code"]
    assert code and all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


@pytest.mark.slow
def test_it_runs_from_start_to_end(tmp_path):
    program = "\n\n".join("".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code")
    (tmp_path / "notebook.py").write_text(program)
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "HOME": str(tmp_path),  # the cache is there
        "CNN2GNN_WORD": "smoke",
    }
    done = subprocess.run(
        [sys.executable, "notebook.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr
    assert "my_images/digit 0" in done.stdout and "100 images, ms" in done.stdout
    for path in ("runs/digits/report/neighbors.png", "runs/mine/report/confusion.png", "bundle/model.stablehlo"):
        assert (tmp_path / path).stat().st_size > 1000
