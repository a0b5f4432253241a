"""The costs of each CNN method: a Markdown table of extra parameters, memory, and time of a step relative to KD's.

    python -m benchmarks.method_costs [--pair=resnet34-resnet18] [--batch=16] [--rounds=7]

Steps are those of the CIFAR-100 config at 32x32 with 50,000 training images (random ones: no image is read), the recipe
`paper` and therefore no augmentation. The teacher's outputs come from disk where possible; otherwise the teacher runs
in the step. All steps are compiled first and then run alternately; times are medians.
"""

import argparse
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import timing
from cnn2gnn_jax import config as configs
from cnn2gnn_jax import distillers, networks
from cnn2gnn_jax.configs import cifar100
from cnn2gnn_jax.data import Dataset, Split
from cnn2gnn_jax.distillers import maps
from cnn2gnn_jax.training import tasks
from cnn2gnn_jax.training.inputs import prepare_plain
from cnn2gnn_jax.training.state import init_state
from cnn2gnn_jax.training.step import make_step, teacher_shapes
from cnn2gnn_jax.training.task import Task, with_stage

IMAGES, CLASSES, SIDE = 50_000, 100, 32
REFERENCE = "kd"
METHODS = tuple(
    name for name, method in distillers.METHODS.items() if method.student == "cnn" and name != "kd_tau48"
)  # which is KD at another temperature


class Cost(NamedTuple):
    """A row: the name, the teacher's outputs, extra parameters, bytes of memory and on disk, and the step to time."""

    name: str
    teacher: str
    parameters: int
    memory: int
    disk: int
    step: Callable[[], None]


def _dataset() -> Dataset:
    labels = np.arange(IMAGES, dtype=np.int32) % CLASSES
    split = Split(np.broadcast_to(np.uint8(0), (IMAGES, SIDE, SIDE, 3)), labels, np.arange(IMAGES, dtype=np.int32))
    names = tuple(str(k) for k in range(CLASSES))
    return Dataset("cifar100", names, split, split, None, (0.5,) * 3, (0.25,) * 3, "none")


def _task(method: str, pair: str, batch: int, augment: bool) -> Task:
    config = cifar100.get_config(pair)
    config.method, config.student.train.batch_size, config.student.train.augment = method, batch, augment
    # The teacher is not trained and its feature maps are large, so at the usual rates some losses would overflow.
    config.student.train.learning_rate = 1e-9
    if "pretrain_learning_rate" in distillers.METHODS[method].hyper:
        config.distill.pretrain_learning_rate = 1e-9
    return tasks.student_tasks(configs.resolve(config), _dataset(), "")[0]


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _stored(fields: Sequence[str], outputs: networks.Outputs) -> dict[str, jax.Array]:
    """The stored outputs of the teacher, by the names under which a batch has them."""
    stored: dict[str, jax.Array] = {}
    for field in fields:
        if field == "features":
            stages = enumerate(outputs.features[1:], 1)
            stored |= {f"teacher_features{i}": maps.one_channel(features) for i, features in stages}
        else:
            stored[f"teacher_{field}"] = getattr(outputs, field)
    return stored


def prepare(method: str, pair: str, batch: int, teacher_variables: Any, augment: bool = False) -> list[Cost]:
    """Compiles the steps of a method: a row for each of its stages."""
    task = _task(method, pair, batch, augment)
    rng = np.random.default_rng(0)
    index = jnp.asarray(rng.choice(IMAGES, batch, replace=False), jnp.int32)
    data = {
        "input": jnp.asarray(rng.integers(0, 256, (batch, SIDE, SIDE, 3)), jnp.uint8),
        "label": index % CLASSES,
        "index": index,
        "mask": jnp.ones(batch, bool),
    }
    kind, disk = "nothing", 0
    if task.teacher is not None:
        kind = f"{', '.join(task.distiller.teacher)}: live"
    elif task.distiller.teacher:
        module = networks.create(networks.parse_pair(pair)[0], CLASSES)
        images = prepare_plain(task, data["input"])
        outputs: Any = jax.jit(lambda variables, x: module.apply(variables, x))(teacher_variables, images)
        stored = _stored(task.distiller.teacher, outputs)
        kind = f"{', '.join(stored)}: from disk".replace("teacher_", "")
        disk, data = _bytes(stored) // batch * IMAGES, data | stored
    variables = None if task.teacher is None else teacher_variables
    costs = []
    for stage in task.distiller.stages:
        name = method if len(task.distiller.stages) == 1 else f"{method}, {stage.name}"
        print(f"compiling {name}", file=sys.stderr, flush=True)
        stage_task = with_stage(task, stage)
        shapes = teacher_shapes(stage_task, data)
        state = [jax.jit(lambda stage_task=stage_task, shapes=shapes: init_state(stage_task, data["input"], shapes))()]
        run = jax.jit(make_step(stage_task), donate_argnums=0).lower(state[0], data, variables, 0).compile()

        def step(state: list[Any] = state, run: Callable[..., Any] = run) -> None:
            state[0], metrics = run(state[0], data, variables, 0)
            jax.block_until_ready(state[0])
            assert math.isfinite(float(metrics["loss"]))

        parameters = sum(leaf.size for leaf in jax.tree.leaves(state[0].params["distiller"]))
        costs.append(Cost(name, kind, parameters, _bytes(state[0].memory), disk, step))
    return costs


def table(costs: Sequence[Cost], seconds: Mapping[str, float]) -> str:
    """Formats the rows as Markdown; times are relative to KD's."""
    lines = [
        "| method | takes of the teacher | extra parameters | memory, MB | on disk, MB | step over KD's |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for cost in costs:
        sizes = f"{cost.parameters:,} | {cost.memory / 1e6:.1f} | {cost.disk / 1e6:.1f}"
        lines.append(f"| {cost.name} | {cost.teacher} | {sizes} | {seconds[cost.name] / seconds[REFERENCE]:.2f} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table and how it was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", default="resnet34-resnet18")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    flags = parser.parse_args(arguments)
    module = networks.create(networks.parse_pair(flags.pair)[0], CLASSES)
    variables = jax.jit(module.init)(jax.random.key(0, impl="rbg"), jnp.zeros((1, SIDE, SIDE, 3)))
    costs = prepare(REFERENCE, flags.pair, flags.batch, variables)
    with_augmentation = prepare(REFERENCE, flags.pair, flags.batch, variables, augment=True)
    costs += [cost._replace(name=f"{cost.name}, with augmentation") for cost in with_augmentation]
    for method in flags.methods:
        costs += [] if method == REFERENCE else prepare(method, flags.pair, flags.batch, variables)
    seconds = timing.take_turns({cost.name: cost.step for cost in costs}, flags.rounds)
    command = " ".join(["python -m benchmarks.method_costs", *(sys.argv[1:] if arguments is None else arguments)])
    print(f"# What each method costs\n\n`{command}`\n\n{timing.machine()}\n\n{table(costs, seconds)}\n")
    print(
        f"{flags.pair} at {SIDE}x{SIDE}, {CLASSES} classes, {IMAGES:,} training images, batches of {flags.batch}, "
        f"float32, recipe paper: KD's step took {seconds[REFERENCE]:.2f} s, the median of {flags.rounds}. Memory is "
        "the method's own state; what is on disk is also read into memory in training."
    )


if __name__ == "__main__":
    main()
