"""Writes the tables and figures of a recorded sweep, with an HTML page, or of a single run.

python -m cnn2gnn_jax.report --out=DIR [--cache_dir=DIR] [--manual_dir=DIR]

DIR is the folder of a sweep or the workdir of a run. The command writes tables as Markdown, LaTeX and CSV, and figures
as PNG and PDF, to DIR/report. `cnn2gnn-report` is the same command.

Examples:

    cnn2gnn-report --out=DIR
    cnn2gnn-report --out=DIR --manual_dir=IMAGES
"""

import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

from absl import flags
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from cnn2gnn_jax import data, report
from cnn2gnn_jax.evaluation import summary
from cnn2gnn_jax.report import figures, formats, highlights, names, plots
from cnn2gnn_jax.report.cells import Table
from cnn2gnn_jax.report.observations import grouped, observe, select
from cnn2gnn_jax.report.page import Section, page
from cnn2gnn_jax.report.tables import all_tables
from cnn2gnn_jax.runtime import artifact, command_line, storage
from cnn2gnn_jax.runtime.console import log
from cnn2gnn_jax.runtime.errors import UserError
from cnn2gnn_jax.sweeps import records

_LEAD = (
    "Everything on this page is computed from the records of runs (results.jsonl) by one command. Each table names the "
    "images and the epoch of its accuracies; the epoch is never chosen on test images. The folder of this page also "
    "holds each table as .tex and .csv and each figure as .png and .pdf."
)


def write(out: pathlib.Path, cache: pathlib.Path, manual_dir: str = "") -> pathlib.Path:
    """Writes `report/` of a sweep: tables as .md, .tex and .csv, figures as .png and .pdf, and the page `index.html`.

    Args:
      out: the sweep's folder, with `records/` or `results.jsonl`.
      cache: the folder of data sets, for the images of Figure 3. Without the data set, an existing figure is kept.
      manual_dir: the value of `data.manual_dir`.

    Returns:
      The path of the page.

    Raises:
      UserError: nothing is recorded.
    """
    recorded, folder = records.read(out), out / "report"
    tables = all_tables(recorded)
    sections: list[Section] = []
    for table in tables:
        sections.append(table)
        for title, figure, description in _figures(recorded, table):
            path = folder / f"{_slug(title)}.png"
            figures.save(figure, path)
            sections.append((title, path, description))
        storage.write_text(folder / f"{_slug(table.title)}.tex", formats.latex(table))
        storage.write_text(folder / f"{_slug(table.title)}.csv", formats.comma_separated(table))
    if picture := _neighbors(recorded, folder, cache, manual_dir):
        sections.append(picture)
    storage.write_text(folder / "results.md", formats.document(tables))
    lead = [*highlights.of_records(recorded), _LEAD, _protocols(recorded), _versions(recorded)]
    storage.write_text(folder / "index.html", page("CNN2GNN: results", [*filter(None, lead)], sections))
    return folder / "index.html"


def write_run(workdir: pathlib.Path) -> pathlib.Path:
    """Writes `report/` of a run again from its recorded results. `neighbors.png` is not changed.

    Args:
      workdir: the run's folder, with `results.json`.

    Returns:
      The path of `results.md`.

    Raises:
      UserError: the results or predictions are missing, damaged or of an earlier version.
    """
    results = storage.read_json(workdir / "results.json")
    if "predictions" not in results:
        raise UserError(
            f"{workdir} was written by an earlier version and holds no predictions: run the same command again"
        )
    arrays = artifact.read(workdir / summary.PREDICTIONS, summary.KIND, results["predictions"]).arrays
    report.write_tables(workdir, results, arrays["labels"], arrays["predicted"])
    return workdir / "report" / "results.md"


def _figures(recorded: Sequence[dict[str, Any]], table: Table) -> Iterator[tuple[str, Figure, str]]:
    """Yields the figures of a table: title, figure and description."""
    name, observations = table.title, select(observe(recorded, table.kind), name=table.title)
    for column, group in grouped(observations, "column").items() if table.kind == "methods" else ():
        yield (
            f"Figure 5 for {name}, {column}",
            plots.flops(group),
            "Accuracy against the floating-point operations needed to classify one image. For a graph student, they do "
            "not include the operations for the anchors, which a whole batch shares.",
        )
        yield (
            f"Training curves for {name}, {column}",
            plots.training_of_rows(recorded, name, column),
            "The curves of the first seed of each row. Metrics are recorded only on training batches. A dot is the "
            "accuracy on the evaluated images after training.",
        )
    if table.kind == "curve":
        yield f"{name}, drawn", plots.values(observations), "Mean and standard deviation over seeds."


def _slug(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", title.lower()).strip("_")


def _protocols(recorded: Sequence[dict[str, Any]]) -> str:
    present = names.recorded_protocols(entry for record in recorded for entry in record["accuracies"])
    return " ".join(protocol.description for protocol in present if protocol.description)


def _versions(recorded: Sequence[dict[str, Any]]) -> str:
    versions = sorted(
        {
            ", ".join(f"{name} {value}" for name, value in record["versions"].items() if value != summary.NOT_INSTALLED)
            for record in recorded
        }
    )
    return f"{len(recorded)} runs. Versions: " + "; or ".join(versions) + "."


def _neighbors(
    recorded: Sequence[dict[str, Any]], folder: pathlib.Path, cache: pathlib.Path, manual_dir: str
) -> Section | None:
    """Figure 3, for the first CNN2GNN student whose record has examples; None if there is none."""
    record = next((record for record in recorded if record["examples"] and record["method"] == "cnn2gnn"), None)
    if record is None:
        return None
    path = folder / "figure_3_neighbors.png"
    config = ConfigDict({"manual_dir": manual_dir, "residency": "auto"})
    for field, value in record["config"].items():
        if field.startswith("data."):
            config[field.removeprefix("data.")] = value
    try:
        dataset = data.load(config, cache, fetch=False)
        if dataset.fingerprint != record["dataset"]["fingerprint"]:
            raise UserError(
                f"{dataset.name} is not the data set of the records: pass the folder of that data set by --manual_dir"
            )
        split = dataset.holdout if record["dataset"]["evaluated"] == "holdout" else dataset.test
        assert split is not None
        figures.save(figures.neighbors(record["examples"], dataset, split), path)
    except UserError as error:
        log(f"Figure 3 was not drawn: {error}")
    return (
        f"Figure 3: learned neighbors, {record['dataset']['name']}",
        path,
        "Test images (left), each with the training images that the learned graph links it to and their weights, "
        "strongest first. A green frame marks an image of the same class. The bottom row shows training images of "
        "other classes.",
    )


def main() -> None:
    """Parses the command line and writes the report."""
    values = flags.FlagValues()
    flags.DEFINE_string("out", None, "the folder of a sweep, or the workdir of a run", flag_values=values)
    flags.DEFINE_string("cache_dir", "~/.cache/cnn2gnn_jax", "the config's field cache_dir", flag_values=values)
    flags.DEFINE_string("manual_dir", "", "the folder of the data set's files, for Figure 3", flag_values=values)
    command_line.parse(values, __doc__, required=["out"])
    out = pathlib.Path(values.out)
    is_run = (out / "results.json").is_file()
    print(write_run(out) if is_run else write(out, pathlib.Path(values.cache_dir).expanduser(), values.manual_dir))


def run() -> None:
    """The entry point: an error that the user can fix is printed as one line, see `command_line.run`."""
    command_line.run(main)


if __name__ == "__main__":
    run()
