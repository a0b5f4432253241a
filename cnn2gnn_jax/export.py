"""Exports a trained student as a serving bundle, and measures its size and latency and those of its teacher.

python -m cnn2gnn_jax.export --workdir=DIR --out=BUNDLE [--graph=learned|off|best]
    [--mechanism=auto|one_by_one|training_set] [--bank=N] [--bank_selection=balanced|useful]

`cnn2gnn-export` is the same command.

Examples:

    cnn2gnn-export --workdir=runs/my_images --out=BUNDLE
    cnn2gnn-export --workdir=runs/my_images --out=BUNDLE --bank=1000
"""

import pathlib
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from absl import flags
from jax import export

from cnn2gnn_jax import config
from cnn2gnn_jax.evaluation import thinning
from cnn2gnn_jax.evaluation.thinning import Selection
from cnn2gnn_jax.inference import BATCH_BY_BATCH, ONE_BY_ONE, TRAINING_SET
from cnn2gnn_jax.runtime import command_line
from cnn2gnn_jax.runtime.console import log, right_aligned
from cnn2gnn_jax.runtime.errors import UserError
from cnn2gnn_jax.serving import bundle, graph_choice, trained
from cnn2gnn_jax.serving import mechanism as mechanisms
from cnn2gnn_jax.serving.trained import Trained

SIZES = (1, 100)  # the numbers of images in a call for which the latency is measured
_REPEATS = 30
WHOLE_BANK = Selection()
_MECHANISMS = tuple(name for name in mechanisms.CHOICES if name != BATCH_BY_BATCH)
_SELECTION_HELP = (
    "how --bank selects the training images of each class: balanced, by a random draw with a fixed seed; useful, those "
    "with the largest sum of weights for held-out images of their own class, minus that for other held-out images"
)


def teacher_module(student: Trained) -> bytes | None:
    """The serialized teacher of a student; None if it has no teacher, or if the teacher no longer exists."""
    recorded = student.recorded
    if not config.needs_teacher(recorded.config) or recorded.config.teacher.logits_file:
        return None
    try:
        teacher = trained.open_teacher(recorded)
    except UserError as error:
        log(f"the student is not compared with its teacher: {error}")
        return None

    return bundle.serialize(lambda images: jax.nn.softmax(teacher.outputs(images).logits), recorded.image_shape)


def measure(modules: Mapping[str, bytes], image_shape: tuple[int, int, int]) -> dict[str, Any]:
    """Measures the size and the latency of serialized modules on this device.

    The calls of the modules alternate, so that a change in the load of the machine affects all of them.

    Returns:
      By name of the module: `bytes`, and `milliseconds` by the number of images in a call. These are medians, from
      uint8 images on the host to probabilities on the host.
    """
    calls: dict[str, Callable] = {
        name: jax.jit(export.deserialize(bytearray(module)).call) for name, module in modules.items()
    }
    milliseconds: dict[str, dict[str, float]] = {name: {} for name in modules}
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
            milliseconds[name][str(size)] = round(1000 * statistics.median(times), 3)
    return {name: {"bytes": len(module), "milliseconds": milliseconds[name]} for name, module in modules.items()}


def measurements_table(measured: Mapping[str, Any]) -> str:
    """Formats the results of `measure` as a table for the terminal."""
    rows = [("", "bytes", *(f"{size} image{'s' * (size > 1)}, ms" for size in SIZES))]
    for name, facts in measured.items():
        rows.append((name, f"{facts['bytes']:,}", *(f"{facts['milliseconds'][str(size)]:.2f}" for size in SIZES)))
    return right_aligned(rows)


def sizes_table(facts: Mapping[str, Any]) -> str:
    """Formats the accuracy by the size of the bank, from the facts of `thinning.compare_sizes`, for the terminal."""
    rows = [("bank, images", "bytes", "% right", "")]
    for row in facts["sizes"]:
        accuracy = "" if row["accuracy"] is None else f"{row['accuracy']:.2f}"
        rows.append((f"{row['images']:,}", f"{row['bytes']:,}", accuracy, "<-" * (row["images"] == facts["images"])))
    if facts["accuracy_alone"] is not None:
        rows.append(("none", "0", f"{facts['accuracy_alone']:.2f}", ""))
    return right_aligned(rows)


def _choose(student: Trained, mechanism: str, selection: Selection) -> tuple[Trained, dict[str, Any]]:
    """The student as it is exported, and the facts of its bank from `thinning.compare_sizes`; {} without a bank."""
    served = mechanisms.choose(student, mechanism)
    log(f"mechanism {served.mechanism}: {served.reason}")
    if served.student.bank is None:
        if selection != WHOLE_BANK:
            raise UserError(
                f"--bank chooses the training images of the training-set graph, but the mechanism is {served.mechanism}"
                f" ({served.reason}): leave --bank out, or give --mechanism={TRAINING_SET}"
            )
        return served.student, {}
    student, stored = served.student, served.student.bank
    section, classes = student.recorded.config.evaluate.training_set, len(student.recorded.classes)
    bank, facts = thinning.compare_sizes(stored, section, classes, selection)
    if facts["accuracy"] is not None and facts["accuracy"] < facts["accuracy_alone"]:
        log(
            f"warning: with a bank of {facts['images']} images {facts['accuracy']:.2f}% of the held-out training "
            f"images are right, by the student alone {facts['accuracy_alone']:.2f}%: keep more images, or choose "
            f"--mechanism={ONE_BY_ONE}"
        )
    return student._replace(bank=bank), facts


def write(
    workdir: pathlib.Path,
    out: pathlib.Path,
    graph: str = graph_choice.CHOICES[0],
    mechanism: str = mechanisms.AUTO,
    selection: Selection = WHOLE_BANK,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Exports a student of a finished run as a bundle.

    Args:
      workdir: the folder of the run.
      out: the folder of the bundle.
      graph: which student, see `trained.open_student`. If the run's other student is more accurate, a warning says so.
      mechanism: see `mechanism.choose`. A bundle cannot predict batch by batch.
      selection: which training images the bank holds, for the training-set graph only.

    Returns:
      The results of `measure`, and the facts of `thinning.compare_sizes`, which are empty for a bundle without a bank.

    Raises:
      UserError: see `trained.open_student`, `mechanism.choose`, `thinning.compare_sizes` and `bundle.write`.
    """
    bundle.check_replaceable(out)
    student = trained.open_student(workdir, graph)
    graph_choice.warn_of_better(student.recorded, student.model.graph, mechanism != ONE_BY_ONE)
    student, bank_facts = _choose(student, mechanism, selection)
    modules = {"student": bundle.serialize_student(student)}
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
    """Parses the command line, exports the student and prints its size and latency."""
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "the workdir of a finished run", flag_values=values)
    flags.DEFINE_string("out", None, "the folder of the bundle", flag_values=values)
    flags.DEFINE_enum("graph", graph_choice.CHOICES[0], graph_choice.CHOICES, graph_choice.HELP, flag_values=values)
    flags.DEFINE_enum("mechanism", mechanisms.AUTO, _MECHANISMS, mechanisms.HELP, flag_values=values)
    flags.DEFINE_integer(
        "bank",
        0,
        "the number of training images that the training-set graph keeps, balanced over the classes; 0 for all",
        flag_values=values,
    )
    selections = thinning.SELECTIONS
    flags.DEFINE_enum("bank_selection", selections[0], selections, _SELECTION_HELP, flag_values=values)
    command_line.parse(values, __doc__, required=["workdir", "out"])
    if values.bank < 0:
        raise UserError(f"--bank is {values.bank}: expected a number of training images, or 0 for all")
    if values.bank == 0 and values.bank_selection != selections[0]:
        raise UserError(f"--bank_selection is {values.bank_selection}, but --bank keeps all images: give --bank=N")
    selection = Selection(values.bank, values.bank_selection)
    out = pathlib.Path(values.out)
    measured, bank_facts = write(pathlib.Path(values.workdir), out, values.graph, values.mechanism, selection)
    print(measurements_table(measured))
    if bank_facts:
        print("\n" + sizes_table(bank_facts))
    log(f"the bundle is in {out}")


def run() -> None:
    """Runs the command. Mistakes of the user end in one line, see `command_line.run`."""
    command_line.run(main)


if __name__ == "__main__":
    run()
