"""Predicts the classes of new images with a trained student or an exported bundle.

python -m cnn2gnn_jax.predict --workdir=DIR IMAGE_OR_FOLDER... [--format=table|json|csv]
    [--neighbors=K] [--mechanism=auto|one_by_one|batch_by_batch|training_set] [--graph=learned|off|best]

`cnn2gnn-predict` is the same command.

Examples:

    cnn2gnn-predict --workdir=runs/my_images picture.jpg --neighbors=3
    cnn2gnn-predict --bundle=BUNDLE PICTURES --format=csv
"""

import csv
import functools
import io
import json
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags

from cnn2gnn_jax import gnn
from cnn2gnn_jax.data import batches
from cnn2gnn_jax.inference import BATCH_BY_BATCH, ONE_BY_ONE, TRAINING_SET
from cnn2gnn_jax.runtime import command_line
from cnn2gnn_jax.runtime.console import log
from cnn2gnn_jax.runtime.errors import UserError, printable
from cnn2gnn_jax.serving import bundle, graph_choice, links, trained
from cnn2gnn_jax.serving import mechanism as mechanisms
from cnn2gnn_jax.serving.pictures import Pictures, read_pictures
from cnn2gnn_jax.serving.trained import Trained

FORMATS = ("table", "json", "csv")
_BATCH_SIZE = 50  # it has no effect on the predictions, except batch by batch, where another one is used
_FORMULA_START = ("=", "+", "-", "@", "\t", "\r")


def student_predictions(
    student: Trained, pictures: Pictures, mechanism: str = ONE_BY_ONE, neighbors: int = 0
) -> list[dict[str, Any]]:
    """Predicts the classes of images with a student.

    Args:
      student: the student, with its bank for training_set.
      pictures: N images. Batch by batch, N must be greater than the sparsity; the images are divided into batches in a
        seeded random order.
      mechanism: see `trained.predict`.
      neighbors: the maximum number of neighbors to list for each image.

    Returns:
      For each image a dict with its file (`image`), the predicted `class` and its `probability`. If neighbors are
      requested, it also has the entries of `links.describe_neighbors`.

    Raises:
      UserError: there are too few images, or neighbors are requested of a student without a graph.
    """
    recorded, graph = student.recorded, student.model.graph
    if neighbors and mechanism != TRAINING_SET and graph in (None, "off"):
        advice = f", or give --mechanism={TRAINING_SET}" if "training_set" in recorded.config.evaluate else ""
        raise UserError(
            f"{recorded.workdir} holds a student without a graph, which has no neighbors: leave --neighbors out{advice}"
        )
    predict = jax.jit(functools.partial(trained.predict, student, mechanism=mechanism))
    rows: list[dict[str, Any]] = [{} for _ in pictures.names]
    for index, mask in zip(*_batches(student, len(pictures.names), mechanism), strict=True):
        prediction = jax.device_get(predict(pictures.pixels[index], mask=mask))
        batch = Pictures([pictures.names[position] for position in index[mask]], pictures.pixels[index[mask]])
        for k, position in enumerate(index[mask]):
            rows[position] = _row(batch.names[k], prediction.probabilities[k], recorded.classes)
            if neighbors:
                rows[position] |= links.describe_neighbors(student, batch, prediction, k, mechanism, neighbors)
    return rows


def _batches(student: Trained, count: int, mechanism: str) -> tuple[np.ndarray, np.ndarray]:
    """The indices and masks of the batches of `count` images, as `batches.evaluation_batches` returns them.

    Raises:
      UserError: there are too few images for the graph of a batch.
    """
    section, module = student.recorded.config.evaluate, student.model.module
    if mechanism != BATCH_BY_BATCH:
        # All batches are padded to the same size, so that a single program is compiled.
        indices, masks = batches.evaluation_batches(count, _BATCH_SIZE)
        padding = ((0, 0), (0, _BATCH_SIZE - indices.shape[1]))
        return np.pad(indices, padding, mode="edge"), np.pad(masks, padding)
    if not student.model.is_graph:
        return batches.evaluation_batches(count, _BATCH_SIZE)
    max_size = section.batch_size
    min_size = count // -(-count // max_size)
    if module.graph in gnn.SPARSE_GRAPHS and module.sparsity + 1 > min_size:
        raise UserError(
            f"batch_by_batch links each image to {module.sparsity} others: "
            f"found {count} images, expected at least {module.sparsity + 1} in each batch of up to {max_size}"
        )
    order = batches.shuffled_order(count, batches.order_seed(section, student.recorded.config.seed))
    return batches.evaluation_batches(count, max_size, order)


def bundle_predictions(opened: bundle.Bundle, pictures: Pictures) -> list[dict[str, Any]]:
    """Predicts the classes of images with a bundle. The result is that of `student_predictions`, without neighbors."""
    indices, masks = batches.evaluation_batches(len(pictures.names), min(_BATCH_SIZE, len(pictures.names)))
    predict = jax.jit(opened.call)
    parts = [np.asarray(predict(pictures.pixels[index]))[mask] for index, mask in zip(indices, masks, strict=True)]
    probabilities = np.concatenate(parts)
    return [_row(name, row, opened.classes) for name, row in zip(pictures.names, probabilities, strict=True)]


def _row(name: str, probabilities: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    best = int(np.argmax(probabilities))
    return {"image": name, "class": classes[best], "probability": float(probabilities[best])}


def format_table(rows: Sequence[dict[str, Any]]) -> str:
    """Formats predictions for a terminal, a line for each image, followed by a line for each of its neighbors."""
    width = max(len(printable(row["image"])) for row in rows)
    class_width = max(len(printable(row["class"])) for row in rows)
    lines = []
    for row in rows:
        lines.append(
            f"{printable(row['image']):{width}}  {printable(row['class']):{class_width}}  {row['probability']:.4f}"
        )
        if "self_weight" in row:
            lines.append(f"    {row['self_weight']:.4f}  itself")
        for link in row.get("neighbors", ()):
            lines.append(f"    {link['weight']:.4f}  {_format_link(link)}")
    return "\n".join(lines)


def _format_link(link: dict[str, Any]) -> str:
    """Formats a neighbor: a training image, or an image of the batch and the training image nearest to it."""
    if "index" not in link:
        return printable(link["image"])
    file = link["nearest_image"] if "nearest_image" in link else link.get("image")
    name = f"training image {link['index']}" if file is None else file
    training_image = f"{printable(name)}, {printable(link['class'])}"
    return f"{printable(link['image'])}, nearest to {training_image}" if "nearest_image" in link else training_image


def format_csv(rows: Sequence[dict[str, Any]]) -> str:
    """Formats predictions as CSV, a line for each image.

    Text that a spreadsheet would take for a formula is preceded by a single quote.
    """
    max_neighbors = max(len(row.get("neighbors", ())) for row in rows)
    has_nearest = any("nearest_image" in link for row in rows for link in row.get("neighbors", ()))
    fields = ("image", *(["nearest_image"] if has_nearest else []), "class", "index", "weight")
    header = ["image", "class", "probability", *(["self_weight"] if "self_weight" in rows[0] else [])]
    header += [f"neighbor_{k}_{field}" for k in range(1, max_neighbors + 1) for field in fields]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for row in rows:
        cells = [row["image"], row["class"], f"{row['probability']:.6f}"]
        if "self_weight" in row:
            cells.append(f"{row['self_weight']:.6f}")
        for link in row.get("neighbors", ()):
            values = {**link, "weight": f"{link['weight']:.6f}"}
            cells += ["" if values.get(field) is None else str(values[field]) for field in fields]
        cells += [""] * (len(header) - len(cells))
        writer.writerow([f"'{cell}" if cell.startswith(_FORMULA_START) else cell for cell in cells])
    return text.getvalue().rstrip("\n")


_FORMATTERS: dict[str, Callable[[Sequence[dict[str, Any]]], str]] = {
    "table": format_table,
    "json": lambda rows: json.dumps(rows, indent=1),
    "csv": format_csv,
}


def _flags() -> tuple[flags.FlagValues, list[pathlib.Path]]:
    """Parses the command line into the flags and the paths of the images and folders."""
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "the workdir of a finished run", flag_values=values)
    flags.DEFINE_string("bundle", None, "a bundle made by cnn2gnn_jax.export, instead of a workdir", flag_values=values)
    flags.mark_flags_as_mutual_exclusive(["workdir", "bundle"], required=True, flag_values=values)
    flags.DEFINE_enum("format", FORMATS[0], FORMATS, "the output format", flag_values=values)
    flags.DEFINE_integer("neighbors", 0, "the number of neighbors to print for each image", flag_values=values)
    flags.DEFINE_enum("mechanism", mechanisms.AUTO, mechanisms.CHOICES, mechanisms.HELP, flag_values=values)
    flags.DEFINE_enum("graph", None, graph_choice.CHOICES, graph_choice.HELP, flag_values=values)
    flags.DEFINE_bool("skip_unreadable", False, "skip files that are not images, and name them", flag_values=values)
    paths = command_line.parse(values, __doc__, positional="IMAGE_OR_FOLDER")
    if values.neighbors < 0:
        raise UserError(f"--neighbors is {values.neighbors}: expected 0 or more")
    return values, [pathlib.Path(path) for path in paths]


def main() -> None:
    """Parses the command line and prints the predictions."""
    values, paths = _flags()
    if values.bundle is not None:
        if values.neighbors or values.mechanism != mechanisms.AUTO or values.graph is not None:
            raise UserError(
                "a bundle predicts with the mechanism and graph that it was exported with, and shows no neighbors: "
                "give --workdir for --mechanism, --neighbors and --graph"
            )
        opened = bundle.read(pathlib.Path(values.bundle))
        pictures = read_pictures(paths, opened.image_shape, values.skip_unreadable)
        log(f"mechanism {opened.facts.get('mechanism', ONE_BY_ONE)}: the bundle was exported with it")
        rows = bundle_predictions(opened, pictures)
    else:
        student = trained.open_student(pathlib.Path(values.workdir), values.graph or graph_choice.CHOICES[0])
        with_training_set = values.mechanism in (mechanisms.AUTO, TRAINING_SET)
        graph_choice.warn_of_better(student.recorded, student.model.graph, with_training_set)
        served = mechanisms.choose(student, values.mechanism)
        pictures = read_pictures(paths, student.recorded.image_shape, values.skip_unreadable)
        log(f"mechanism {served.mechanism}: {served.reason}")
        rows = student_predictions(served.student, pictures, served.mechanism, values.neighbors)
    sys.stdout.write(_FORMATTERS[values.format](rows) + "\n")


def run() -> None:
    """Runs the command. Mistakes of the user end in one line, see `command_line.run`."""
    command_line.run(main)


if __name__ == "__main__":
    run()
