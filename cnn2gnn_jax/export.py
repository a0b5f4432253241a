"""A serving bundle of a trained student, and what it costs beside its teacher.

python -m cnn2gnn_jax.export --workdir=DIR --out=BUNDLE [--graph=learned|off|best]

`cnn2gnn-export` is the same command.

Examples:

    cnn2gnn-export --workdir=runs/mine --out=BUNDLE
    cnn2gnn-export --workdir=runs/mine --out=BUNDLE --graph=best
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
from cnn2gnn_jax.runtime import command_line
from cnn2gnn_jax.runtime.console import log
from cnn2gnn_jax.runtime.errors import UserError
from cnn2gnn_jax.serving import bundle, graph_choice, trained
from cnn2gnn_jax.serving.trained import Trained

SIZES = (1, 100)  # images in a call that is timed
_REPEATS = 30


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
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def write(workdir: pathlib.Path, out: pathlib.Path, graph: str = graph_choice.CHOICES[0]) -> dict[str, Any]:
    """Exports a student of a finished run, as `bundle.write` does; returns what was measured.

    `graph` says which one, see `trained.open_student`; where the run's other student is better, a line says so.

    Raises:
      UserError: see `trained.open_student` and `bundle.write`.
    """
    bundle.check_free(out)
    student = trained.open_student(workdir, graph)
    graph_choice.warn_of_better(student.recorded, student.model.graph)
    modules = {"student": bundle.of_student(student)}
    if (teacher := teacher_module(student)) is not None:
        modules["teacher"] = teacher
    measured = measure(modules, student.recorded.image_shape)
    device = jax.devices()[0].device_kind
    facts = {"measured": {"device": device, "jax": jax.__version__, **measured}}
    bundle.write(out, student, modules["student"], facts)
    return measured


def main() -> None:
    """Reads the command line, exports, prints size and latency."""
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "the workdir of a finished run", flag_values=values)
    flags.DEFINE_string("out", None, "the bundle's folder", flag_values=values)
    flags.DEFINE_enum("graph", graph_choice.CHOICES[0], graph_choice.CHOICES, graph_choice.HELP, flag_values=values)
    command_line.parse(values, __doc__, required=["workdir", "out"])
    print(table(write(pathlib.Path(values.workdir), pathlib.Path(values.out), values.graph)))
    log(f"bundle in {values.out}")


def run() -> None:
    """The program: what a user can mend ends in one line, see `command_line.run`."""
    command_line.run(main)


if __name__ == "__main__":
    run()
