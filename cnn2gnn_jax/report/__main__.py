"""Tables, figures and a page of what a sweep has recorded.

python -m cnn2gnn_jax.report --out=DIR [--cache_dir=DIR] [--manual_dir=DIR]

`cnn2gnn-report` is the same command.

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

from cnn2gnn_jax import data
from cnn2gnn_jax.evaluation.summary import NOT_INSTALLED
from cnn2gnn_jax.report import figures, formats, names, plots
from cnn2gnn_jax.report.cells import Table
from cnn2gnn_jax.report.observations import grouped, observe, select
from cnn2gnn_jax.report.page import Section, page
from cnn2gnn_jax.report.tables import all_tables
from cnn2gnn_jax.runtime import command_line, storage
from cnn2gnn_jax.runtime.console import say
from cnn2gnn_jax.runtime.errors import UserError
from cnn2gnn_jax.sweeps import records

_LEAD = (
    "Every figure on this page is drawn from the records of runs (results.jsonl) by one command. Accuracies are on the "
    "images and at the epoch that each table names, never at the best epoch on test."
)


def write(out: pathlib.Path, cache: pathlib.Path, manual_dir: str = "") -> pathlib.Path:
    """Writes `report/` of a sweep's folder: tables as .md, .tex and .csv, figures as .png, and `index.html`.

    Args:
      out: with `records/` or `results.jsonl`.
      cache: of the data sets, for the pictures of Figure 3; where the data set is missing, an earlier figure is kept.
      manual_dir: as `data.manual_dir`.

    Returns:
      The page.

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
    lead = [_LEAD, _protocols(recorded), _versions(recorded)]
    storage.write_text(folder / "index.html", page("CNN2GNN: results", [*filter(None, lead)], sections))
    return folder / "index.html"


def _figures(recorded: Sequence[dict[str, Any]], table: Table) -> Iterator[tuple[str, Figure, str]]:
    """The figures that belong to a table: title, figure, and what it shows."""
    name, observations = table.title, select(observe(recorded, table.kind), name=table.title)
    for column, group in grouped(observations, "column").items() if table.kind == "methods" else ():
        yield (
            f"Figure 5 for {name}, {column}",
            plots.flops(group),
            "Accuracy against the floating-point operations that classify one image; of a graph student without its "
            "anchors' part, which a batch shares.",
        )
        yield (
            f"Training curves for {name}, {column}",
            plots.training_of_rows(recorded, name, column),
            "The first seed of each row.",
        )
    if table.kind == "curve":
        yield f"{name}, drawn", plots.values(observations), "Mean and deviation over seeds."


def _slug(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", title.lower()).strip("_")


def _protocols(recorded: Sequence[dict[str, Any]]) -> str:
    present = names.recorded_protocols(entry for record in recorded for entry in record["accuracies"])
    return " ".join(protocol.description for protocol in present if protocol.description)


def _versions(recorded: Sequence[dict[str, Any]]) -> str:
    kinds = sorted(
        {
            ", ".join(f"{name} {value}" for name, value in record["versions"].items() if value != NOT_INSTALLED)
            for record in recorded
        }
    )
    return f"{len(recorded)} runs. Versions: " + "; or ".join(kinds) + "."


def _neighbors(
    recorded: Sequence[dict[str, Any]], folder: pathlib.Path, cache: pathlib.Path, manual_dir: str
) -> Section | None:
    """Figure 3 of the first CNN2GNN student that has examples."""
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
            raise UserError(f"{dataset.name} is not the data set of the records: give its own by --manual_dir")
        split = dataset.holdout if record["dataset"]["evaluated"] == "holdout" else dataset.test
        assert split is not None
        figures.save(figures.neighbors(record["examples"], dataset, split), path)
    except UserError as error:
        say(f"Figure 3 is not drawn anew: {error}")
    return (
        f"Figure 3: learned neighbours, {record['dataset']['name']}",
        path,
        "Test images (left), each with the training images that the learned graph links it to, strongest first, with "
        "their weights; a green frame marks the same class. The bottom row shows training images of other classes.",
    )


def main() -> None:
    """Reads the command line, writes the report."""
    values = flags.FlagValues()
    flags.DEFINE_string("out", None, "the folder of a sweep, or of its results.jsonl", flag_values=values)
    flags.DEFINE_string("cache_dir", "~/.cache/cnn2gnn_jax", "as the config's field", flag_values=values)
    flags.DEFINE_string("manual_dir", "", "where the data set's own files are, for Figure 3", flag_values=values)
    command_line.parse(values, __doc__, required=["out"])
    print(write(pathlib.Path(values.out), pathlib.Path(values.cache_dir).expanduser(), values.manual_dir))


def run() -> None:
    """The program: what a user can mend ends in one line, see `command_line.run`."""
    command_line.run(main)


if __name__ == "__main__":
    run()
