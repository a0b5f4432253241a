"""Notes below tables: the images and seeds, what the intervals are over, and which graphs are uniform."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

from cnn2gnn_jax.report import names
from cnn2gnn_jax.report.cells import Cell, Rows, Table
from cnn2gnn_jax.report.names import plural, span
from cnn2gnn_jax.report.observations import Observation, select
from cnn2gnn_jax.report.statistics import BOTH, IMAGES, SEEDS, is_uniform

INTERVALS = {
    BOTH: "The 95% intervals are over seeds and images: they come from a paired bootstrap over both and are never "
    "narrower than Student's t interval over seeds. The students of a difference share one teacher, so the intervals "
    "do not include the variance between teachers.",
    IMAGES: "The 95% intervals of a single seed are over images alone: they come from a paired bootstrap.",
    SEEDS: "The 95% intervals are Student's t intervals over seeds alone: the records hold no predictions, so the "
    "intervals do not include the variance between images.",
}
UNIFORM = (
    "Uniform: in almost every batch, all test images had the same nearest training image. Mechanism 2 then gave all "
    "images of the batch the same weight, so the accuracy reflects no learned structure."
)
AUDIT = (
    "A class-sorted batch holds test images of few classes, as when a folder of images is read in order. "
    "A graph over such a batch links images that share their label, whatever the head has learned. "
    "It gives every image the majority prediction of the batch, so accuracy can rise because of the order of the files "
    "and not because of the student. "
    "The figure is therefore an audit of how much a batch order leaks, never an accuracy. What a graph is worth is "
    "its shuffled or one-by-one accuracy minus that of the same student trained and tested without a graph."
)


def captioned(observations: Sequence[Observation], rows: Rows, remarks: Iterable[str]) -> Table:
    """Makes a table from its rows, with a caption and further notes.

    Args:
      observations: all observations that the table shows.
      rows: the cells of the table.
      remarks: notes that follow the caption.
    """
    counted, seeds = mark_seeds(rows)
    body, over = mark_intervals(counted)
    place = observations[0].place
    return Table(place["name"], body, [_caption(observations, seeds), *over, *remarks], place["kind"])


def mark_seeds(rows: Rows) -> tuple[Rows, str]:
    """Adds `n = ...` to cells with fewer seeds than others; returns the rows, and the number of seeds as text."""
    seeds = {cell.n for cell in _cells(rows) if cell.n}
    max_seeds = max(seeds, default=0)
    marked = _marked(rows, lambda cell: f"n = {cell.n}" if cell.n and cell.n < max_seeds else "")
    return marked, plural(max_seeds, "seed") + ", unless n is given," * (len(seeds) > 1)


def mark_intervals(rows: Rows) -> tuple[Rows, list[str]]:
    """Returns the rows, and notes that explain what their intervals are over.

    A table may mix records with and without predictions. Its intervals are then of several kinds, and all but those of
    the first kind are marked.
    """
    present = {cell.over for cell in _cells(rows)}
    kinds = [kind for kind in INTERVALS if kind in present]
    return _marked(rows, lambda cell: cell.over if cell.over in kinds[1:] else ""), [INTERVALS[kind] for kind in kinds]


def _cells(rows: Rows) -> Iterator[Cell]:
    return (cell for cells in rows.values() for cell in cells.values())


def _marked(rows: Rows, mark: Callable[[Cell], str]) -> Rows:
    def marked(cell: Cell) -> Cell:
        return dataclasses.replace(cell, text=f"{cell.text} ({mark(cell)})") if mark(cell) else cell

    return {heading: {column: marked(cell) for column, cell in cells.items()} for heading, cells in rows.items()}


def teachers(observations: Iterable[Observation]) -> dict[str, float]:
    """The accuracy of each teacher in percent, by its fingerprint."""
    recorded = (observation.record["teacher"] for observation in observations)
    return {teacher["fingerprint"]: teacher["accuracy"] for teacher in recorded if teacher and "accuracy" in teacher}


def _caption(observations: Sequence[Observation], seeds: str) -> str:
    """A sentence on the training images, the evaluated images, the recipe and the seeds of a table."""
    datasets: dict[str, set[int]] = {}
    for dataset in (observation.record["dataset"] for observation in observations):
        images = f"{dataset['evaluated_images']} {dataset['evaluated']} images of {dataset['name']}"
        datasets.setdefault(f"{images} ({{}} training images, {dataset['classes']} classes)", set()).add(
            dataset["train_images"]
        )
    evaluated = "; ".join(text.format(span(images)) for text, images in datasets.items())
    recipes, epochs = (
        " and ".join(sorted({observation.record["student"][key] for observation in observations}))
        for key in ("recipe", "epoch")
    )
    count = len(teachers(observations))
    return (
        f"Accuracy in percent on {evaluated}. Recipe {recipes}, {epochs} epoch; "
        f"mean and standard deviation over {seeds}" + f", {plural(count, 'teacher')}" * bool(count) + "."
    )


def uniform(groups: Iterable[tuple[str, Sequence[Observation]]]) -> list[str]:
    """A note on the rows whose graph is a uniform average of the batch; an empty list if there are none."""
    rows: dict[str, list[str]] = {protocol.batch_order: [] for protocol in names.PROTOCOLS if protocol.batch_order}
    for heading, observations in groups:
        for order, headings in rows.items():
            entries = [
                item.entry for item in select(observations, graph=names.ON) if item.entry["batch_order"] == order
            ]
            count = sum(map(is_uniform, entries))
            if count:
                headings.append(f"{heading} ({count} of {len(entries)} students)")
    parts = [
        f"This was so in {order.replace('_', '-')} batches for: {'; '.join(headings)}."
        for order, headings in rows.items()
        if headings
    ]
    return [" ".join([UNIFORM, *parts])] if parts else []


def classes_a_batch(observations: Iterable[Observation]) -> str:
    """A sentence on how many classes a class-sorted batch holds, for classes of equal size."""
    counts: set[int] = set()
    for dataset, config in ((item.record["dataset"], item.record["config"]) for item in observations):
        images, classes = dataset["evaluated_images"], dataset["classes"]
        batches = -(-images // config["evaluate.batch_size"])
        fewest = math.ceil(classes / batches)
        aligned = classes % batches == 0 or batches % classes == 0
        even = aligned and images % classes == images % batches == 0
        counts |= {fewest} if even else {fewest, min(fewest + 1, classes)}
    return f" In these records, such a batch holds images of {span(counts)} class{'es' * (max(counts) > 1)}."
