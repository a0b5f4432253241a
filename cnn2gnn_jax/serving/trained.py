"""A trained student, opened from its workdir: ready to answer for new images."""

import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cnn2gnn_jax import inference, neighbors
from cnn2gnn_jax import run as runs
from cnn2gnn_jax.gnn import Columns, GraphStudent, HeadRows
from cnn2gnn_jax.neighbors import Neighbors
from cnn2gnn_jax.runtime.errors import UserError
from cnn2gnn_jax.serving import graph_choice
from cnn2gnn_jax.training import tasks
from cnn2gnn_jax.training.bank import StoredBank
from cnn2gnn_jax.training.checkpoint import Checkpoints
from cnn2gnn_jax.training.head_table import HeadTable
from cnn2gnn_jax.training.model import Anchors, TrainedModel, trained_model
from cnn2gnn_jax.training.state import TrainState, init_state
from cnn2gnn_jax.training.task import Task, with_labels_only

MECHANISMS = ("one_by_one", "batch_by_batch")
TRAINING_SET = "training_set"  # as a mechanism, of students with a bank
# A batch of none: without a graph no image is linked to another.
_NO_ANCHORS = Anchors(Columns(np.zeros((0, 1), np.float32), None), (), ())  # type: ignore[arg-type]


class Trained(NamedTuple):
    """A student that answers for raw images.

    recorded: what its workdir tells of the run.
    model: the student itself.
    bank: the training images as columns of the training-set graph; None where it is not asked for.
    """

    recorded: runs.Recorded
    model: TrainedModel
    bank: StoredBank | None = None


class Answer(NamedTuple):
    """What a student answers for B images.

    probabilities: (B, C).
    links: of a graph student, the weights, (B, N) for each batch of anchors, rows summing to 1. Of one_by_one the
      columns are the anchors and then the image itself, of batch_by_batch the B images.
    nearest: (B,) for each batch of anchors, the position of an image's nearest anchor, -1 where there is none
      (see `inference.Prediction`).
    neighbors: of training_set, the nearest training images; it has no links.
    """

    probabilities: jax.Array
    links: tuple[jax.Array, ...] = ()
    nearest: tuple[jax.Array, ...] = ()
    neighbors: Neighbors | None = None


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
    config, graph = recorded.config, graph_choice.setting(recorded, graph)
    task = tasks.student_task(config, recorded, graph)
    features = open_teacher(recorded) if tasks.takes_features(config) else None
    name = tasks.student_name(task)
    owner = f"{recorded.fingerprint}/{name}"
    state = _restore(workdir / "checkpoints" / name, owner, task, f"the student in {workdir}")
    _check_shapes(task, state, recorded, features)
    anchors, batches = recorded.anchors, []
    if anchors is not None and graph != "off":
        batches = list(zip(anchors["index"], anchors["labels"], anchors["images"], strict=True))
    model = trained_model(task, state, recorded.classes, batches, features)
    return Trained(recorded, model.replace(anchors=(_NO_ANCHORS,)) if graph == "off" else model)


def open_teacher(recorded: runs.Recorded) -> TrainedModel:
    """The teacher of a run.

    Raises:
      UserError: it is not where the run left it, or damaged.
    """
    task, folder = tasks.teacher_task(recorded.config, recorded), recorded.teacher_folder
    state = _restore(folder / "checkpoints", folder.name, task, f"the teacher of {recorded.workdir}")
    return trained_model(task, state, recorded.classes)


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


def _check_shapes(task: Task, state: TrainState, recorded: runs.Recorded, features: TrainedModel | None) -> None:
    inputs = jax.ShapeDtypeStruct((1, *recorded.image_shape), jnp.uint8)
    if features is not None:
        inputs = jax.eval_shape(lambda images: features.outputs(images).pooled, inputs)
    expected = jax.eval_shape(lambda: init_state(with_labels_only(task), inputs, None)).variables

    def shapes(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: tuple(leaf.shape), tree)

    if shapes(expected) != shapes(state.variables):
        raise UserError(
            f"{recorded.workdir} holds a student of another version (its weights are not of its config's "
            "shapes): train again in a new workdir"
        )


def answer(
    trained: Trained, images: jax.Array, mechanism: str = MECHANISMS[0], mask: jax.Array | None = None
) -> Answer:
    """The answers for raw images, (B, H, W, C) uint8; a pure function, for `jax.jit` and `jax.export`.

    Args:
      trained: as opened; class probabilities are means over its batches of anchors.
      images: B > sparsity for batch_by_batch.
      mechanism: one_by_one (Mechanism 1) or batch_by_batch (Mechanism 2), under which a CNN answers in the same way;
        or training_set, of a student with its bank. Only under batch_by_batch does an answer depend on other images.
      mask: (B,), False for padding.
    """
    model = trained.model
    if mechanism == TRAINING_SET:
        return _by_training_set(trained, images)
    if not isinstance(model.module, GraphStudent):
        return Answer(jax.nn.softmax(model.outputs(images).logits.astype(jnp.float32)))
    inputs, mechanism2_graph = model.inputs(images), trained.recorded.config.evaluate.mechanism2_graph

    def predict(columns: Columns) -> inference.Prediction:
        if mechanism == "one_by_one":
            return inference.one_by_one(model.module, model.variables, columns, inputs)
        return inference.batch_by_batch(model.module, model.variables, columns, inputs, mask, mechanism2_graph)

    found = [predict(anchors.columns) for anchors in model.anchors]
    probabilities = jnp.mean(jnp.stack([jax.nn.softmax(each.logits.astype(jnp.float32)) for each in found]), axis=0)
    links = tuple(each.adjacency / jnp.maximum(each.adjacency.sum(-1, keepdims=True), 1e-12) for each in found)
    return Answer(probabilities, links, tuple(each.nearest for each in found))


def _by_training_set(trained: Trained, images: jax.Array) -> Answer:
    assert trained.bank is not None, "the student has no bank"
    bank, (logits, features) = trained.bank.bank, trained.model.logits_and_features(images)
    if bank.settings.signal == "labels":  # made here, so that a bundle holds one number for each training image
        bank = bank.replace(signals=jax.nn.one_hot(bank.labels, len(trained.recorded.classes), dtype=bool))
    combined = neighbors.predict(bank, logits, features[bank.settings.space])
    return Answer(jax.nn.softmax(combined.logits.astype(jnp.float32)), neighbors=combined.neighbors)
