"""Trains on one and on several emulated devices, and prints how much the trained states differ, as JSON.

    python tests/spread_program.py '{"kinds": ["graph"], "cases": [[8, "pmap", false]], "images": 1000}'

It is a separate program, because a process cannot change JAX_ENABLE_X64 and the number of devices after its start. A
batch has 100 digits.
"""

import functools
import json
import sys
import types

import jax

jax.config.update("jax_num_cpu_devices", 8)

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import sklearn.datasets  # noqa: E402

from cnn2gnn_jax import distillers, gnn, inference, networks  # noqa: E402
from cnn2gnn_jax.config import RECIPES  # noqa: E402
from cnn2gnn_jax.runtime.devices import from_config, on_first_device  # noqa: E402
from cnn2gnn_jax.training import loop  # noqa: E402
from cnn2gnn_jax.training.inputs import prepare_plain  # noqa: E402
from cnn2gnn_jax.training.state import head_rows, init_state  # noqa: E402
from cnn2gnn_jax.training.step import teacher_shapes  # noqa: E402
from cnn2gnn_jax.training.task import Task, with_stage  # noqa: E402

BATCH, CLASSES, EPOCHS = 100, 10, 2
DTYPE = jnp.float64 if jax.config.jax_enable_x64 else jnp.float32
# Updates of head rows outside a batch are delayed. The learning rate changes in training, when all rows are caught up.
RECIPE = RECIPES["paper"] | {
    "epochs": EPOCHS,
    "batch_size": BATCH,
    "schedule": "step",
    "milestones": (1 / EPOCHS,),
    "milestone_factor": 0.5,
    "augment": True,
    "head_update": "rows",
    "chunk_steps": 5,
}
METHODS = {"teacher": "ce", "cnn": "kd", "graph": "cnn2gnn", "dense": "cnn2gnn"}


def digits(count):
    """Returns the first `count` images and labels, and the last 397 images and labels, which are for testing."""
    bunch = sklearn.datasets.load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = bunch.target.astype(np.int32)
    return images[:count], labels[:count], images[1400:], labels[1400:]


def make_task(kind, labels):
    """Returns the task of a kind: `teacher`, `cnn`, `graph`, `dense`, or a method that trains a CNN student."""
    method = METHODS.get(kind, kind)
    hyper = distillers.hyperparameters(method, "resnet8", "resnet8", "cifar10")
    hyper |= {"training_labels": labels, "negatives": 200}
    distiller = distillers.create(distillers.METHODS[method].distiller, hyper)
    if "pretrain_epochs" in hyper:
        distiller = distillers.create(distillers.METHODS[method].distiller, hyper | {"pretrain_epochs": EPOCHS})
    cnn = networks.create("resnet8", CLASSES, dtype=DTYPE)
    module = cnn
    if kind in ("graph", "dense"):
        backbone = gnn.Stem((8,), dtype=DTYPE) if kind == "graph" else gnn.Flatten()
        module = gnn.GraphStudent(CLASSES, backbone, sparsity=20, hidden=16, head_widths=(24, 12))
    return Task(
        module,
        distiller,
        distiller.stages[0],
        types.SimpleNamespace(**RECIPE),
        steps_per_epoch=len(labels) // BATCH,
        rows=len(labels),
        seed=3,
        mean=(0.3,),
        std=(0.37,),
        teacher=cnn if distiller.teacher else None,
    )


def as_dtype(tree):
    return jax.tree.map(lambda x: x.astype(DTYPE) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


class Nothing:
    """Checkpoints that are never due, so that nothing is saved."""

    def due(self, step):
        return False

    def save(self, step, state):
        raise AssertionError


def started(task, images, labels):
    """Returns fresh states of all stages, and the variables of a teacher in the step or None. Both are on the host."""
    data, states = {"input": images, "label": labels}, []
    for stage in task.distiller.stages:
        at = with_stage(task, stage)
        fresh = functools.partial(init_state, at, images, teacher_shapes(at, data))
        states.append(as_dtype(jax.jit(fresh)()))
    variables = None
    if task.teacher is not None:
        variables = jax.jit(lambda: as_dtype(task.teacher.init(jax.random.key(1), jnp.zeros((1, 8, 8, 1)))))()
    return jax.device_get((states, variables))


def trained(task, starts, variables, images, labels, devices):
    """Trains all stages and returns the last state."""
    data, before = {"input": images, "label": labels}, None
    for stage, state in zip(task.distiller.stages, starts, strict=True):
        task = with_stage(task, stage)
        if devices.shards_head and state.table is not None:
            extra = devices.padded(len(labels)) - len(labels)
            table = jax.tree.map(lambda x, extra=extra: np.pad(x, [(0, extra)] + [(0, 0)] * (x.ndim - 1)), state.table)
            state = state.replace(table=table)
        if before is not None:
            state = state.replace(params=before.params, stats=before.stats, memory=before.memory)
        before = loop.fit(
            [task],
            devices.replicate(state),
            loop.TrainingData(devices.replicate(data), teacher_variables=devices.replicate(variables)),
            lambda first, metrics: None,
            Nothing(),
            devices=devices,
        )
    return before


def classes(task, variables, rows, images, test_images):
    """Returns the predicted class of each test image. For a graph student, there is a row for each mechanism."""
    inputs = prepare_plain(task, jnp.asarray(test_images))
    if not task.is_graph:
        return np.argmax(jax.jit(lambda: task.module.apply(variables, inputs, train=False).logits)(), -1)
    anchors = jax.tree.map(lambda leaf: leaf[:BATCH], rows)

    @jax.jit
    def logits(variables, anchors):
        columns = inference.anchors(task.module, variables, prepare_plain(task, images[:BATCH]), anchors)
        mechanisms = (inference.one_by_one, inference.batch_by_batch)
        return [mechanism(task.module, variables, columns, inputs).logits for mechanism in mechanisms]

    return np.argmax(logits(variables, anchors), -1)


def relative_difference(actual, expected):
    """Returns the norm of the difference of all arrays, divided by the norm of the expected arrays."""
    pairs = list(zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True))
    return float(np.sqrt(sum(np.sum(np.square(f - e)) for f, e in pairs) / sum(np.sum(np.square(e)) for _, e in pairs)))


def main(kinds, cases, images):
    """Trains each kind on one device and in each case `[devices, backend, shard_head]`, and prints the differences."""
    train_images, labels, test_images, _ = digits(images)
    for kind in kinds:
        task, reference = make_task(kind, labels), None
        starts, variables = started(task, train_images, labels)
        for count, backend, shard in [(1, "shard_map", False), *cases]:
            used = from_config(types.SimpleNamespace(devices=count, backend=backend, seeds=False, shard_head=shard))
            state = trained(task, starts, variables, train_images, labels, used)
            rows, student = head_rows(task, state, np.arange(images), used), on_first_device(state.variables)
            end = jax.tree.map(np.asarray, (state.params, state.stats, rows))
            actual = classes(task, student, rows, train_images, test_images)
            if reference is None:
                reference = end, actual
                continue
            facts = {
                "kind": kind,
                "case": [count, backend, shard],
                "steps": int(state.step),
                "dtype": str(np.dtype(DTYPE)),
                "relative_difference": relative_difference(end, reference[0]),
                "classes_differ": int(np.sum(actual != reference[1])),
            }
            print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
