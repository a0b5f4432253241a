"""Memory and traffic of the graph student on many devices, counted from the traced step; nothing is run.

    python -m benchmarks.scaling

prints the tables of docs/scaling.md. Shapes come from the traced initial state, traffic from the collectives in the
traced step, for ring algorithms.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from benchmarks import students
from cnn2gnn_jax import distillers, gnn
from cnn2gnn_jax.runtime.collectives import AXIS
from cnn2gnn_jax.training.state import TrainState, init_state
from cnn2gnn_jax.training.step import make_step
from cnn2gnn_jax.training.task import Task

IMAGENET, BILLION = 1_281_167, 1_000_000_000
SIDE, CLASSES, BATCH = 224, 1000, 1024
DEVICES = (8, 64, 1024)


def student(rows: int) -> Task:
    """CNN2GNN over ResNet18 at 224 pixels, with the teacher's logits from disk."""
    backbone = gnn.create_backbone("resnet18", stem_widths=(), image_stem="downsample", dtype="bfloat16")
    distiller = distillers.create("kd", distillers.hyperparameters("cnn2gnn", "resnet50", "resnet18"))
    return Task(
        gnn.GraphStudent(CLASSES, backbone),
        distiller,
        distiller.stages[0],
        students.recipe(batch_size=BATCH),
        steps_per_epoch=rows // BATCH,
        rows=rows,
        seed=0,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
    )


def state_of(task: Task) -> TrainState:
    """The shapes of the initial state of a task."""
    return jax.eval_shape(lambda: init_state(task, jax.ShapeDtypeStruct((1, SIDE, SIDE, 3), jnp.uint8), None))


def size(tree: Any) -> int:
    """The size of a pytree in bytes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def batch_of(count: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of a batch of `count` images from the host."""
    return {
        "input": jax.ShapeDtypeStruct((count, SIDE, SIDE, 3), jnp.uint8),
        "teacher_logits": jax.ShapeDtypeStruct((count, CLASSES), jnp.float32),
        "label": jax.ShapeDtypeStruct((count,), jnp.int32),
        "index": jax.ShapeDtypeStruct((count,), jnp.int32),
        "mask": jax.ShapeDtypeStruct((count,), bool),
    }


def traffic(task: Task, state: TrainState, devices: int, shards_head: bool) -> dict[str, int]:
    """The bytes that one device sends in a step, by kind of collective."""
    mesh = AbstractMesh((devices,), (AXIS,), axis_types=(AxisType.Auto,))
    axes = dataclasses.replace(
        jax.tree.map(lambda _: PartitionSpec(), state), table=PartitionSpec(AXIS) if shards_head else PartitionSpec()
    )
    step = jax.shard_map(
        lambda state, batch: make_step(task, shards_head)(state, batch, None, 0),
        mesh=mesh,
        in_specs=(axes, PartitionSpec(AXIS)),
        out_specs=(axes, PartitionSpec()),
        check_vma=False,
    )
    sent: dict[str, int] = {}
    for name, operand in _collectives(jax.make_jaxpr(step)(state, batch_of(BATCH)).jaxpr):
        # In a ring, an all-reduce sends everything twice; a gather or a scatter sends the parts of all other devices.
        total = {"psum": 2 * operand, "all_gather": operand * devices, "reduce_scatter": operand}[name]
        sent[name] = sent.get(name, 0) + total * (devices - 1) // devices
    return sent


def _collectives(jaxpr: Any) -> Iterator[tuple[str, int]]:
    for equation in jaxpr.eqns:
        name = equation.primitive.name.removesuffix("_invariant").replace("psum2", "psum")
        if name in ("psum", "all_gather", "reduce_scatter"):
            yield name, sum(size(variable.aval) for variable in equation.invars)
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from _collectives(inner)


def human(count: float) -> str:
    """Formats a number of bytes, as `1.3 GB`."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.3g} {unit}"
        count /= 1000
    raise AssertionError


def main() -> None:
    """Prints the tables."""
    print(f"| | ImageNet-1k, {IMAGENET:,} images | {BILLION:,} images |\n|---|---:|---:|")
    tasks = [student(rows) for rows in (IMAGENET, BILLION)]
    states = [state_of(task) for task in tasks]

    def line(title: str, *values: Any) -> None:
        print(f"| {title} | " + " | ".join(values) + " |")

    line("student: parameters, momentum, statistics", *(human(size(state) - size(state.table)) for state in states))
    line("head's table: rows and their momenta, replicated", *(human(size(state.table)) for state in states))
    for devices in DEVICES:
        parts = (human(size(state.table) / devices) for state in states)
        line(f"head's table per device, sharded over {devices:,}", *parts)
    line("a checkpoint", *(human(size(state)) for state in states))
    line("images at 224x224, uint8", *(human(task.rows * SIDE * SIDE * 3) for task in tasks))
    line(f"teacher's logits, {CLASSES:,} classes, float32", *(human(task.rows * CLASSES * 4) for task in tasks))
    # `data.permutations` needs raw numbers of 8 bytes, the int64 result of argsort, and its copy in int32.
    line("order of an epoch, per process, while it is computed", *(human(task.rows * (8 + 8 + 4)) for task in tasks))
    print(f"\nA step of {BATCH:,} images (any n_train), each device:\n")
    titles = (
        "devices",
        "images from the host",
        "all-reduce",
        "gather",
        "scatter",
        "in addition if the head's table is sharded",
    )
    print(f"| {' | '.join(titles)} | total of the collectives |")
    print("|---:|---:|---:|---:|---:|---:|---:|")
    padded = tasks[0]
    for devices in DEVICES:
        rows = -(-IMAGENET // devices) * devices
        state = jax.eval_shape(
            lambda rows=rows: init_state(
                padded, jax.ShapeDtypeStruct((1, SIDE, SIDE, 3), jnp.uint8), None, table_rows=rows
            )
        )
        plain, sharded = (traffic(padded, state, devices, shards) for shards in (False, True))
        more = sum(sharded.values()) - sum(plain.values())
        kinds = [plain.get(name, 0) for name in ("psum", "all_gather", "reduce_scatter")]
        fed = size(batch_of(BATCH)) / devices
        line(f"{devices:,}", *map(human, (fed, *kinds, more, sum(sharded.values()))))


if __name__ == "__main__":
    main()
