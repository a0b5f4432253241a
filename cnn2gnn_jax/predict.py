"""Classes of new images, by a trained student or by an exported bundle.

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
from cnn2gnn_jax.runtime import command_line
from cnn2gnn_jax.runtime.console import log
from cnn2gnn_jax.runtime.errors import UserError, printable
from cnn2gnn_jax.serving import bundle, graph_choice, trained, training_images
from cnn2gnn_jax.serving import mechanism as mechanisms
from cnn2gnn_jax.serving.pictures import Pictures, read_pictures
from cnn2gnn_jax.serving.trained import Trained

FORMATS = ("table", "json", "csv")
_BATCH = 50  # images in a call of Mechanism 1, whose answers do not depend on it
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def by_student(
    student: Trained, pictures: Pictures, mechanism: str = trained.MECHANISMS[0], neighbors: int = 0
) -> list[dict[str, Any]]:
    """A student's answers: `image`, `class` and `probability`, and the `neighbors` if asked for.

    Args:
      student: as opened, with its bank for training_set.
      pictures: N images, more than the sparsity for batch_by_batch, which takes them in batches in a seeded order.
      mechanism: see `trained.answer`.
      neighbors: how many at most, strongest first. Under one_by_one they are anchors, each with its `class`, the
        `index` of the training image, of an image folder its file as `image`, and its `weight`; under training_set
        likewise the nearest of all training images; under batch_by_batch the other images of the batch, with the class
        and index of their nearest anchor and its file as `nearest_image` where the graph has a head. Weights are the
        image's row of A, its self-loop included, scaled to sum to 1; under training_set they are those of Eq. 3, and
        there is no `self_weight`.

    Raises:
      UserError: too few images, or neighbours of a student without a graph.
    """
    recorded, model = student.recorded, student.model
    if neighbors and mechanism != trained.TRAINING_SET and model.graph in (None, "off"):
        other = ", or give --mechanism=training_set" if "training_set" in recorded.config.evaluate else ""
        raise UserError(f"{recorded.workdir} holds a student without a graph: ask for no neighbours{other}")
    indices, masks = _batches(student, len(pictures.names), mechanism)
    ask = jax.jit(functools.partial(trained.answer, student, mechanism=mechanism))
    rows: list[dict[str, Any]] = [{} for _ in pictures.names]
    for index, mask in zip(indices, masks, strict=True):
        found = jax.device_get(ask(pictures.pixels[index], mask=mask))
        names = [pictures.names[position] for position in index[mask]]
        for k, position in enumerate(index[mask]):
            rows[position] = _row(names[k], found.probabilities[k], recorded.classes)
            if neighbors and found.neighbors is not None:
                row = jax.tree.map(lambda array, k=k: array[k], found.neighbors)
                nearest = training_images.links(student, pictures.pixels[position], row)
                rows[position]["neighbors"] = list(itertools.islice(nearest, neighbors))
            elif neighbors:
                one_by_one = mechanism == "one_by_one"
                links = _anchors(student, found, k) if one_by_one else _batch(student, names, found, k)
                own = [weights[k, -1 if one_by_one else k] for weights in found.links]
                rows[position]["self_weight"] = float(np.mean(own))
                rows[position]["neighbors"] = sorted(links, key=lambda link: -link["weight"])[:neighbors]
    return rows


def _batches(student: Trained, count: int, mechanism: str) -> tuple[np.ndarray, np.ndarray]:
    """The batches in which `count` images are answered, as `batches.evaluation_batches` has them.

    Raises:
      UserError: too few images for the graph of a batch.
    """
    section, module = student.recorded.config.evaluate, student.model.module
    if mechanism != "batch_by_batch":  # always of one size, so that one program serves
        indices, masks = batches.evaluation_batches(count, _BATCH)
        missing = ((0, 0), (0, _BATCH - indices.shape[1]))
        return np.pad(indices, missing, mode="edge"), np.pad(masks, missing)
    if not student.model.is_graph:
        return batches.evaluation_batches(count, _BATCH)
    size, least = section.batch_size, count // -(-count // section.batch_size)
    if module.graph in gnn.SPARSE_GRAPHS and module.sparsity + 1 > least:
        raise UserError(
            f"batch_by_batch links each image to {module.sparsity} others: "
            f"found {count} images, expected at least {module.sparsity + 1} in each batch of up to {size}"
        )
    order = batches.shuffled_order(count, batches.order_seed(section, student.recorded.config.seed))
    return batches.evaluation_batches(count, size, order)


def by_bundle(opened: bundle.Bundle, pictures: Pictures) -> list[dict[str, Any]]:
    """A bundle's answers, as those of `by_student`."""
    indices, masks = batches.evaluation_batches(len(pictures.names), min(_BATCH, len(pictures.names)))
    ask = jax.jit(opened.call)
    parts = [np.asarray(ask(pictures.pixels[index]))[mask] for index, mask in zip(indices, masks, strict=True)]
    return [
        _row(name, found, opened.classes) for name, found in zip(pictures.names, np.concatenate(parts), strict=True)
    ]


def _row(name: str, probabilities: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    best = int(np.argmax(probabilities))
    return {"image": name, "class": classes[best], "probability": float(probabilities[best])}


def _anchors(student: Trained, found: trained.Answer, k: int) -> Iterable[dict[str, Any]]:
    """The anchors that image k of a batch is linked to."""
    anchors = student.recorded.anchors
    assert anchors is not None
    for batch, links in enumerate(found.links):
        for column in np.flatnonzero(np.asarray(links[k, :-1]) > 0):
            file = _file(anchors, batch, int(column))
            yield {
                **({} if file is None else {"image": file}),
                "class": student.recorded.classes[int(anchors["labels"][batch, column])],
                "index": int(anchors["index"][batch, column]),
                "weight": float(links[k, column]) / len(found.links),
            }


def _file(anchors: dict[str, np.ndarray], batch: int, column: int) -> str | None:
    """The file of an anchor, None where the data set has none."""
    return str(anchors["files"][batch, column]) if "files" in anchors else None


def _batch(student: Trained, names: Sequence[str], found: trained.Answer, k: int) -> Iterable[dict[str, Any]]:
    """The images of a batch, called `names`, that image k is linked to."""
    anchors = student.recorded.anchors
    assert anchors is not None
    for column, name in enumerate(names):
        weight = float(np.mean([links[k, column] for links in found.links]))
        if column != k and weight > 0:
            link: dict[str, Any] = {"image": name, "weight": weight}
            if (nearest := int(found.nearest[0][column])) >= 0:
                link |= {
                    "class": student.recorded.classes[int(anchors["labels"][0, nearest])],
                    "index": int(anchors["index"][0, nearest]),
                    "nearest_image": _file(anchors, 0, nearest),
                }
            yield link


def as_table(rows: Sequence[dict[str, Any]]) -> str:
    """The answers for a terminal; under each image the neighbours that it was linked to."""
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
    """A neighbour for a terminal: a training image, or an image of the batch and the training image nearest to it."""
    if "index" not in link:
        return printable(link["image"])
    file = link["nearest_image"] if "nearest_image" in link else link.get("image")
    name = f"training image {link['index']}" if file is None else file
    training_image = f"{printable(name)}, {printable(link['class'])}"
    return f"{printable(link['image'])}, nearest to {training_image}" if "nearest_image" in link else training_image


def as_csv(rows: Sequence[dict[str, Any]]) -> str:
    """The answers as CSV, a line an image; text that a spreadsheet would take for a formula begins with a quote."""
    most = max(len(row.get("neighbors", ())) for row in rows)
    links = [link for row in rows for link in row.get("neighbors", ())]
    nearest = ("nearest_image",) if any("nearest_image" in link for link in links) else ()
    fields = ("image", *nearest, "class", "index", "weight")
    header = ["image", "class", "probability", *(["self_weight"] if "self_weight" in rows[0] else [])]
    header += [f"neighbor_{k}_{field}" for k in range(1, most + 1) for field in fields]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    for row in rows:
        cells = [row["image"], row["class"], f"{row['probability']:.6f}"]
        if "self_weight" in row:
            cells.append(f"{row['self_weight']:.6f}")
        for link in row.get("neighbors", ()):
            texts = {**link, "weight": f"{link['weight']:.6f}"}
            cells += ["" if texts.get(field) is None else str(texts[field]) for field in fields]
        cells += [""] * (len(header) - len(cells))
        writer.writerow([f"'{cell}" if cell.startswith(_FORMULA) else cell for cell in cells])
    return out.getvalue().rstrip("\n")


_WRITERS: dict[str, Callable[[Sequence[dict[str, Any]]], str]] = {
    "table": as_table,
    "json": lambda rows: json.dumps(rows, indent=1),
    "csv": as_csv,
}


def _flags() -> tuple[flags.FlagValues, list[pathlib.Path]]:
    """The flags, and the images and folders."""
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "the workdir of a finished run", flag_values=values)
    flags.DEFINE_string("bundle", None, "a folder made by cnn2gnn_jax.export, instead of a workdir", flag_values=values)
    flags.mark_flags_as_mutual_exclusive(["workdir", "bundle"], required=True, flag_values=values)
    flags.DEFINE_enum("format", FORMATS[0], FORMATS, "of the answers", flag_values=values)
    flags.DEFINE_integer("neighbors", 0, "show so many of each image's strongest links", flag_values=values)
    flags.DEFINE_enum("mechanism", mechanisms.AUTO, mechanisms.CHOICES, mechanisms.HELP, flag_values=values)
    flags.DEFINE_enum("graph", None, graph_choice.CHOICES, graph_choice.HELP, flag_values=values)
    flags.DEFINE_bool("skip_unreadable", False, "leave out, with a line each, what is no image", flag_values=values)
    paths = command_line.parse(values, __doc__, positional="IMAGE_OR_FOLDER")
    if values.neighbors < 0:
        raise UserError(f"--neighbors is {values.neighbors}: expected 0 or more")
    return values, [pathlib.Path(path) for path in paths]


def main() -> None:
    """Reads the command line, prints the answers."""
    values, paths = _flags()
    if values.bundle is not None:
        if values.neighbors or values.mechanism != mechanisms.AUTO or values.graph is not None:
            raise UserError(
                "a bundle answers as it was exported, without its neighbours: "
                "give --workdir for --mechanism, --neighbors and --graph"
            )
        opened = bundle.read(pathlib.Path(values.bundle))
        pictures = read_pictures(paths, opened.image_shape, values.skip_unreadable)
        log(f"mechanism {opened.facts.get('mechanism', trained.MECHANISMS[0])}: as the bundle was exported")
        rows = by_bundle(opened, pictures)
    else:
        student = trained.open_student(pathlib.Path(values.workdir), values.graph or graph_choice.CHOICES[0])
        with_training_set = values.mechanism not in trained.MECHANISMS
        graph_choice.warn_of_better(student.recorded, student.model.graph, with_training_set)
        served = mechanisms.choose(student, values.mechanism)
        pictures = read_pictures(paths, student.recorded.image_shape, values.skip_unreadable)
        log(f"mechanism {served.mechanism}: {served.reason}")
        rows = by_student(served.student, pictures, served.mechanism, values.neighbors)
    sys.stdout.write(_WRITERS[values.format](rows) + "\n")


def run() -> None:
    """The program: what a user can mend ends in one line, see `command_line.run`."""
    command_line.run(main)


if __name__ == "__main__":
    run()
