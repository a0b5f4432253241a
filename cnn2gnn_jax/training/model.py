"""A trained model: everything that predicting for images needs, in one object."""

from collections.abc import Sequence
from typing import Any, Optional

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from cnn2gnn_jax import inference, networks
from cnn2gnn_jax.data import augment
from cnn2gnn_jax.gnn import Columns, GraphStudent
from cnn2gnn_jax.runtime.devices import ONE, Devices
from cnn2gnn_jax.training.state import TrainState, head_rows
from cnn2gnn_jax.training.task import Task


class Anchors(flax.struct.PyTreeNode):
    """A batch of A training images that other images are linked to.

    columns: their node features and head rows.
    labels: their classes, (A,).
    index: their positions in the training set, (A,).
    """

    columns: Columns
    labels: Any
    index: Any


class TrainedModel(flax.struct.PyTreeNode):
    """A trained network, with the normalization of its inputs and the names of its classes.

    It is a pytree whose leaves are arrays, so that a compiled function takes it as an argument and serves all models
    of the same module.

    module: a CNN of the zoo, or a `gnn.GraphStudent`.
    variables: its parameters and BatchNorm statistics.
    mean, std: the channel statistics of the images; empty where the inputs are features.
    classes: the name of label k at position k.
    anchors: for a graph student, the batches that images are linked to in turn; class probabilities are averaged over
      them.
    features: the teacher whose pooled features of an image are the inputs; None where the inputs are images or stored
      features.
    """

    module: Any = flax.struct.field(pytree_node=False)
    variables: Any
    mean: tuple[float, ...] = flax.struct.field(pytree_node=False)
    std: tuple[float, ...] = flax.struct.field(pytree_node=False)
    classes: tuple[str, ...] = flax.struct.field(pytree_node=False)
    anchors: tuple[Anchors, ...] = ()
    features: Optional["TrainedModel"] = None

    @property
    def is_graph(self) -> bool:
        return isinstance(self.module, GraphStudent)

    @property
    def graph(self) -> str | None:
        """The graph setting of a graph student; None for a CNN."""
        return self.module.graph if isinstance(self.module, GraphStudent) else None

    def inputs(self, images: jax.Array) -> jax.Array:
        """The network's inputs for raw images (B, H, W, C) uint8, or for stored features (B, F)."""
        if self.features is not None:
            return self.features.outputs(images).pooled.astype(jnp.float32)
        return augment.normalize(images, self.mean, self.std)

    def outputs(self, images: jax.Array) -> networks.Outputs:
        """The outputs of a CNN for raw images (B, H, W, C) uint8."""
        outputs: Any = self.module.apply(self.variables, self.inputs(images), train=False)
        return outputs

    def feature_spaces(self, images: jax.Array) -> dict[str, jax.Array]:
        """The features of raw images by space, see `inference.features`."""
        return inference.features(self.module, self.variables, self.inputs(images))

    def logits_and_features(self, images: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The inputs of `neighbors.predict` for B raw images: the logits (B, C), and the features by space.

        For a graph student with a graph, the logits are the logarithms of the class probabilities by Mechanism 1,
        averaged over its batches of anchors. Logits are determined up to a constant for each image.
        """
        features = self.feature_spaces(images)
        if self.graph in (None, "off"):
            return features["logits"], features
        inputs = self.inputs(images)
        predictions = [
            inference.one_by_one(self.module, self.variables, batch.columns, inputs) for batch in self.anchors
        ]
        probabilities = [jax.nn.softmax(prediction.logits.astype(jnp.float32)) for prediction in predictions]
        mean = sum(probabilities) / len(probabilities)
        return jnp.log(jnp.maximum(mean, jnp.finfo(jnp.float32).tiny)), features


def trained_model(
    task: Task,
    state: TrainState,
    classes: Sequence[str],
    anchors: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]] = (),
    features: TrainedModel | None = None,
    devices: Devices = ONE,
) -> TrainedModel:
    """Makes the trained model of a task.

    Args:
      task: the task that was trained.
      state: its trained state.
      classes: the class names, by label.
      anchors: for a graph student, batches of training images: their indices (A,), their labels (A,), and their raw
        inputs (A, ...), as `TrainedModel.inputs` takes them.
      features: see `TrainedModel`.
      devices: the devices over which the head's table is sharded.
    """
    model = TrainedModel(task.module, state.variables, task.mean, task.std, tuple(classes), features=features)

    def columns(index: np.ndarray, images: np.ndarray) -> Columns:
        assert isinstance(task.module, GraphStudent)
        rows = head_rows(task, state, index, devices)
        return inference.anchors(task.module, state.variables, model.inputs(jnp.asarray(images)), rows)

    batches = tuple(Anchors(columns(index, images), labels, index) for index, labels, images in anchors)
    return model.replace(anchors=batches)
