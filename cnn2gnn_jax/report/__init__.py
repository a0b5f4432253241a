"""The report of a run: tables, figures and highlights."""

import pathlib
from typing import Any

import numpy as np

from cnn2gnn_jax.data import Dataset, Split
from cnn2gnn_jax.report import figures, formats, highlights, plots, run_table
from cnn2gnn_jax.runtime import storage
from cnn2gnn_jax.runtime.console import log
from cnn2gnn_jax.training.metrics import read_records


def write(
    workdir: pathlib.Path, results: dict[str, Any], dataset: Dataset, split: Split, predicted: np.ndarray
) -> None:
    """Writes `report/` of a run that has just ended, including the figure of neighbors, and logs the highlights.

    Args:
      workdir: the run's folder.
      results: the contents of its `results.json`.
      dataset: the run's data set.
      split: the evaluated split of N images.
      predicted: the predicted classes under each of the E accuracies, (E, N).
    """
    lines = write_tables(workdir, results, split.labels, predicted)
    if results["examples"]:
        figures.save(figures.neighbors(results["examples"], dataset, split), workdir / "report" / "neighbors.png")
    log("\n".join(["What to look at:", *(f"  {line}" for line in lines), f"report in {workdir / 'report'}"]))


def write_tables(
    workdir: pathlib.Path, results: dict[str, Any], labels: np.ndarray, predicted: np.ndarray
) -> list[str]:
    """Writes the files of a run's report that need no images: results.{md,tex,csv}, {curves,confusion}.{png,pdf}.

    Args:
      workdir: the run's folder.
      results: the contents of its `results.json`.
      labels: the classes of the N evaluated images, (N,).
      predicted: their predicted classes under each of the E accuracies, (E, N).

    Returns:
      The highlights, a sentence each.
    """
    folder = workdir / "report"
    records = read_records(workdir / "metrics.jsonl")
    counts = figures.confusion_counts(labels, predicted[0], len(results["dataset"]["classes"]))
    lines = highlights.of_run(results, records, counts, predicted == labels)
    table = run_table.table(results)
    storage.write_text(folder / "results.md", run_table.markdown(results, lines))
    storage.write_text(folder / "results.tex", formats.latex(table))
    storage.write_text(folder / "results.csv", formats.comma_separated(table))
    figures.save(figures.confusion(counts, results["dataset"]["classes"]), folder / "confusion.png")
    if records:
        figures.save(plots.training_of_run(records, results), folder / "curves.png")
    return lines
