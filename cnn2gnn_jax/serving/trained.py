"""A trained student, opened from its workdir: ready to answer for new images."""

import pathlib
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnn2gnn_jax import distillers, inference, pipeline
from cnn2gnn_jax import run as runs
from cnn2gnn_jax.data import augment
from cnn2gnn_jax.gnn import Columns, GraphStudent, HeadRows
from cnn2gnn_jax.runtime.errors import UserError
from cnn2gnn_jax.serving import graph_choice
from cnn2gnn_jax.training.checkpoint import Checkpoints
from cnn2gnn_jax.training.head_table import HeadTable
from cnn2gnn_jax.training.state import TrainState, head_rows, init_state
from cnn2gnn_jax.training.task import Task, with_labels_only

MECHANISMS = ("one_by_one", "batch_by_batch")


class Network(NamedTuple):
    """A module with its parameters and statistics."""

    module: nn.Module
    variables: Any


class Trained(NamedTuple):
    """A student that answers for raw images.

    recorded: what its workdir tells.
    student: a CNN or a graph student.
    features: the teacher whose pooled features are the student's inputs; None where those are images.
    anchors: of a graph student, the batches of training images that others are linked to, with their head rows alone.
    """

    recorded: runs.Recorded
    student: Network
    features: Network | None
    anchors: tuple[Columns, ...]

    @property
    def is_graph(self) -> bool:
        return isinstance(self.student.module, GraphStudent)

    @property
    def graph(self) -> str | None:
        """The student's graph setting, None of a CNN."""
        return self.student.module.graph if isinstance(self.student.module, GraphStudent) else None


class Answer(NamedTuple):
    """What a student answers for B images.

    probabilities: (B, C).
    links: of a graph student, the weights, (B, N) for each batch of anchors, rows summing to 1. Of one_by_one the
      columns are the anchors and then the image itself, of batch_by_batch the B images.
    nearest: (B,) for each batch of anchors, the position of an image's nearest anchor, -1 where there is none
      (see `inference.Prediction`).
    """

    probabilities: jax.Array
    links: tuple[jax.Array, ...]
    nearest: tuple[jax.Array, ...]


def open_student(workdir: pathlib.Path, graph: str = graph_choice.CHOICES[0]) -> Trained:
    """The first student of a finished run.

    Args:
      workdir: of the run.
      graph: one of `graph_choice.CHOICES`.

    Raises:
      UserError: there is no run, it is not finished, of another version or damaged, it has no such student, or its
        student works on features of a teacher that is no longer there.
    """
    recorded = runs.read(workdir)
    config = recorded.config
    task = _student_task(recorded, graph_choice.setting(recorded, graph))
    features = (
        open_teacher(recorded) if config.student.kind == "graph" and config.student.backbone == "teacher" else None
    )
    folder = workdir / "checkpoints" / pipeline.student_name(task)
    owner = f"{recorded.fingerprint}/{pipeline.student_name(task)}"
    state = _restore(folder, owner, task, f"the student in {workdir}")
    _check_shapes(task, state, recorded, features)
    student = Network(task.module, state.variables)
    return Trained(recorded, student, features, _columns(recorded, task, state, features))


def _columns(recorded: runs.Recorded, task: Task, state: TrainState, features: Network | None) -> tuple[Columns, ...]:
    """The anchors of a graph student; without a graph, where no image is linked to another, a batch of none."""
    if recorded.anchors is None:
        return ()
    assert isinstance(task.module, GraphStudent)
    if task.module.graph == "off":
        return (Columns(jnp.zeros((0, 1)), None),)
    columns = []
    for index, images in zip(recorded.anchors["index"], recorded.anchors["images"], strict=True):
        inputs = node_inputs(recorded, features, jnp.asarray(images))
        rows = head_rows(task, state, index)
        columns.append(inference.anchors(task.module, state.variables, inputs, rows))
    return tuple(columns)


def open_teacher(recorded: runs.Recorded) -> Network:
    """The teacher of a run.

    Raises:
      UserError: it is not where the run left it, or damaged.
    """
    config = recorded.config
    labels = distillers.create("none", {})
    task = Task(
        module=pipeline.teacher_module(config, len(recorded.classes)),
        distiller=labels,
        stage=labels.stages[0],
        recipe=config.teacher.train,
        steps_per_epoch=recorded.train_images // config.teacher.train.batch_size,
        rows=recorded.train_images,
        seed=config.teacher.seed,
    )
    folder = recorded.teacher_folder
    state = _restore(folder / "checkpoints", folder.name, task, f"the teacher of {recorded.workdir}")
    return Network(task.module, state.variables)


def _student_task(recorded: runs.Recorded, graph: str) -> Task:
    config = recorded.config
    distiller = distillers.create(distillers.METHODS[config.method].distiller, config.distill)
    return Task(
        module=pipeline.student_module(config, len(recorded.classes), graph),
        distiller=distiller,
        stage=distiller.stages[-1],
        recipe=config.student.train,
        steps_per_epoch=recorded.train_images // config.student.train.batch_size,
        rows=recorded.train_images,
        seed=config.seed,
    )


def _restore(checkpoints: pathlib.Path, owner: str, task: Task, what: str) -> TrainState:
    """The state that training ended with, or the best; without the optimiser's and the distiller's parts."""
    folder = checkpoints / task.stage.name
    steps = None
    if (folder / "last").is_dir():
        with Checkpoints(folder / "last", owner) as last:
            steps = last.newest()
    if steps is None:
        raise UserError(f"{what} is not there ({folder / 'last'} is missing): run the run's own command again")
    if steps != task.total_steps:
        raise UserError(
            f"{what} is trained for {steps} of {task.total_steps} steps: run the run's own command to the end"
        )
    with Checkpoints(folder / ("best" if task.recipe.epoch == "best" else "last"), owner) as found:
        saved = found.restore_as_saved()
    table = None
    if saved.get("table") is not None:
        rows = {name: HeadRows(**saved["table"][name]) for name in ("values", "momenta")}
        table = HeadTable(**rows, seen=saved["table"]["seen"])
    if "table" in saved["params"]:
        saved["params"]["table"] = HeadRows(**saved["params"]["table"])
    stats = saved.get("stats") or {}
    return TrainState(jnp.asarray(saved["step"]), saved["params"], stats, None, table, None)


def _check_shapes(task: Task, state: TrainState, recorded: runs.Recorded, features: Network | None) -> None:
    inputs = jax.ShapeDtypeStruct((1, *recorded.image_shape), jnp.uint8)
    if features is not None:
        inputs = jax.eval_shape(lambda images: node_inputs(recorded, features, images), inputs)
    expected = jax.eval_shape(lambda: init_state(with_labels_only(task), inputs, None)).variables

    def shapes(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: tuple(leaf.shape), tree)

    if shapes(expected) != shapes(state.variables):
        raise UserError(
            f"{recorded.workdir} holds a student of another version (its weights are not of its config's "
            "shapes): train again in a new workdir"
        )


def node_inputs(recorded: runs.Recorded, features: Network | None, images: jax.Array) -> jax.Array:
    """The student's inputs for raw uint8 images (B, H, W, C): normalised images, or the teacher's pooled features."""
    inputs = augment.normalize(images, recorded.mean, recorded.std)
    if features is None:
        return inputs
    outputs: Any = features.module.apply(features.variables, inputs, train=False)
    return outputs.pooled.astype(jnp.float32)


def answer(
    trained: Trained, images: jax.Array, mechanism: str = MECHANISMS[0], mask: jax.Array | None = None
) -> Answer:
    """The answers for raw images, (B, H, W, C) uint8; a pure function, for `jax.jit` and `jax.export`.

    Args:
      trained: as opened; class probabilities are means over its batches of anchors.
      images: B > sparsity for batch_by_batch.
      mechanism: one_by_one (Mechanism 1: the answer for an image depends on no other) or batch_by_batch. A CNN
        answers in the same way under both.
      mask: (B,), False for padding.
    """
    module, variables = trained.student
    inputs = node_inputs(trained.recorded, trained.features, images)
    if not isinstance(module, GraphStudent):
        outputs: Any = module.apply(variables, inputs, train=False)
        return Answer(jax.nn.softmax(outputs.logits.astype(jnp.float32)), (), ())
    if mechanism == "one_by_one":
        found = [inference.one_by_one(module, variables, columns, inputs) for columns in trained.anchors]
    else:
        reading = trained.recorded.config.evaluate.reading
        found = [
            inference.batch_by_batch(module, variables, columns, inputs, mask, reading) for columns in trained.anchors
        ]
    probabilities = jnp.mean(jnp.stack([jax.nn.softmax(one.logits.astype(jnp.float32)) for one in found]), axis=0)
    links = tuple(one.adjacency / jnp.maximum(one.adjacency.sum(-1, keepdims=True), 1e-12) for one in found)
    return Answer(probabilities, links, tuple(one.nearest for one in found))
