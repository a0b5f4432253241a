"""Tests that the notebook runs from start to end and is stored without outputs."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
from PIL import Image

ROOT = pathlib.Path(__file__).parent.parent
CELLS = json.loads((ROOT / "launch" / "colab.ipynb").read_text())["cells"]
PROGRAM = "\n\n".join("".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code")
NO_NETWORK = """
import socket


def refuse(*arguments, **options):
    raise OSError("the notebook used the network")


socket.getaddrinfo = socket.create_connection = refuse
"""


def test_its_outputs_are_stripped():
    code = [cell for cell in CELLS if cell["cell_type"] == "code"]
    assert code and all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


def test_the_documents_it_names_exist():
    text = "".join("".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "markdown")
    named = [part for part in text.split("`") if part.startswith("docs/")]
    assert named and all((ROOT / name).is_file() for name in named)


@pytest.mark.slow
def test_it_runs_from_start_to_end(tmp_path):
    assert PROGRAM.count('SIZE = ""\n') == 1
    (tmp_path / "notebook.py").write_text(NO_NETWORK + PROGRAM.replace('SIZE = ""\n', 'SIZE = "smoke"\n'))
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "HOME": str(tmp_path),  # the cache is written there
        "JAX_PLATFORMS": "cpu",
        "MPLBACKEND": "agg",
    }
    done = subprocess.run(
        [sys.executable, "notebook.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr
    for digit in range(5):  # it is predicted once from the workdir and once from the bundle
        assert done.stdout.count(f"my_new_images/a {digit}.png") == 2
    assert "training images are right" in done.stdout and "100 images, ms" in done.stdout
    with Image.open(tmp_path / "neighbors.png") as picture:
        assert picture.width > 500 and len(picture.getcolors(picture.width * picture.height)) > 50
    assert (tmp_path / "bundle" / "model.stablehlo").stat().st_size > 1000
