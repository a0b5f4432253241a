"""What a run shows at its end: a table in words, and pictures."""

import pathlib
from typing import Any

import numpy as np

from cnn2gnn_jax.data import Dataset, Split
from cnn2gnn_jax.report import figures, highlights, plots, run_table
from cnn2gnn_jax.runtime import storage
from cnn2gnn_jax.runtime.console import say
from cnn2gnn_jax.training.metrics import read_records


def write(
    workdir: pathlib.Path, results: dict[str, Any], dataset: Dataset, split: Split, predicted: np.ndarray
) -> None:
    """Writes `report/` of a run: results.md, curves.png, confusion.png and, for a graph student, neighbors.png.

    `predicted` are the classes of the N images of `split` under each of the E accuracies, (E, N).
    """
    folder = workdir / "report"
    records = read_records(workdir / "metrics.jsonl")
    counts = figures.confusion_counts(split.labels, predicted[0], len(dataset.classes))
    lines = highlights.of_run(results, records, counts, predicted == split.labels)
    storage.write_text(folder / "results.md", run_table.markdown(results, lines))
    figures.save(figures.confusion(counts, dataset.classes), folder / "confusion.png")
    if records:
        figures.save(plots.training_of_run(records), folder / "curves.png")
    if results["examples"]:
        figures.save(figures.neighbors(results["examples"], dataset, split), folder / "neighbors.png")
    say("\n".join(["What to look at:", *(f"  {line}" for line in lines), f"report in {folder}"]))
