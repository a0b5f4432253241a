"""Cached logits: a step of each student with the teacher's logits from disk, and with ResNet34 in the step."""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np

from benchmarks import students
from benchmarks.timing import Row, milliseconds, take_turns
from cnn2gnn_jax import networks
from cnn2gnn_jax.training import loop
from cnn2gnn_jax.training.inputs import prepare_plain
from cnn2gnn_jax.training.task import Task


def make_run(task: Task, teacher_in_step: bool) -> Callable[[], jax.Array]:
    """Makes a function that takes one step, with the teacher in the step or with its cached logits."""
    data, variables = students.images(5_000), None
    if teacher_in_step:
        teacher = networks.create("resnet34", 100)
        task = dataclasses.replace(task, teacher=teacher)
        variables = jax.jit(lambda: teacher.init(jax.random.key(0), prepare_plain(task, data["input"][:1])))()
    else:
        logits = np.random.default_rng(0).normal(size=(5_000, 100)).astype(np.float32)
        data["teacher_logits"] = jax.numpy.asarray(logits)
    chunk, state = loop.make_chunk(task), [students.start(task, data)]

    def run() -> jax.Array:
        state[0], metrics = chunk(state[0], data, variables, loop.feed([task], 0, 1, {}), 0)
        return metrics["loss"]

    return run


def rows() -> list[Row]:
    """The rows of the table."""
    table_rows = []
    for backbone, rounds in (("pixels", 5), ("stem", 5), ("resnet18", 3)):
        task = students.student(backbone, 5_000, method="cnn2gnn")
        seconds = take_turns({"teacher in the step": make_run(task, True), "cached": make_run(task, False)}, rounds)
        ratio = seconds["teacher in the step"] / seconds["cached"]
        table_rows.append(
            Row(f"ResNet34 in the step : its cached logits, `{backbone}`", ratio, "", milliseconds(seconds))
        )
    return table_rows
