"""Exports a trained student as a serving bundle, and compares its size and latency with its teacher's.

python -m cnn2gnn_jax.export --workdir=DIR --out=BUNDLE [--graph=learned|off|best]
    [--mechanism=auto|one_by_one|training_set] [--bank=N] [--bank_selection=balanced|useful]

`cnn2gnn-export` is the same command.

Examples:

    cnn2gnn-export --workdir=runs/mine --out=BUNDLE
    cnn2gnn-export --workdir=runs/mine --out=BUNDLE --bank=1000
"""

import pathlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags
from jax import export

from cnn2gnn_jax import config
from cnn2gnn_jax.evaluation import thinning
from cnn2gnn_jax.evaluation.thinning import Selection
from cnn2gnn_jax.inference import MECHANISMS, TRAINING_SET
from cnn2gnn_jax.runtime import command_line
from cnn2gnn_jax.runtime.console import log
from cnn2gnn_jax.runtime.errors import UserError
from cnn2gnn_jax.serving import bundle, graph_choice, trained
from cnn2gnn_jax.serving import mechanism as mechanisms
from cnn2gnn_jax.serving.trained import Trained

SIZES = (1, 100)  # numbers of images in a timed call
_REPEATS = 30
_MECHANISMS = tuple(name for name in mechanisms.CHOICES if name != MECHANISMS[1])
ALL_IMAGES = Selection()
_SELECTION_HELP = (
    "which training images of each class --bank keeps: balanced, a seeded draw; useful, those with the largest weight "
    "on held-out images of their own class minus that on others"
)


def teacher_module(student: Trained) -> bytes | None:
    """Serialises the teacher of a student; None if there is no teacher, or if it was removed."""
    recorded = student.recorded
    if not config.needs_teacher(recorded.config) or recorded.config.teacher.logits_file:
        return None
    try:
        teacher = trained.open_teacher(recorded)
    except UserError as error:
        log(f"warning: the bundle is not compared with the teacher: {error}")
        return None

    return bundle.serialize(lambda images: jax.nn.softmax(teacher.outputs(images).logits), recorded.image_shape)


def measure(modules: Mapping[str, bytes], image_shape: tuple[int, int, int]) -> dict[str, Any]:
    """Measures the size and latency of serialised modules on this device, calling them in turns.

    Returns:
      For each name `bytes`; and `milliseconds` by the number of images in a call, the median time from uint8 images to
      probabilities, both on the host.
    """
    calls: dict[str, Callable] = {
        name: jax.jit(export.deserialize(bytearray(module)).call) for name, module in modules.items()
    }
    measured: dict[str, Any] = {name: {"bytes": len(module), "milliseconds": {}} for name, module in modules.items()}
    for size in SIZES:
        images = np.random.default_rng(0).integers(0, 256, (size, *image_shape), np.uint8)
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        for call in calls.values():
            np.asarray(call(images))  # compiles
        for _ in range(_REPEATS):
            for name, call in calls.items():
                start = time.perf_counter()
                np.asarray(call(images))
                seconds[name].append(time.perf_counter() - start)
        for name, times in seconds.items():
            measured[name]["milliseconds"][str(size)] = round(1000 * statistics.median(times), 3)
    return measured


def table(measured: Mapping[str, Any]) -> str:
    """Formats the measurements of `measure` for a terminal."""
    rows = [("", "bytes", *(f"{size} image{'s' * (size > 1)}, ms" for size in SIZES))]
    for name, facts in measured.items():
        rows.append((name, f"{facts['bytes']:,}", *(f"{facts['milliseconds'][str(size)]:.2f}" for size in SIZES)))
    return _aligned(rows)


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def sizes_table(facts: Mapping[str, Any]) -> str:
    """Formats the accuracy by the size of the bank for a terminal, from the facts of `thinning.compare_sizes`."""
    rows = [("bank, images", "bytes", "% right", "")]
    for row in facts["sizes"]:
        accuracy = "" if row["accuracy"] is None else f"{row['accuracy']:.2f}"
        rows.append((f"{row['images']:,}", f"{row['bytes']:,}", accuracy, "<-" * (row["images"] == facts["images"])))
    if facts["accuracy_alone"] is not None:
        rows.append(("none", "0", f"{facts['accuracy_alone']:.2f}", ""))
    return _aligned(rows)


def _served(student: Trained, mechanism: str, selection: Selection) -> tuple[Trained, dict[str, Any]]:
    """The student of a bundle, with its bank if it needs one, and the facts about the bank."""
    served = mechanisms.choose(student, mechanism)
    log(f"mechanism {served.mechanism}: {served.reason}")
    if served.student.bank is None:
        if selection != ALL_IMAGES:
            raise UserError(
                f"--bank chooses the training images of the training-set graph, but the mechanism is {served.mechanism}"
                f" ({served.reason}): leave it out, or give --mechanism={TRAINING_SET}"
            )
        return served.student, {}
    student, recorded = served.student, served.student.recorded
    section = recorded.config.evaluate.training_set
    bank, facts = thinning.compare_sizes(served.student.bank, section, len(recorded.classes), selection)
    if facts["accuracy"] is not None and facts["accuracy"] < facts["accuracy_alone"]:
        log(
            f"warning: with a bank of {facts['images']} images {facts['accuracy']:.2f}% of the held-out training "
            f"images are right, by the student alone {facts['accuracy_alone']:.2f}%: keep more images, or choose "
            f"--mechanism={MECHANISMS[0]}"
        )
    return student._replace(bank=bank), facts


def write(
    workdir: pathlib.Path,
    out: pathlib.Path,
    graph: str = graph_choice.CHOICES[0],
    mechanism: str = mechanisms.AUTO,
    selection: Selection = ALL_IMAGES,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Exports a student of a finished run, as `bundle.write` does.

    Args:
      workdir: the workdir of the run.
      out: the folder of the bundle.
      graph: which student, see `trained.open_student`; a warning is logged if the other one is more accurate.
      mechanism: see `mechanism.choose`; a bundle does not answer batch by batch.
      selection: the training images in the bank of the training-set graph.

    Returns:
      The measurements of `measure`, and the facts of `thinning.compare_sizes`, which are empty without a bank.

    Raises:
      UserError: see `trained.open_student`, `mechanism.choose`, `thinning.compare_sizes` and `bundle.write`.
    """
    bundle.check_free(out)
    student = trained.open_student(workdir, graph)
    graph_choice.warn_of_better(student.recorded, student.model.graph, mechanism != MECHANISMS[0])
    student, bank_facts = _served(student, mechanism, selection)
    modules = {"student": bundle.of_student(student)}
    if (teacher := teacher_module(student)) is not None:
        modules["teacher"] = teacher
    measured = measure(modules, student.recorded.image_shape)
    device = jax.devices()[0].device_kind
    facts: dict[str, Any] = {"measured": {"device": device, "jax": jax.__version__, **measured}}
    if bank_facts:
        facts[TRAINING_SET] = bank_facts
    bundle.write(out, student, modules["student"], facts)
    return measured, bank_facts


def main() -> None:
    """Reads the command line, exports the student, and prints size and latency."""
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "the workdir of a finished run", flag_values=values)
    flags.DEFINE_string("out", None, "the folder of the bundle", flag_values=values)
    flags.DEFINE_enum("graph", graph_choice.CHOICES[0], graph_choice.CHOICES, graph_choice.HELP, flag_values=values)
    flags.DEFINE_enum("mechanism", mechanisms.AUTO, _MECHANISMS, mechanisms.HELP, flag_values=values)
    flags.DEFINE_integer(
        "bank",
        0,
        "the number of training images that the training-set graph keeps, class-balanced; 0 keeps all",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "bank_selection", thinning.SELECTIONS[0], thinning.SELECTIONS, _SELECTION_HELP, flag_values=values
    )
    command_line.parse(values, __doc__, required=["workdir", "out"])
    if values.bank < 0 or (values.bank == 0 and values.bank_selection != thinning.SELECTIONS[0]):
        raise UserError(f"--bank is {values.bank}: expected a number of training images")
    out, selection = pathlib.Path(values.out), Selection(values.bank, values.bank_selection)
    measured, bank_facts = write(pathlib.Path(values.workdir), out, values.graph, values.mechanism, selection)
    print(table(measured))
    if bank_facts:
        print("\n" + sizes_table(bank_facts))
    log(f"bundle in {values.out}")


def run() -> None:
    """The entry point of the command; see `command_line.run`."""
    command_line.run(main)


if __name__ == "__main__":
    run()
