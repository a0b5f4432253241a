"""Opens the trained student of a run and predicts the classes of new images with it."""

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

# A student without a graph links no image to another, so its batch of anchors is empty.
_NO_ANCHORS = Anchors(Columns(np.zeros((0, 1), np.float32), None), (), ())  # type: ignore[arg-type]


class Trained(NamedTuple):
    """A trained student that predicts for raw images.

    recorded: the record of its run.
    model: the student.
    bank: the bank of the training-set graph; None if the student predicts without this graph.
    """

    recorded: runs.Recorded
    model: TrainedModel
    bank: StoredBank | None = None


class Prediction(NamedTuple):
    """The predictions of a student for B images.

    probabilities: (B, C), the class probabilities.
    links: for each batch of anchors, the edge weights (B, N) of a graph student; each row sums to 1. For one_by_one the
      columns are the anchors, followed by the image itself. For batch_by_batch they are the B images.
    nearest: for each batch of anchors, the position of each image's nearest anchor, (B,); -1 if there is none (see
      `inference.Prediction`).
    neighbors: the nearest training images, for training_set only, which has no links.
    """

    probabilities: jax.Array
    links: tuple[jax.Array, ...] = ()
    nearest: tuple[jax.Array, ...] = ()
    neighbors: Neighbors | None = None


def open_student(workdir: pathlib.Path, graph: str = graph_choice.CHOICES[0]) -> Trained:
    """Opens the first student of a finished run.

    Args:
      workdir: the folder of the run.
      graph: one of `graph_choice.CHOICES`.

    Raises:
      UserError: there is no run, the run is unfinished, damaged or of another version, it has no such student, or the
        student needs the features of a teacher that no longer exists.
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
      UserError: the teacher is damaged, or no longer where the run saved it.
    """
    task, folder = tasks.teacher_task(recorded.config, recorded), recorded.teacher_folder
    state = _restore(folder / "checkpoints", folder.name, task, f"the teacher of {recorded.workdir}")
    return trained_model(task, state, recorded.classes)


def _restore(checkpoints: pathlib.Path, owner: str, task: Task, description: str) -> TrainState:
    """Restores the last or the best state of a training, without the states of the optimizer and the distiller."""
    folder = checkpoints / task.stage.name
    steps = None
    if (folder / "last").is_dir():
        with Checkpoints(folder / "last", owner) as last:
            steps = last.newest()
    if steps is None:
        raise UserError(f"{description} is not there ({folder / 'last'} is missing): run the run's own command again")
    if steps != task.total_steps:
        raise UserError(
            f"{description} is trained for {steps} of {task.total_steps} steps: run the run's own command to the end"
        )
    with Checkpoints(folder / ("best" if task.recipe.epoch == "best" else "last"), owner) as epoch_checkpoints:
        saved = epoch_checkpoints.restore_as_saved()
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


def predict(
    trained: Trained, images: jax.Array, mechanism: str = inference.ONE_BY_ONE, mask: jax.Array | None = None
) -> Prediction:
    """Predicts for raw images (B, H, W, C) uint8. It is a pure function that `jax.jit` and `jax.export` can trace.

    Args:
      trained: the student. Its class probabilities are averaged over its batches of anchors.
      images: the images. For batch_by_batch, B must be greater than the sparsity.
      mechanism: one_by_one (Mechanism 1), batch_by_batch (Mechanism 2) or training_set, which needs a student with its
        bank. A CNN predicts the same with the first two. Only with batch_by_batch does the prediction for an image
        depend on the other images.
      mask: (B,), False for padding.
    """
    model = trained.model
    if mechanism == inference.TRAINING_SET:
        return _predict_with_bank(trained, images)
    if not isinstance(model.module, GraphStudent):
        return Prediction(jax.nn.softmax(model.outputs(images).logits.astype(jnp.float32)))
    inputs, mechanism2_graph = model.inputs(images), trained.recorded.config.evaluate.mechanism2_graph

    def predict_with_anchors(columns: Columns) -> inference.Prediction:
        if mechanism == inference.ONE_BY_ONE:
            return inference.one_by_one(model.module, model.variables, columns, inputs)
        return inference.batch_by_batch(model.module, model.variables, columns, inputs, mask, mechanism2_graph)

    predictions = [predict_with_anchors(anchors.columns) for anchors in model.anchors]
    probabilities = [jax.nn.softmax(prediction.logits.astype(jnp.float32)) for prediction in predictions]
    adjacencies = [prediction.adjacency for prediction in predictions]
    links = tuple(adjacency / jnp.maximum(adjacency.sum(-1, keepdims=True), 1e-12) for adjacency in adjacencies)
    nearest = tuple(prediction.nearest for prediction in predictions)
    return Prediction(jnp.mean(jnp.stack(probabilities), axis=0), links, nearest)


def _predict_with_bank(trained: Trained, images: jax.Array) -> Prediction:
    assert trained.bank is not None, "the student has no bank"
    bank, (logits, features) = trained.bank.bank, trained.model.logits_and_features(images)
    if bank.settings.signal == "labels":
        # The one-hot labels are computed here, so that a bundle stores a single number for each training image.
        bank = bank.replace(signals=jax.nn.one_hot(bank.labels, len(trained.recorded.classes), dtype=bool))
    combined = neighbors.predict(bank, logits, features[bank.settings.space])
    return Prediction(jax.nn.softmax(combined.logits.astype(jnp.float32)), neighbors=combined.neighbors)
