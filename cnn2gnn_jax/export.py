"""A serving bundle of a trained student, and what it costs beside its teacher.

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
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags
from jax import export

from cnn2gnn_jax import config
from cnn2gnn_jax.evaluation import thinning
from cnn2gnn_jax.evaluation.choice import Grid
from cnn2gnn_jax.runtime import command_line
from cnn2gnn_jax.runtime.console import log
from cnn2gnn_jax.runtime.errors import UserError
from cnn2gnn_jax.serving import bundle, graph_choice, trained
from cnn2gnn_jax.serving import mechanism as mechanisms
from cnn2gnn_jax.serving.trained import Trained
from cnn2gnn_jax.training import bank as banks

SIZES = (1, 100)  # images in a call that is timed
_REPEATS = 30
_MECHANISMS = tuple(name for name in mechanisms.CHOICES if name != "batch_by_batch")
_SELECTION = (
    "which training images --bank keeps of each class: balanced, a seeded draw; useful, those with the most weight on "
    "held-out images of their own class, less that on others"
)


def teacher_module(student: Trained) -> bytes | None:
    """The module of a student's teacher, None where there is none (any more)."""
    recorded = student.recorded
    if not config.needs_teacher(recorded.config) or recorded.config.teacher.logits_file:
        return None
    try:
        teacher = trained.open_teacher(recorded)
    except UserError as error:
        log(f"not compared with the teacher: {error}")
        return None

    return bundle.serialize(lambda images: jax.nn.softmax(teacher.outputs(images).logits), recorded.image_shape)


def measure(modules: Mapping[str, bytes], image_shape: tuple[int, int, int]) -> dict[str, Any]:
    """Bytes and latency of serialised modules on this device, taken in turns in this process.

    Returns:
      by name: `bytes`, and `milliseconds` from uint8 images on the host to probabilities on the host, a median, by the
      number of images in a call.
    """
    calls: dict[str, Callable] = {
        name: jax.jit(export.deserialize(bytearray(module)).call) for name, module in modules.items()
    }
    found = {name: {"bytes": len(module), "milliseconds": {}} for name, module in modules.items()}
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
        for name, each in seconds.items():
            found[name]["milliseconds"][str(size)] = round(1000 * statistics.median(each), 3)  # type: ignore[index]
    return found


def table(measured: Mapping[str, Any]) -> str:
    """What `measure` has found, for a terminal."""
    rows = [("", "bytes", *(f"{size} image{'s' * (size > 1)}, ms" for size in SIZES))]
    for name, facts in measured.items():
        rows.append((name, f"{facts['bytes']:,}", *(f"{facts['milliseconds'][str(size)]:.2f}" for size in SIZES)))
    return _aligned(rows)


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


class BankChoice(NamedTuple):
    """Which training images the bank of a bundle holds.

    size: how many, 0 for all.
    selection: of `thinning.SELECTIONS`.
    """

    size: int = 0
    selection: str = thinning.SELECTIONS[0]


WHOLE = BankChoice()


def with_bank(student: Trained, chosen: BankChoice) -> tuple[Trained, dict[str, Any]]:
    """The student with the bank that its bundle holds, and what the manifest tells of it.

    Returns:
      the student, and `settings`, `key_type`, `selection`, `held_out_images`, `accuracy_alone` and, of the bundle's
      bank, `images`, `bytes` and `accuracy`; these three at other `sizes` too.

    Raises:
      UserError: the bank cannot be thinned so.
    """
    stored, section = student.bank, student.recorded.config.evaluate.training_set
    assert stored is not None
    images, settings = len(stored.bank.labels), stored.bank.settings
    size = chosen.size or images
    thinning.check_size(stored, size, chosen.selection)
    grid = Grid((settings.space,), (settings.signal,), section.sparsities, section.weights, section.epsilons)
    compared = set() if stored.held_out is None else set(thinning.sizes(images, len(student.recorded.classes)))
    rows, bank = [], stored.bank
    for each in sorted(compared | {size}):
        thinned = thinning.thin(stored, grid, each, chosen.selection)
        rows.append({"images": each, "bytes": banks.size(thinned.bank), "accuracy": thinned.accuracy})
        if each == size:
            bank = thinned.bank
    [row] = [row for row in rows if row["images"] == size]
    facts = {
        **row,
        "settings": bank.settings._asdict(),
        "key_type": str(bank.keys.dtype),
        "selection": chosen.selection,
        "held_out_images": 0 if stored.held_out is None else len(stored.held_out.labels),
        "accuracy_alone": stored.accuracy_alone,
        "sizes": rows,
    }
    return student._replace(bank=stored._replace(bank=bank)), facts


def sizes_table(facts: Mapping[str, Any]) -> str:
    """The accuracy by the size of the bank, for a terminal; `facts` are those of `with_bank`."""
    rows = [("bank, images", "bytes", "% right", "")]
    for row in facts["sizes"]:
        accuracy = "" if row["accuracy"] is None else f"{row['accuracy']:.2f}"
        rows.append((f"{row['images']:,}", f"{row['bytes']:,}", accuracy, "<-" * (row["images"] == facts["images"])))
    if facts["accuracy_alone"] is not None:
        rows.append(("none", "0", f"{facts['accuracy_alone']:.2f}", ""))
    return _aligned(rows)


def _served(student: Trained, mechanism: str, chosen: BankChoice) -> tuple[Trained, dict[str, Any]]:
    """The student that a bundle holds, with its bank if it has one, and what the manifest tells of the bank."""
    served = mechanisms.choose(student, mechanism)
    log(f"mechanism {served.mechanism}: {served.reason}")
    if served.student.bank is None:
        if chosen != WHOLE:
            raise UserError(
                f"--bank chooses the training images of the training-set graph, but the mechanism is {served.mechanism}"
                f" ({served.reason}): leave it out, or give --mechanism={trained.TRAINING_SET}"
            )
        return served.student, {}
    student, facts = with_bank(served.student, chosen)
    if facts["accuracy"] is not None and facts["accuracy"] < facts["accuracy_alone"]:
        log(
            f"warning: with a bank of {facts['images']} images {facts['accuracy']:.2f}% of the held-out training "
            f"images are right, by the student alone {facts['accuracy_alone']:.2f}%: keep more images, or choose "
            f"--mechanism={trained.MECHANISMS[0]}"
        )
    return student, facts


def write(
    workdir: pathlib.Path,
    out: pathlib.Path,
    graph: str = graph_choice.CHOICES[0],
    mechanism: str = mechanisms.AUTO,
    chosen: BankChoice = WHOLE,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Exports a student of a finished run, as `bundle.write` does.

    Args:
      workdir: of the run.
      out: the bundle's folder.
      graph: which student, see `trained.open_student`; where the run's other student is better, a line says so.
      mechanism: see `mechanism.choose`; a bundle does not answer batch by batch.
      chosen: of the training-set graph.

    Returns:
      The measurements of `measure`, and the facts of `with_bank`, which are empty for a bundle without a bank.

    Raises:
      UserError: see `trained.open_student`, `mechanism.choose`, `with_bank` and `bundle.write`.
    """
    bundle.check_free(out)
    student = trained.open_student(workdir, graph)
    graph_choice.warn_of_better(student.recorded, student.model.graph, mechanism != trained.MECHANISMS[0])
    student, bank_facts = _served(student, mechanism, chosen)
    modules = {"student": bundle.of_student(student)}
    if (teacher := teacher_module(student)) is not None:
        modules["teacher"] = teacher
    measured = measure(modules, student.recorded.image_shape)
    device = jax.devices()[0].device_kind
    facts: dict[str, Any] = {"measured": {"device": device, "jax": jax.__version__, **measured}}
    if bank_facts:
        facts[trained.TRAINING_SET] = bank_facts
    bundle.write(out, student, modules["student"], facts)
    return measured, bank_facts


def main() -> None:
    """Reads the command line, exports, prints size and latency."""
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "the workdir of a finished run", flag_values=values)
    flags.DEFINE_string("out", None, "the bundle's folder", flag_values=values)
    flags.DEFINE_enum("graph", graph_choice.CHOICES[0], graph_choice.CHOICES, graph_choice.HELP, flag_values=values)
    flags.DEFINE_enum("mechanism", mechanisms.AUTO, _MECHANISMS, mechanisms.HELP, flag_values=values)
    flags.DEFINE_integer(
        "bank", 0, "how many training images the training-set graph keeps, class-balanced; 0: all", flag_values=values
    )
    flags.DEFINE_enum("bank_selection", thinning.SELECTIONS[0], thinning.SELECTIONS, _SELECTION, flag_values=values)
    command_line.parse(values, __doc__, required=["workdir", "out"])
    if values.bank < 0 or (values.bank == 0 and values.bank_selection != thinning.SELECTIONS[0]):
        raise UserError(f"--bank is {values.bank}: expected a number of training images")
    out, chosen = pathlib.Path(values.out), BankChoice(values.bank, values.bank_selection)
    measured, bank_facts = write(pathlib.Path(values.workdir), out, values.graph, values.mechanism, chosen)
    print(table(measured))
    if bank_facts:
        print("\n" + sizes_table(bank_facts))
    log(f"bundle in {values.out}")


def run() -> None:
    """The program: what a user can mend ends in one line, see `command_line.run`."""
    command_line.run(main)


if __name__ == "__main__":
    run()
