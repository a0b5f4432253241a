"""Opens a trained student from its workdir, and classifies new images with it."""

import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cnn2gnn_jax import inference, neighbors
from cnn2gnn_jax import run as runs
from cnn2gnn_jax.gnn import Columns, GraphStudent, HeadRows
from cnn2gnn_jax.inference import MECHANISMS, TRAINING_SET
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

# No anchors: a student without a graph links no image to another.
_NO_ANCHORS = Anchors(Columns(np.zeros((0, 1), np.float32), None), (), ())  # type: ignore[arg-type]


class Trained(NamedTuple):
    """A trained student.

    recorded: what its workdir records of the run.
    model: its trained model.
    bank: the training images as columns of the training-set graph; None if that graph is not used.
    """

    recorded: runs.Recorded
    model: TrainedModel
    bank: StoredBank | None = None


class Answer(NamedTuple):
    """The predictions of a student for B images.

    probabilities: (B, C).
    links: for a graph student, the weights (B, N) for each batch of anchors; each row sums to 1. The columns are the
      anchors followed by the image itself for one_by_one, and the B images for batch_by_batch.
    nearest: for each batch of anchors (B,), the position of the nearest anchor of each image; -1 if there is none (see
      `inference.Prediction`).
    neighbors: for training_set, which has no links, the nearest training images.
    """

    probabilities: jax.Array
    links: tuple[jax.Array, ...] = ()
    nearest: tuple[jax.Array, ...] = ()
    neighbors: Neighbors | None = None


def open_student(workdir: pathlib.Path, graph: str = graph_choice.CHOICES[0]) -> Trained:
    """Opens the first student of a finished run.

    Args:
      workdir: the workdir of the run.
      graph: one of `graph_choice.CHOICES`.

    Raises:
      UserError: there is no run in the workdir; it is not finished, damaged or of another version; it has no such
        student; or the student needs the features of a teacher that was removed.
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
    """Opens the teacher of a run.

    Raises:
      UserError: the teacher was moved or removed, or is damaged.
    """
    task, folder = tasks.teacher_task(recorded.config, recorded), recorded.teacher_folder
    state = _restore(folder / "checkpoints", folder.name, task, f"the teacher of {recorded.workdir}")
    return trained_model(task, state, recorded.classes)


def _restore(checkpoints: pathlib.Path, owner: str, task: Task, title: str) -> TrainState:
    """Restores the last state of a training, or the best, without the states of the optimiser and the distiller."""
    folder = checkpoints / task.stage.name
    steps = None
    if (folder / "last").is_dir():
        with Checkpoints(folder / "last", owner) as last:
            steps = last.newest()
    if steps is None:
        raise UserError(f"{title} is not there ({folder / 'last'} is missing): run the run's own command again")
    if steps != task.total_steps:
        raise UserError(
            f"{title} is trained for {steps} of {task.total_steps} steps: run the run's own command to the end"
        )
    with Checkpoints(folder / ("best" if task.recipe.epoch == "best" else "last"), owner) as stored:
        saved = stored.restore_as_saved()
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
            f"{recorded.workdir} holds a student of another version (the shapes of its weights do not fit its "
            "config): train again in a new workdir"
        )


def answer(
    trained: Trained, images: jax.Array, mechanism: str = MECHANISMS[0], mask: jax.Array | None = None
) -> Answer:
    """Classifies raw images. This is a pure function, for `jax.jit` and `jax.export`.

    Args:
      trained: the student. Its class probabilities are averaged over its batches of anchors.
      images: (B, H, W, C) uint8; B > sparsity for batch_by_batch.
      mechanism: one of MECHANISMS, which are the same for a CNN; or TRAINING_SET, which needs a bank. Only with
        batch_by_batch does a prediction depend on the other images.
      mask: (B,), False for padding.
    """
    model = trained.model
    if mechanism == TRAINING_SET:
        return _by_training_set(trained, images)
    if not isinstance(model.module, GraphStudent):
        return Answer(jax.nn.softmax(model.outputs(images).logits.astype(jnp.float32)))
    inputs, mechanism2_graph = model.inputs(images), trained.recorded.config.evaluate.mechanism2_graph

    def predict(columns: Columns) -> inference.Prediction:
        if mechanism == MECHANISMS[0]:
            return inference.one_by_one(model.module, model.variables, columns, inputs)
        return inference.batch_by_batch(model.module, model.variables, columns, inputs, mask, mechanism2_graph)

    predictions = [predict(anchors.columns) for anchors in model.anchors]
    probabilities = jnp.mean(jnp.stack([jax.nn.softmax(p.logits.astype(jnp.float32)) for p in predictions]), axis=0)
    links = tuple(p.adjacency / jnp.maximum(p.adjacency.sum(-1, keepdims=True), 1e-12) for p in predictions)
    return Answer(probabilities, links, tuple(p.nearest for p in predictions))


def _by_training_set(trained: Trained, images: jax.Array) -> Answer:
    assert trained.bank is not None, "the student has no bank"
    bank, (logits, features) = trained.bank.bank, trained.model.logits_and_features(images)
    if bank.settings.signal == "labels":  # computed here, so that a bundle stores one number for each training image
        bank = bank.replace(signals=jax.nn.one_hot(bank.labels, len(trained.recorded.classes), dtype=bool))
    combined = neighbors.predict(bank, logits, features[bank.settings.space])
    return Answer(jax.nn.softmax(combined.logits.astype(jnp.float32)), neighbors=combined.neighbors)
