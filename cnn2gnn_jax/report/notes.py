"""What stands under tables: of which images and seeds they are, what intervals are over, which graphs are uniform."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

from cnn2gnn_jax.report import names
from cnn2gnn_jax.report.cells import Cell, Rows, Table
from cnn2gnn_jax.report.names import plural, span
from cnn2gnn_jax.report.observations import Observation, select
from cnn2gnn_jax.report.statistics import BOTH, IMAGES, SEEDS, is_uniform

INTERVALS = {
    BOTH: "95% intervals are over seeds and images, by a paired bootstrap of both, and nowhere narrower than Student's "
    "over the seeds. The students share a teacher, whose own chance is left out.",
    IMAGES: "95% intervals of a single seed are over images alone, by a paired bootstrap.",
    SEEDS: "95% intervals are Student's, over seeds alone: this record keeps no predictions, and the chance of the "
    "images is left out.",
}
UNIFORM = (
    "Uniform: one training image was the nearest of (almost) every whole batch, so that Mechanism 2 weighed all images "
    "of the batch alike, and the figure contains no learned structure"
)
AUDIT = (
    "Class-sorted batches hold test images of few classes, as a folder of images read in order gives them; "
    "a graph over such a batch links images that share their label, whatever the head has learned. "
    "Averaging over them passes the batch's common answer on to every image, so accuracy can soar by the order of the "
    "files and not by the student. "
    "The figure is therefore an audit of how much a batch order can leak, never an accuracy: what a graph is worth is "
    "its shuffled or one-by-one figure less that of the same student trained and tested without a graph."
)


def captioned(observations: Sequence[Observation], rows: Rows, remarks: Iterable[str]) -> Table:
    """The table of one name, under it a caption and remarks."""
    counted, seeds = mark_seeds(rows)
    body, over = mark_intervals(counted)
    place = observations[0].place
    return Table(place["name"], body, [_caption(observations, seeds), *over, *remarks], place["kind"])


def mark_seeds(rows: Rows) -> tuple[Rows, str]:
    """The rows with the seeds of those cells that have fewer than others, and the seeds of the others in words."""
    seeds = {cell.n for cell in _cells(rows) if cell.n}
    most = max(seeds, default=0)
    marked = _marked(rows, lambda cell: f"n = {cell.n}" if cell.n and cell.n < most else "")
    return marked, plural(most, "seed") + ", unless n is given," * (len(seeds) > 1)


def mark_intervals(rows: Rows) -> tuple[Rows, list[str]]:
    """The rows, and notes that say what their intervals are over.

    A table may hold records with predictions beside earlier ones without, whose intervals are marked.
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
    """Test accuracy by teacher."""
    recorded = (observation.record["teacher"] for observation in observations)
    return {teacher["fingerprint"]: teacher["accuracy"] for teacher in recorded if teacher and "accuracy" in teacher}


def _caption(observations: Sequence[Observation], seeds: str) -> str:
    """What was trained on, what was evaluated on, and how, of all records of a table."""
    datasets: dict[str, set[int]] = {}
    for dataset in (observation.record["dataset"] for observation in observations):
        images = f"{dataset['evaluated_images']} {dataset['evaluated']} images of {dataset['name']}"
        datasets.setdefault(f"{images} ({{}} training images, {dataset['classes']} classes)", set()).add(
            dataset["train_images"]
        )
    where = "; ".join(text.format(span(images)) for text, images in datasets.items())
    recipes, epochs = (
        " and ".join(sorted({observation.record["student"][key] for observation in observations}))
        for key in ("recipe", "epoch")
    )
    count = len(teachers(observations))
    return (
        f"Accuracy in percent on {where}. Recipe {recipes}, {epochs} epoch; mean and deviation over {seeds}"
        + f", {plural(count, 'teacher')}" * bool(count)
        + "."
    )


def uniform(groups: Iterable[tuple[str, Sequence[Observation]]]) -> list[str]:
    """A note that names the rows whose graph is a uniform average of the batch; none where there are none."""
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
        f"in {order.replace('_', '-')} batches, {'; '.join(headings)}" for order, headings in rows.items() if headings
    ]
    return [f"{UNIFORM}: {', and '.join(parts)}."] if parts else []


def classes_a_batch(observations: Iterable[Observation]) -> str:
    """A sentence that tells how many classes a class-sorted batch of the records holds, if these are of equal size."""
    counts: set[int] = set()
    for dataset, config in ((item.record["dataset"], item.record["config"]) for item in observations):
        images, classes = dataset["evaluated_images"], dataset["classes"]
        batches = -(-images // config["evaluate.batch_size"])
        least = math.ceil(classes / batches)
        aligned = classes % batches == 0 or batches % classes == 0
        even = aligned and images % classes == images % batches == 0
        counts |= {least} if even else {least, min(least + 1, classes)}
    return f" Here such a batch holds images of {span(counts)} class{'es' * (max(counts) > 1)}."
