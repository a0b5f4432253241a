"""Classifies new images with a trained student or an exported bundle.

python -m cnn2gnn_jax.predict --workdir=DIR IMAGE_OR_FOLDER... [--format=table|json|csv]
    [--neighbors=K] [--mechanism=auto|one_by_one|batch_by_batch|training_set] [--graph=learned|off|best]

`cnn2gnn-predict` is the same command.

Examples:

    cnn2gnn-predict --workdir=runs/mine picture.jpg --neighbors=3
    cnn2gnn-predict --bundle=BUNDLE PICTURES --format=csv
"""

import csv
import functools
import io
import itertools
import json
import pathlib
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags

from cnn2gnn_jax import gnn
from cnn2gnn_jax.data import batches
from cnn2gnn_jax.inference import MECHANISMS, TRAINING_SET
from cnn2gnn_jax.runtime import command_line
from cnn2gnn_jax.runtime.console import log
from cnn2gnn_jax.runtime.errors import UserError, printable
from cnn2gnn_jax.serving import bundle, graph_choice, trained, training_images
from cnn2gnn_jax.serving import mechanism as mechanisms
from cnn2gnn_jax.serving.pictures import Pictures, read_pictures
from cnn2gnn_jax.serving.trained import Trained

FORMATS = ("table", "json", "csv")
_BATCH = 50  # images in a call, where predictions do not depend on the batch
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def by_student(
    student: Trained, pictures: Pictures, mechanism: str = MECHANISMS[0], neighbors: int = 0
) -> list[dict[str, Any]]:
    """Classifies images with a student.

    Args:
      student: the student, with its bank for training_set.
      pictures: N images; batch_by_batch takes them in batches, in a seeded order.
      mechanism: see `trained.answer`.
      neighbors: the largest number of neighbours of an image.

    Returns:
      For each image `image`, `class` and `probability`; with neighbours also `neighbors`, strongest first, and except
      for training_set `self_weight`. The weights are the image's row of A with its self-loop, scaled to sum to 1; for
      training_set they are those of Eq. 3. A neighbour has these keys:
        one_by_one: of an anchor its `class`, `index` in the training set and `weight`; its file as `image` if the
          data set is an image folder.
        training_set: the same, of a training image.
        batch_by_batch: of another image of the batch its `image` and `weight`; if the graph has a head, also the
          `class`, `index` and file (`nearest_image`) of its nearest anchor.

    Raises:
      UserError: there are too few images; or neighbours of a student without a graph are requested.
    """
    recorded, model = student.recorded, student.model
    if neighbors and mechanism != TRAINING_SET and model.graph in (None, "off"):
        other = ", or give --mechanism=training_set" if "training_set" in recorded.config.evaluate else ""
        raise UserError(f"{recorded.workdir} holds a student without a graph: ask for no neighbours{other}")
    indices, masks = _batches(student, len(pictures.names), mechanism)
    classify = jax.jit(functools.partial(trained.answer, student, mechanism=mechanism))
    rows: list[dict[str, Any]] = [{} for _ in pictures.names]
    for index, mask in zip(indices, masks, strict=True):
        answer = jax.device_get(classify(pictures.pixels[index], mask=mask))
        names = [pictures.names[position] for position in index[mask]]
        for k, position in enumerate(index[mask]):
            rows[position] = _row(names[k], answer.probabilities[k], recorded.classes)
            if neighbors and answer.neighbors is not None:
                row = jax.tree.map(lambda array, k=k: array[k], answer.neighbors)
                nearest = training_images.links(student, pictures.pixels[position], row)
                rows[position]["neighbors"] = list(itertools.islice(nearest, neighbors))
            elif neighbors:
                one_by_one = mechanism == MECHANISMS[0]
                links = _anchors(student, answer, k) if one_by_one else _batch(student, names, answer, k)
                own = [weights[k, -1 if one_by_one else k] for weights in answer.links]
                rows[position]["self_weight"] = float(np.mean(own))
                rows[position]["neighbors"] = sorted(links, key=lambda link: -link["weight"])[:neighbors]
    return rows


def _batches(student: Trained, count: int, mechanism: str) -> tuple[np.ndarray, np.ndarray]:
    """The batches of `count` images, as `batches.evaluation_batches` returns them.

    Raises:
      UserError: a batch has too few images for its graph.
    """
    section, module = student.recorded.config.evaluate, student.model.module
    if mechanism != "batch_by_batch":  # all of the same size, so that one program is compiled
        indices, masks = batches.evaluation_batches(count, _BATCH)
        missing = ((0, 0), (0, _BATCH - indices.shape[1]))
        return np.pad(indices, missing, mode="edge"), np.pad(masks, missing)
    if not student.model.is_graph:
        return batches.evaluation_batches(count, _BATCH)
    size, smallest = section.batch_size, count // -(-count // section.batch_size)
    if module.graph in gnn.SPARSE_GRAPHS and module.sparsity + 1 > smallest:
        raise UserError(
            f"batch_by_batch links each image to {module.sparsity} others: "
            f"found {count} images, expected at least {module.sparsity + 1} in each batch of up to {size}"
        )
    order = batches.shuffled_order(count, batches.order_seed(section, student.recorded.config.seed))
    return batches.evaluation_batches(count, size, order)


def by_bundle(opened: bundle.Bundle, pictures: Pictures) -> list[dict[str, Any]]:
    """Classifies images with a bundle. Returns what `by_student` returns, without neighbours."""
    indices, masks = batches.evaluation_batches(len(pictures.names), min(_BATCH, len(pictures.names)))
    call = jax.jit(opened.call)
    parts = [np.asarray(call(pictures.pixels[index]))[mask] for index, mask in zip(indices, masks, strict=True)]
    return [
        _row(name, probabilities, opened.classes)
        for name, probabilities in zip(pictures.names, np.concatenate(parts), strict=True)
    ]


def _row(name: str, probabilities: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    best = int(np.argmax(probabilities))
    return {"image": name, "class": classes[best], "probability": float(probabilities[best])}


def _anchors(student: Trained, answer: trained.Answer, k: int) -> Iterable[dict[str, Any]]:
    """Yields the anchors to which image k of a batch is linked."""
    anchors = student.recorded.anchors
    assert anchors is not None
    for batch, links in enumerate(answer.links):
        for column in np.flatnonzero(np.asarray(links[k, :-1]) > 0):
            file = _file(anchors, batch, int(column))
            yield {
                **({} if file is None else {"image": file}),
                "class": student.recorded.classes[int(anchors["labels"][batch, column])],
                "index": int(anchors["index"][batch, column]),
                "weight": float(links[k, column]) / len(answer.links),
            }


def _file(anchors: dict[str, np.ndarray], batch: int, column: int) -> str | None:
    """The file of an anchor; None if the data set is not an image folder."""
    return str(anchors["files"][batch, column]) if "files" in anchors else None


def _batch(student: Trained, names: Sequence[str], answer: trained.Answer, k: int) -> Iterable[dict[str, Any]]:
    """Yields the images of a batch to which image k is linked."""
    anchors = student.recorded.anchors
    assert anchors is not None
    for column, name in enumerate(names):
        weight = float(np.mean([links[k, column] for links in answer.links]))
        if column != k and weight > 0:
            link: dict[str, Any] = {"image": name, "weight": weight}
            if (nearest := int(answer.nearest[0][column])) >= 0:
                link |= {
                    "class": student.recorded.classes[int(anchors["labels"][0, nearest])],
                    "index": int(anchors["index"][0, nearest]),
                    "nearest_image": _file(anchors, 0, nearest),
                }
            yield link


def as_table(rows: Sequence[dict[str, Any]]) -> str:
    """Formats predictions for a terminal, with the neighbours of each image below it."""
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
            lines.append(f"    {link['weight']:.4f}  {_link(link)}")
    return "\n".join(lines)


def _link(link: dict[str, Any]) -> str:
    """Formats a neighbour: a training image, or an image of the batch with its nearest anchor."""
    if "index" not in link:
        return printable(link["image"])
    file = link["nearest_image"] if "nearest_image" in link else link.get("image")
    name = f"training image {link['index']}" if file is None else file
    training_image = f"{printable(name)}, {printable(link['class'])}"
    return f"{printable(link['image'])}, nearest to {training_image}" if "nearest_image" in link else training_image


def as_csv(rows: Sequence[dict[str, Any]]) -> str:
    """Formats predictions as CSV, one line for each image. Text that looks like a formula gets a leading quote."""
    count = max(len(row.get("neighbors", ())) for row in rows)
    links = [link for row in rows for link in row.get("neighbors", ())]
    nearest = ("nearest_image",) if any("nearest_image" in link for link in links) else ()
    fields = ("image", *nearest, "class", "index", "weight")
    header = ["image", "class", "probability", *(["self_weight"] if "self_weight" in rows[0] else [])]
    header += [f"neighbor_{k}_{field}" for k in range(1, count + 1) for field in fields]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    for row in rows:
        cells = [row["image"], row["class"], f"{row['probability']:.6f}"]
        if "self_weight" in row:
            cells.append(f"{row['self_weight']:.6f}")
        for link in row.get("neighbors", ()):
            values = {**link, "weight": f"{link['weight']:.6f}"}
            cells += ["" if values.get(field) is None else str(values[field]) for field in fields]
        cells += [""] * (len(header) - len(cells))
        writer.writerow([f"'{cell}" if cell.startswith(_FORMULA_STARTS) else cell for cell in cells])
    return out.getvalue().rstrip("\n")


_WRITERS: dict[str, Callable[[Sequence[dict[str, Any]]], str]] = {
    "table": as_table,
    "json": lambda rows: json.dumps(rows, indent=1),
    "csv": as_csv,
}


def _flags() -> tuple[flags.FlagValues, list[pathlib.Path]]:
    """Parses the command line: the flags, and the paths of images and folders."""
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "the workdir of a finished run", flag_values=values)
    flags.DEFINE_string("bundle", None, "a folder made by cnn2gnn_jax.export, instead of a workdir", flag_values=values)
    flags.mark_flags_as_mutual_exclusive(["workdir", "bundle"], required=True, flag_values=values)
    flags.DEFINE_enum("format", FORMATS[0], FORMATS, "the format of the predictions", flag_values=values)
    flags.DEFINE_integer(
        "neighbors", 0, "the number of neighbours to show for each image, strongest first", flag_values=values
    )
    flags.DEFINE_enum("mechanism", mechanisms.AUTO, mechanisms.CHOICES, mechanisms.HELP, flag_values=values)
    flags.DEFINE_enum("graph", None, graph_choice.CHOICES, graph_choice.HELP, flag_values=values)
    flags.DEFINE_bool(
        "skip_unreadable", False, "skip files that cannot be read, and log their names", flag_values=values
    )
    paths = command_line.parse(values, __doc__, positional="IMAGE_OR_FOLDER")
    if values.neighbors < 0:
        raise UserError(f"--neighbors is {values.neighbors}: expected 0 or more")
    return values, [pathlib.Path(path) for path in paths]


def main() -> None:
    """Reads the command line, and prints the predictions."""
    values, paths = _flags()
    if values.bundle is not None:
        if values.neighbors or values.mechanism != mechanisms.AUTO or values.graph is not None:
            raise UserError(
                "a bundle answers as it was exported, without neighbours: "
                "give --workdir for --mechanism, --neighbors and --graph"
            )
        opened = bundle.read(pathlib.Path(values.bundle))
        pictures = read_pictures(paths, opened.image_shape, values.skip_unreadable)
        log(f"mechanism {opened.facts.get('mechanism', MECHANISMS[0])}: as the bundle was exported")
        rows = by_bundle(opened, pictures)
    else:
        student = trained.open_student(pathlib.Path(values.workdir), values.graph or graph_choice.CHOICES[0])
        with_training_set = values.mechanism not in MECHANISMS
        graph_choice.warn_of_better(student.recorded, student.model.graph, with_training_set)
        served = mechanisms.choose(student, values.mechanism)
        pictures = read_pictures(paths, student.recorded.image_shape, values.skip_unreadable)
        log(f"mechanism {served.mechanism}: {served.reason}")
        rows = by_student(served.student, pictures, served.mechanism, values.neighbors)
    sys.stdout.write(_WRITERS[values.format](rows) + "\n")


def run() -> None:
    """The entry point of the command; see `command_line.run`."""
    command_line.run(main)


if __name__ == "__main__":
    run()
