"""The graph head (Section 3.2), the graph convolution (Eq. 2) and the two-layer graph student on top of a backbone.

The last layer of the graph head, its *decision layer*, has one neuron for each training image. The output of a neuron
is the distance from a node to that image. There may be a million neurons, but a graph over a batch needs only those of
its own images. Therefore the decision layer is not a Flax module here: callers select the weights of these neurons, the
*head rows*, and pass them as an argument. `training.head_table` stores and updates all of them.

A batch may be split over devices. Shapes with b are this device's part of the batch, those with B the global batch; on
one device they are equal.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnn2gnn_jax import graph, networks
from cnn2gnn_jax.networks.conv import Conv
from cnn2gnn_jax.networks.layers import max_pool
from cnn2gnn_jax.networks.norm import BatchNorm
from cnn2gnn_jax.runtime.collectives import all_gather, local_rows

GRAPHS = ("learned", "off", "inner_product", "euclidean", "euclidean_sparse")
SPARSE_GRAPHS = ("learned", "euclidean_sparse")  # the graphs whose weights are those of Eq. 3


class HeadRows(NamedTuple):
    """The weights of the neurons of C training images in the graph head's decision layer.

    kernel: (C, K), a row of weights for each neuron; the transpose of the kernel of `nn.Dense`.
    bias: (C,).
    """

    kernel: jax.Array
    bias: jax.Array


class Columns(NamedTuple):
    """The C images that a node may be linked to, which are the columns of the distance matrix.

    nodes: (C, F), their node features.
    rows: their head rows; None if the graph has no head.
    """

    nodes: jax.Array
    rows: HeadRows | None


class GraphHead(nn.Module):
    """The layers of the graph head below its decision layer: fully connected layers with ReLU, (B, F) -> (B, K)."""

    widths: Sequence[int] = (512, 256)

    @nn.compact
    def __call__(self, nodes: jax.Array) -> jax.Array:
        for width in self.widths:
            nodes = nn.relu(nn.Dense(width)(nodes))
        return nodes


class GraphConvolution(nn.Module):
    """The graph convolution P X W of Eq. 2, without the activation.

    It is called on `x`, this device's nodes (..., b, F), and `normalized_adjacency`, this device's rows of P,
    (..., b, B), or None for the identity. It returns (..., b, features).
    """

    features: int

    @nn.compact
    def __call__(self, x: jax.Array, normalized_adjacency: jax.Array | None) -> jax.Array:
        x = nn.Dense(self.features, use_bias=False)(x)
        return x if normalized_adjacency is None else normalized_adjacency @ all_gather(x)


class Flatten(nn.Module):
    """The backbones `pixels` and `teacher`: flattens images, or stored features, (B, ...) -> (B, F)."""

    def __call__(self, inputs: jax.Array, train: bool = False, mask: jax.Array | None = None) -> jax.Array:
        del train, mask
        return inputs.reshape(inputs.shape[0], -1).astype(jnp.promote_types(inputs.dtype, jnp.float32))


class Stem(nn.Module):
    """The backbone `stem`: 3x3 convolutions, each with BatchNorm, ReLU and 2x2 max-pooling, flattened to (B, F)."""

    widths: Sequence[int] = (32, 64, 128)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool = False, mask: jax.Array | None = None) -> jax.Array:
        x = inputs
        for width in self.widths:
            x = Conv(width, 3, padding=1, dtype=self.dtype)(x)
            x = nn.relu(BatchNorm()(x, train=train, mask=mask))
            x = max_pool(x)
        return Flatten()(x)


class Pooled(nn.Module):
    """A backbone that returns the pooled features (B, F) of a network in `cnn2gnn_jax.networks`."""

    network: nn.Module

    def __call__(self, inputs: jax.Array, train: bool = False, mask: jax.Array | None = None) -> jax.Array:
        return self.network(inputs, train=train, mask=mask).pooled


def create_backbone(name: str, *, stem_widths: Sequence[int], image_stem: str, dtype: Any) -> nn.Module:
    """Creates the module that computes node features from images or from stored features.

    Args:
      name: `pixels`, `teacher` (the inputs are the teacher's stored pooled features), `stem`, or the name of a network
        in `cnn2gnn_jax.networks`.
      stem_widths: channels of the convolutions of the `stem` backbone.
      image_stem: `cifar` or `downsample`, the first layers of a network; see `networks.create`.
      dtype: dtype of the convolutions.

    Raises:
      UserError: the network is unknown.
    """
    if name in ("pixels", "teacher"):
        return Flatten()
    if name == "stem":
        return Stem(tuple(stem_widths), dtype=dtype)
    # The network's classifier is not used. With one class it has hardly any parameters.
    return Pooled(networks.create(name, 1, stem=image_stem, dtype=dtype))


class GraphStudent(nn.Module):
    """The graph student: a backbone and two graph convolutions (Eq. 2) on a graph over the batch.

    Attributes:
      num_classes: number of classes C, the width of the logits.
      backbone: module that computes node features from images, called as `backbone(inputs, train=, mask=)`.
      graph: how the graph is made: `learned` (the head and Eq. 3), `off` (A = I), `inner_product` (InGNN of Table 3),
        `euclidean` (EucGNN of Table 3), or `euclidean_sparse` (Eq. 3 on squared Euclidean distances of node features).
      sparsity: s of Eq. 3.
      hidden: width of the first graph convolution.
      head_widths: widths of the graph head's layers below its decision layer.
      self_loops: whether I is added to A before normalization.
      threshold: weights of the `inner_product` and `euclidean` graphs that are not greater than this are set to 0.

    >>> student = GraphStudent(num_classes=3, backbone=Flatten(), sparsity=4)
    >>> images = jax.random.normal(jax.random.key(0), (20, 8, 8, 1))
    >>> rows = HeadRows(jax.random.normal(jax.random.key(1), (20, 256)), jnp.zeros(20))
    >>> variables = student.init(jax.random.key(2), images, rows)
    >>> outputs, adjacency = student.apply(variables, images, rows)
    >>> outputs.logits.shape, adjacency.shape
    ((20, 3), (20, 20))
    """

    num_classes: int
    backbone: nn.Module
    graph: str = "learned"
    sparsity: int = 50
    hidden: int = 256
    head_widths: Sequence[int] = (512, 256)
    self_loops: bool = True
    threshold: float = 0.0

    def setup(self) -> None:
        if self.graph not in GRAPHS:
            raise ValueError(f"graph {self.graph!r} is unknown: choose one of {', '.join(GRAPHS)}")
        if self.graph == "learned":
            self.head = GraphHead(tuple(self.head_widths))
        self.layer1 = GraphConvolution(self.hidden)
        self.layer2 = GraphConvolution(self.num_classes)

    def __call__(
        self, inputs: jax.Array, rows: HeadRows | None, train: bool = False, mask: jax.Array | None = None
    ) -> tuple[networks.Outputs, jax.Array | None]:
        """The forward pass of training (Algorithm 1), on the graph between the images of the batch.

        Args:
          inputs: (b, ...), this device's part of the batch.
          rows: the head rows of the *global* batch; None for graphs without a head.
          train: whether BatchNorm uses the statistics of the batch.
          mask: (b,), False for padding.

        Returns:
          A pair. First, the outputs with logits (b, C) and, as `pooled`, the first layer's activations (b, hidden).
          Second, the adjacency (B, B) of the global batch without self-loops; None if the graph is off.
        """
        nodes = self.nodes(inputs, train, mask)
        global_mask = None if mask is None else all_gather(mask)
        adjacency = self.adjacency(nodes, rows, global_mask)
        if adjacency is None:
            return self.propagate(nodes, None), None
        normalized = graph.normalize(adjacency, self.self_loops, global_mask)
        return self.propagate(nodes, local_rows(normalized, nodes.shape[0])), adjacency

    def nodes(self, inputs: jax.Array, train: bool = False, mask: jax.Array | None = None) -> jax.Array:
        """Node features (B, F) of inputs (B, ...), float32 or wider."""
        return self.backbone(inputs, train=train, mask=mask)

    def distances(self, nodes: jax.Array, columns: Columns) -> jax.Array:
        """Distances (B, C) from nodes (B, F) to C columns.

        They are the outputs of the head for the graph `learned`, and squared Euclidean distances for the others.
        """
        if self.graph == "learned":
            assert columns.rows is not None
            # In full float32: by default GPUs round to TF32, which cannot distinguish near neighbors.
            product = jnp.matmul(self.head(nodes), columns.rows.kernel.T, precision="highest")
            return product + columns.rows.bias
        return graph.squared_distances(nodes, columns.nodes)

    def adjacency(self, nodes: jax.Array, rows: HeadRows | None, mask: jax.Array | None = None) -> jax.Array | None:
        """Adjacency (B, B) between the images of the global batch, without self-loops.

        Args:
          nodes: (b, F), this device's node features.
          rows: the head rows of the global batch; None for graphs without a head.
          mask: (B,), False for padding.

        Returns:
          (B, B), or None if the graph is off.
        """
        if self.graph == "off":
            return None
        global_nodes = all_gather(nodes)
        if self.graph == "inner_product":
            return graph.inner_product_adjacency(global_nodes, self.threshold)
        if self.graph == "euclidean":
            return graph.euclidean_adjacency(global_nodes, self.threshold)
        local_weights = graph.sparse_neighbors(self.distances(nodes, Columns(global_nodes, rows)), self.sparsity, mask)
        return graph.symmetrize(all_gather(local_weights))

    def project(self, nodes: jax.Array) -> jax.Array:
        """X W of the first layer, (B, F) -> (B, hidden), which inference computes once and uses in many graphs."""
        return self.layer1(nodes, None)

    def classify(self, hidden: jax.Array) -> jax.Array:
        """H W of the second layer, (B, hidden) -> (B, C)."""
        return self.layer2(hidden, None)

    def propagate(self, nodes: jax.Array, normalized_adjacency: jax.Array | None) -> networks.Outputs:
        """Both graph convolutions (Eq. 2).

        Args:
          nodes: (b, F), this device's node features.
          normalized_adjacency: (b, B), this device's rows of P; None stands for the identity.

        Returns:
          Outputs with logits (b, C) and, as `pooled`, the first layer's activations (b, hidden).
        """
        hidden = nn.relu(self.layer1(nodes, normalized_adjacency))
        logits = self.layer2(hidden, normalized_adjacency)
        return networks.Outputs(logits=logits, features=(), preactivations=(), pooled=hidden)
