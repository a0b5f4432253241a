"""What a run shows at its end: a table in words, and pictures."""

import pathlib
from typing import Any

from cnn2gnn_jax import storage
from cnn2gnn_jax.data import Dataset
from cnn2gnn_jax.metrics import read_records, say
from cnn2gnn_jax.report import figures, text


def write(workdir: pathlib.Path, results: dict[str, Any], dataset: Dataset) -> None:
    """Writes `report/` of a run: results.md, curves.png and, for a graph student, neighbors.png."""
    folder = workdir / "report"
    storage.write_text(folder / "results.md", text.markdown(results))
    records = read_records(workdir / "metrics.jsonl")
    if records:
        figures.save(figures.curves(records), folder / "curves.png")
    if results["examples"]:
        figures.save(figures.neighbors(results["examples"], dataset), folder / "neighbors.png")
    say(f"report in {folder}")
