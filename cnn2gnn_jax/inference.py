"""Inductive inference (Section 3.2): Mechanism 1, one by one, and Mechanism 2, batch by batch.

Both use *anchors*, a batch of training images. The head has neurons for training images only, so it gives distances
from an unseen image to the anchors, but none from an anchor to an unseen image. Graphs without a head are computed from
the features of all nodes, as in training.

>>> from cnn2gnn_jax import gnn
>>> student = gnn.GraphStudent(num_classes=3, backbone=gnn.Flatten(), sparsity=4)
>>> train_AxHxWxC = jax.random.normal(jax.random.key(0), (20, 8, 8, 1))
>>> rows = HeadRows(jax.random.normal(jax.random.key(1), (20, 256)), jnp.zeros(20))
>>> variables = student.init(jax.random.key(2), train_AxHxWxC, rows)
>>> columns = anchors(student, variables, train_AxHxWxC, rows)
>>> test_BxHxWxC = jax.random.normal(jax.random.key(3), (7, 8, 8, 1))
>>> one_by_one(student, variables, columns, test_BxHxWxC).logits.shape
(7, 3)
>>> batch_by_batch(student, variables, columns, test_BxHxWxC).adjacency.shape
(7, 7)
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cnn2gnn_jax import graph
from cnn2gnn_jax.gnn import SPARSE_GRAPHS, Columns, GraphStudent, HeadRows

# The names of the mechanisms in results and flags. TRAINING_SET is the graph over the training set, see `neighbors`.
ONE_BY_ONE, BATCH_BY_BATCH, TRAINING_SET = "one_by_one", "batch_by_batch", "training_set"
MECHANISM2_GRAPHS = ("similar", "test_rows")
_MAX_PARALLEL_WEIGHTS = 2**25  # the largest number of edge weights in memory at a time: 128 MiB in float32


class Prediction(NamedTuple):
    """The predictions of a mechanism for B images.

    logits: (B, C).
    adjacency: the adjacency, with self-loops if the student adds them. For Mechanism 2 it is (B, B). For Mechanism 1 it
      is (B, A + 1), the row of each image in its own graph; the last column is the image itself.
    nearest: (B,), the position of the nearest anchor of each image. It is -1 if the mechanism does not choose anchors
      by distance, as for graphs without Eq. 3 and for Mechanism 2 without a head.
    """

    logits: jax.Array
    adjacency: jax.Array
    nearest: jax.Array


def anchors(module: GraphStudent, variables: Any, inputs: jax.Array, rows: HeadRows | None) -> Columns:
    """Computes the anchors: the training images that unseen images are linked to.

    Args:
      module: the student.
      variables: its parameters and batch statistics.
      inputs: (A, ...), training images, prepared as in training but without augmentation.
      rows: the head rows of the same images; None for graphs without a head.
    """
    nodes: Any = module.apply(variables, inputs, method="nodes")
    return Columns(nodes, rows)


def one_by_one(module: GraphStudent, variables: Any, anchors: Columns, inputs: jax.Array) -> Prediction:
    """Mechanism 1: adds each image to the graph of the anchors and classifies it in this graph of A + 1 nodes.

    One call handles all B images: they share the graph of the anchors, to which each image adds a row and a column.
    The prediction for an image does not depend on the other images.

    With a head, anchors have no distance to the image, so p(image | anchor) = 0, and the image has no distance to
    itself. A graph without a head is computed from the features of the A + 1 nodes, as in training.

    Args:
      module: the student.
      variables: its parameters and batch statistics.
      anchors: A training images.
      inputs: (B, ...), unseen images.

    Raises:
      ValueError: A <= sparsity for a graph that Eq. 3 makes.
    """
    apply: Callable[..., Any] = functools.partial(module.apply, variables)
    nodes = apply(inputs, method="nodes")
    projected = apply(nodes, method="project")
    anchor_count, batch_size = anchors.nodes.shape[0], nodes.shape[0]
    nearest = jnp.full((batch_size,), -1)
    if module.graph == "off":
        self_only = jnp.concatenate([jnp.zeros((batch_size, anchor_count)), jnp.ones((batch_size, 1))], axis=-1)
        return Prediction(apply(jax.nn.relu(projected), method="classify"), self_only, nearest)
    projected_anchors = apply(anchors.nodes, method="project")
    if module.graph in SPARSE_GRAPHS:
        distances, anchor_distances = (apply(x, anchors, method="distances") for x in (nodes, anchors.nodes))
        nearest = jnp.argmin(distances, axis=-1)
    if module.graph == "euclidean_sparse":
        aggregated, adjacency = _aggregate_by_distance(
            module, anchor_distances, distances, projected_anchors, projected
        )
        return Prediction(apply(aggregated, method="classify"), adjacency, nearest)
    if module.graph == "learned":
        anchor_adjacency = graph.symmetrize(graph.sparse_neighbors(anchor_distances, module.sparsity))
        links = graph.sparse_neighbors(distances, module.sparsity) / 2
        self_weights = jnp.zeros(batch_size, links.dtype)
    else:
        anchor_adjacency = apply(anchors.nodes, None, method="adjacency")
        image_rows = jax.vmap(
            lambda node: apply(jnp.concatenate([anchors.nodes, node[None]]), None, method="adjacency")[-1]
        )(nodes)
        links, self_weights = image_rows[:, :-1], image_rows[:, -1]
    if module.self_loops:
        anchor_adjacency, self_weights = graph.add_self_loops(anchor_adjacency), self_weights + 1
    aggregated = _aggregate(anchor_adjacency, links, self_weights, projected_anchors, projected)
    adjacency = jnp.concatenate([links, self_weights[:, None]], axis=-1)
    return Prediction(apply(aggregated, method="classify"), adjacency, nearest)


def _aggregate(
    anchor_adjacency: jax.Array,
    links: jax.Array,
    self_weights: jax.Array,
    projected_anchors: jax.Array,
    projected: jax.Array,
) -> jax.Array:
    """Aggregates the hidden features over the graph of each image with the anchors.

    The adjacency (A + 1, A + 1) of an image is never formed: the images differ only in its last row and column.

    Args:
      anchor_adjacency: (A, A), between anchors, self-loops included.
      links: (B, A), between images and anchors.
      self_weights: (B,), the weight of each image on itself.
      projected_anchors: (A, H), X W of the first layer for the anchors.
      projected: (B, H), X W of the first layer for the images.

    Returns:
      P H of Eq. 2 in the row of each image, (B, H), which the second layer multiplies by its weights.
    """
    # Each image changes the degrees of its anchors, so the D^-1/2 of the anchors, (B, A), differ between images.
    anchor_scale = graph.inverse_sqrt_degree(jnp.sum(anchor_adjacency, axis=-1) + links)
    image_scale = graph.inverse_sqrt_degree(jnp.sum(links, axis=-1) + self_weights)[:, None]
    scaled_self_weights = self_weights[:, None] * image_scale
    scaled_links = links * anchor_scale  # (B, A)
    # One matrix product of (A, A) and (A, B, H) for all images is faster than one small product for each image.
    scaled_anchors = anchor_scale.T[:, :, None] * projected_anchors[:, None, :]
    sums = jnp.tensordot(anchor_adjacency, scaled_anchors, 1) + links.T[:, :, None] * (image_scale * projected)
    hidden_anchors = jax.nn.relu(anchor_scale.T[:, :, None] * sums)
    hidden_images = jax.nn.relu(image_scale * (scaled_links @ projected_anchors + scaled_self_weights * projected))
    return image_scale * (jnp.einsum("ba,abh->bh", scaled_links, hidden_anchors) + scaled_self_weights * hidden_images)


def _aggregate_by_distance(
    module: GraphStudent,
    anchor_distances: jax.Array,
    distances: jax.Array,
    projected_anchors: jax.Array,
    projected: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Does the same as `_aggregate` for a graph that Eq. 3 makes from the distances between all A + 1 nodes.

    An image may change any row of the anchors, so each image needs its own graph. The images are handled in parallel,
    or one after another if the graphs together have more than `_MAX_PARALLEL_WEIGHTS` weights. They are
    also handled one after another if B is symbolic, as in an export.

    Args:
      module: the student.
      anchor_distances: (A, A), between anchors.
      distances: (B, A), between images and anchors.
      projected_anchors: (A, H), X W of the first layer for the anchors.
      projected: (B, H), X W of the first layer for the images.

    Returns:
      P H of Eq. 2 in the row of each image, (B, H), and the row of each image in its adjacency, (B, A + 1).
    """

    def aggregate(image: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        image_distances, image_projected = image
        self_distance = jnp.zeros((1,), anchor_distances.dtype)
        all_distances = jnp.block([[anchor_distances, image_distances[:, None]], [image_distances, self_distance]])
        adjacency = graph.symmetrize(graph.sparse_neighbors(all_distances, module.sparsity))
        normalized = graph.normalize(adjacency, module.self_loops)
        hidden = jax.nn.relu(normalized @ jnp.concatenate([projected_anchors, image_projected[None]]))
        with_loops = graph.add_self_loops(adjacency) if module.self_loops else adjacency
        return normalized[-1] @ hidden, with_loops[-1]

    batch_size, node_count = projected.shape[0], projected_anchors.shape[0] + 1
    if isinstance(batch_size, int) and batch_size * node_count**2 <= _MAX_PARALLEL_WEIGHTS:
        return jax.vmap(aggregate)((distances, projected))
    return jax.lax.map(aggregate, (distances, projected))


def batch_by_batch(
    module: GraphStudent,
    variables: Any,
    anchors: Columns,
    inputs: jax.Array,
    mask: jax.Array | None = None,
    mechanism2_graph: str = "similar",
) -> Prediction:
    """Mechanism 2: a batch of unseen images takes over the graph between their nearest anchors.

    Let sim(i) be the nearest anchor of image i. The graph is Eq. 3 applied to the distances from sim(i) to sim(j) if
    `mechanism2_graph` is `similar`, or from image i itself to sim(j) if it is `test_rows`. The features of the images
    are propagated over this graph. Images often share an anchor, so rows have ties; see `graph.sparse_neighbors`.

    A graph without a head is computed from the features of the images, as in training. It uses no anchors.

    Args:
      module: the student.
      variables: its parameters and batch statistics.
      anchors: A training images.
      inputs: (B, ...), unseen images, B > sparsity.
      mask: (B,), False for padding. Padding does not change the other predictions; its own logits have no meaning.
      mechanism2_graph: `similar` or `test_rows`.

    Raises:
      ValueError: `mechanism2_graph` has another value.
    """
    if mechanism2_graph not in MECHANISM2_GRAPHS:
        raise ValueError(
            f"mechanism2_graph {mechanism2_graph!r} is unknown: choose one of {', '.join(MECHANISM2_GRAPHS)}"
        )
    apply: Callable[..., Any] = functools.partial(module.apply, variables)
    nodes = apply(inputs, method="nodes")
    nearest = jnp.full((nodes.shape[0],), -1)
    if module.graph == "off":
        logits = apply(nodes, None, method="propagate").logits
        return Prediction(logits, jnp.eye(nodes.shape[0]), nearest)
    if module.graph == "learned":
        distances = apply(nodes, anchors, method="distances")
        nearest = jnp.argmin(distances, axis=-1)
        # Columns are selected after the distances to all anchors are computed. Thus images that share an anchor have
        # exactly equal distances, without rounding differences, and Eq. 3 treats them as ties.
        if mechanism2_graph == "similar":
            distances = apply(anchors.nodes[nearest], anchors, method="distances")
        adjacency = graph.symmetrize(graph.sparse_neighbors(distances[:, nearest], module.sparsity, mask))
    else:
        adjacency = apply(nodes, None, mask, method="adjacency")
    normalized = graph.normalize(adjacency, module.self_loops, mask)
    logits = apply(nodes, normalized, method="propagate").logits
    return Prediction(logits, graph.add_self_loops(adjacency) if module.self_loops else adjacency, nearest)


def features(module: Any, variables: Any, inputs: jax.Array) -> dict[str, jax.Array]:
    """The features of images in each space in which the training-set graph can measure distances; see `neighbors`.

    Args:
      module: a graph student or a CNN.
      variables: its parameters and batch statistics.
      inputs: (B, ...).

    Returns:
      A dictionary of arrays by the name of the space:
        backbone: (B, F), the node features of a graph student or the pooled features of a CNN.
        hidden: (B, H), the activations of a graph student's first layer without its graph; missing for a CNN.
        logits: (B, C), the logits, of a graph student without its graph.
        head: (B, K + 1), the output of the head with a 1 appended for the bias of its decision layer; only for a graph
          student with a head.
    """
    apply: Callable[..., Any] = functools.partial(module.apply, variables)
    if not isinstance(module, GraphStudent):
        outputs = apply(inputs, train=False)
        return {"backbone": outputs.pooled, "logits": outputs.logits}
    nodes = apply(inputs, method="nodes")
    hidden = jax.nn.relu(apply(nodes, method="project"))
    spaces = {"backbone": nodes, "hidden": hidden, "logits": apply(hidden, method="classify")}
    if module.graph == "learned":
        head = apply(nodes, method=lambda module, nodes: module.head(nodes))
        spaces["head"] = jnp.append(head, jnp.ones((nodes.shape[0], 1), head.dtype), axis=-1)
    return spaces
