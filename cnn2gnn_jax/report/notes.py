"""What stands under the tables: what intervals are over, which graphs are uniform, what class-sorted batches are."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from cnn2gnn_jax.report.statistics import BOTH, IMAGES, SEEDS, is_uniform

if TYPE_CHECKING:
    from cnn2gnn_jax.report.tables import Cell, Observation, Rows

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


def intervals(rows: Rows) -> tuple[list[tuple[str, list[Cell]]], list[str]]:
    """The rows, and notes that say what their intervals are over.

    A table may hold records with predictions beside earlier ones without, whose intervals are marked.
    """
    kinds = {cell.over for _, line in rows for cell in line if cell.over}
    fullest = next((kind for kind in INTERVALS if kind in kinds), "")

    def marked(cell: Cell) -> Cell:
        if cell.over in ("", fullest):
            return cell
        return dataclasses.replace(cell, text=f"{cell.text} ({cell.over})")

    return [(heading, list(map(marked, line))) for heading, line in rows], [
        note for kind, note in INTERVALS.items() if kind in kinds
    ]


def uniform(groups: Iterable[tuple[str, Sequence[Observation]]]) -> list[str]:
    """A note that names the rows whose graph is a uniform average of the batch; none where there are none."""
    rows: dict[str, list[str]] = {"shuffled": [], "class_sorted": []}
    for heading, seen in groups:
        for order, named in rows.items():
            entries = [one.entry for one in seen if one.entry["batch_order"] == order]
            of = [entry for entry in entries if entry["graph"] not in (None, "off", "off_at_test")]
            count = sum(map(is_uniform, of))
            if count:
                named.append(f"{heading} ({count} of {len(of)} students)")
    parts = [f"in {order.replace('_', '-')} batches, {'; '.join(named)}" for order, named in rows.items() if named]
    return [f"{UNIFORM}: {', and '.join(parts)}."] if parts else []


def classes_a_batch(groups: Iterable[Sequence[Observation]]) -> str:
    """A sentence that tells how many classes a class-sorted batch of the records holds, if these are of equal size."""
    counts: set[int] = set()
    for dataset, config in ((one.record["dataset"], one.record["config"]) for seen in groups for one in seen):
        images, classes = dataset["evaluated_images"], dataset["classes"]
        batches = -(-images // config["evaluate.batch_size"])
        least = math.ceil(classes / batches)
        aligned = classes % batches == 0 or batches % classes == 0
        even = aligned and images % classes == images % batches == 0
        counts |= {least} if even else {least, min(least + 1, classes)}
    low, high = min(counts), max(counts)
    return f" Here such a batch holds images of {low if low == high else f'{low} to {high}'} class{'es' * (high > 1)}."
