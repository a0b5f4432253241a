"""The graph head (Section 3.2), the graph convolution (Eq. 2) and the two-layer graph student over a backbone."""

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
SPARSE_GRAPHS = ("learned", "euclidean_sparse")  # those of Eq. 3: each row chooses among columns


class HeadRows(NamedTuple):
    """Rows of the graph head's decision layer, one for each of C training images."""

    kernel: jax.Array  # (C, K)
    bias: jax.Array  # (C,)


class Columns(NamedTuple):
    """The C images that a node may be linked to: their node features, and their head rows where a head is used."""

    nodes: jax.Array  # (C, F)
    rows: HeadRows | None


class GraphHead(nn.Module):
    """The deep network under the head's decision layer: fully connected layers with ReLU, (B, F) -> (B, K)."""

    widths: Sequence[int] = (512, 256)

    @nn.compact
    def __call__(self, nodes: jax.Array) -> jax.Array:
        for width in self.widths:
            nodes = nn.relu(nn.Dense(width)(nodes))
        return nodes


class GraphConvolution(nn.Module):
    """P X W of Eq. 2, before its activation.

    `factor` is this device's rows of the graph factor P, (b, B) or (..., b, B); None stands for the identity.
    """

    features: int

    @nn.compact
    def __call__(self, x: jax.Array, factor: jax.Array | None) -> jax.Array:
        x = nn.Dense(self.features, use_bias=False)(x)
        return x if factor is None else factor @ all_gather(x)


class Flatten(nn.Module):
    """The backbone `pixels` (and `teacher`, whose inputs are stored features): (B, ...) -> (B, F)."""

    def __call__(self, inputs: jax.Array, train: bool = False, mask: jax.Array | None = None) -> jax.Array:
        del train, mask
        return inputs.reshape(inputs.shape[0], -1).astype(jnp.promote_types(inputs.dtype, jnp.float32))


class Stem(nn.Module):
    """The backbone `stem`: 3x3 convolutions with BatchNorm, ReLU and 2x2 max-pool, flattened to (B, F)."""

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
    """A network of the zoo as a backbone: its pooled features, (B, F)."""

    network: nn.Module

    def __call__(self, inputs: jax.Array, train: bool = False, mask: jax.Array | None = None) -> jax.Array:
        return self.network(inputs, train=train, mask=mask).pooled


def create_backbone(name: str, *, stem_widths: Sequence[int], image_stem: str, dtype: Any) -> nn.Module:
    """The module that turns images, or stored features, into node features.

    Args:
      name: `pixels`, `teacher` (inputs are the teacher's stored pooled features), `stem`, or a network of the zoo.
      stem_widths: channels of the `stem` backbone's convolutions.
      image_stem: `cifar` or `downsample`, the first layers of a zoo network.
      dtype: of the convolutions.

    Raises:
      UserError: unknown network.
    """
    if name in ("pixels", "teacher"):
        return Flatten()
    if name == "stem":
        return Stem(tuple(stem_widths), dtype=dtype)
    # The zoo's own classifier stays unused: with one class it costs a handful of numbers.
    return Pooled(networks.create(name, 1, stem=image_stem, dtype=dtype))


class GraphStudent(nn.Module):
    """The two-layer graph network over a backbone, with the graph over the batch that `graph` names.

    Attributes:
      num_classes: C of the logits.
      backbone: images to node features, called as `backbone(inputs, train=, mask=)`.
      graph: `learned` (the head and Eq. 3), `off` (A = I), `inner_product`, `euclidean` (Table 3's InGNN and EucGNN),
        `euclidean_sparse` (Eq. 3 on squared Euclidean distances of the node features).
      sparsity: s of Eq. 3.
      hidden: width of the first graph convolution.
      head_widths: the graph head's layers under its decision layer.
      self_loops: whether I is added to A before normalisation.
      threshold: smallest weight kept in the `inner_product` and `euclidean` graphs.

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
        """Training (Algorithm 1): the graph of the batch over itself.

        Args:
          inputs: (b, ...), this device's part of the batch.
          rows: the head rows of the *global* batch, None for the graphs without a head.
          train: whether BatchNorm uses the batch's statistics.
          mask: (b,), False for padding.

        Returns:
          Outputs with logits (b, C) and the first layer's activations as `pooled`, (b, hidden); and the global
          adjacency (B, B) before self-loops, None with the graph off.
        """
        nodes = self.nodes(inputs, train, mask)
        mask_all = None if mask is None else all_gather(mask)
        adjacency = self.adjacency(nodes, rows, mask_all)
        if adjacency is None:
            return self.propagate(nodes, None), None
        factor = graph.normalize(adjacency, self.self_loops, mask_all)
        return self.propagate(nodes, local_rows(factor, nodes.shape[0])), adjacency

    def nodes(self, inputs: jax.Array, train: bool = False, mask: jax.Array | None = None) -> jax.Array:
        """Node features (B, F), float32 or wider, of inputs (B, ...)."""
        return self.backbone(inputs, train=train, mask=mask)

    def distances(self, nodes: jax.Array, columns: Columns) -> jax.Array:
        """Distances (B, C) from nodes (B, F) to C columns: the head's outputs, or squared Euclidean distances."""
        if self.graph == "learned":
            assert columns.rows is not None
            # Full float32: GPUs would otherwise round to TF32, too coarse to tell near neighbours apart.
            product = jnp.matmul(self.head(nodes), columns.rows.kernel.T, precision="highest")
            return product + columns.rows.bias
        return graph.squared_distances(nodes, columns.nodes)

    def adjacency(self, nodes: jax.Array, rows: HeadRows | None, mask: jax.Array | None = None) -> jax.Array | None:
        """Adjacency (B, B) of a (global) batch over itself; None with the graph off."""
        if self.graph == "off":
            return None
        everyone = all_gather(nodes)
        if self.graph == "inner_product":
            return graph.inner_product_adjacency(everyone, self.threshold)
        if self.graph == "euclidean":
            return graph.euclidean_adjacency(everyone, self.threshold)
        local = graph.sparse_neighbors(self.distances(nodes, Columns(everyone, rows)), self.sparsity, mask)
        return graph.symmetrize(all_gather(local))

    def project(self, nodes: jax.Array) -> jax.Array:
        """X W of the first layer, (B, hidden): what the mechanisms share between graphs."""
        return self.layer1(nodes, None)

    def classify(self, hidden: jax.Array) -> jax.Array:
        """H W of the second layer, (B, C)."""
        return self.layer2(hidden, None)

    def propagate(self, nodes: jax.Array, factor: jax.Array | None) -> networks.Outputs:
        """Both graph convolutions (Eq. 2) with the graph factor (b, B); None stands for the identity."""
        hidden = nn.relu(self.layer1(nodes, factor))
        return networks.Outputs(self.layer2(hidden, factor), (), (), hidden)
