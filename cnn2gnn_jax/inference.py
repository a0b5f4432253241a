"""Inductive inference (Section 3.2): Mechanism 1, one by one, and Mechanism 2, batch by batch.

Both take `anchors`, a batch of training images. The head has neurons for training images alone, so an unseen image
has distances *to* anchors, and no anchor has a distance to it. The graphs without a head have every distance: they are
built over the nodes at hand as in training.

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

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cnn2gnn_jax import graph
from cnn2gnn_jax.gnn import Columns, GraphStudent, HeadRows

READINGS = ("similar", "test_rows")
_TOGETHER = 2**25  # weights of cascaded graphs that are held at a time: 128 MiB in float32


class Prediction(NamedTuple):
    """What a mechanism answers for B images.

    logits: (B, C).
    adjacency: the graph with self-loops where the student adds them; of Mechanism 2 (B, B), of Mechanism 1 each
      image's own row (B, A + 1), its last column being the image itself.
    nearest: (B,), the position of each image's nearest anchor; -1 where anchors are not chosen by distance, as in the
      graphs without Eq. 3 and in Mechanism 2 without a head.
    """

    logits: jax.Array
    adjacency: jax.Array
    nearest: jax.Array


def anchors(module: GraphStudent, variables: Any, inputs: jax.Array, rows: HeadRows | None) -> Columns:
    """The training batch that unseen images are linked to.

    Args:
      module: the student.
      variables: its parameters and statistics.
      inputs: (A, ...), prepared as in training without augmentation.
      rows: the head rows of the same images, None for graphs without a head.
    """
    return Columns(_apply(module, variables, "nodes", inputs), rows)


def one_by_one(module: GraphStudent, variables: Any, anchors: Columns, inputs: jax.Array) -> Prediction:
    """Mechanism 1: each image is cascaded with the anchors and classified in that graph of A + 1 nodes.

    All B images in one call: the anchors' graph is shared, each image adds a row and a column.
    Its answer depends on no other image. Under the head the anchors' own rows have no column for the image, so
    p(image | anchor) = 0, nor has the image one for itself. A graph without a head is that of training over the A + 1
    nodes.

    Args:
      module: the student.
      variables: its parameters and statistics.
      anchors: A training images, A > sparsity.
      inputs: (B, ...), unseen images.
    """
    nodes = _apply(module, variables, "nodes", inputs)
    count, size = anchors.nodes.shape[0], nodes.shape[0]
    nearest = jnp.full((size,), -1)
    projected = _apply(module, variables, "project", nodes)
    if module.graph == "off":
        alone = jnp.concatenate([jnp.zeros((size, count)), jnp.ones((size, 1))], axis=-1)
        return Prediction(_apply(module, variables, "classify", jax.nn.relu(projected)), alone, nearest)
    anchor_projected = _apply(module, variables, "project", anchors.nodes)
    if module.graph == "euclidean_sparse":
        among = _distances(module, variables, anchors.nodes, anchors)
        to_anchors = _distances(module, variables, nodes, anchors)
        hidden, adjacency = _cascade_by_distance(module, among, to_anchors, anchor_projected, projected)
        logits = _apply(module, variables, "classify", hidden)
        return Prediction(logits, adjacency, jnp.argmin(to_anchors, axis=-1))
    if module.graph == "learned":
        among = graph.symmetrize(
            graph.sparse_neighbors(_distances(module, variables, anchors.nodes, anchors), module.sparsity)
        )
        to_anchors = _distances(module, variables, nodes, anchors)
        nearest = jnp.argmin(to_anchors, axis=-1)
        links = graph.sparse_neighbors(to_anchors, module.sparsity) / 2
        own = jnp.zeros(size, links.dtype)
    else:
        among = _apply(module, variables, "adjacency", anchors.nodes, None)
        cascaded = jax.vmap(
            lambda node: _apply(module, variables, "adjacency", jnp.concatenate([anchors.nodes, node[None]]), None)[-1]
        )(nodes)
        links, own = cascaded[:, :-1], cascaded[:, -1]
    if module.self_loops:
        among, own = graph.add_self_loops(among), own + 1
    hidden = _cascade(among, links, own, anchor_projected, projected)
    adjacency = jnp.concatenate([links, own[:, None]], axis=-1)
    return Prediction(_apply(module, variables, "classify", hidden), adjacency, nearest)


def _cascade(among: jax.Array, links: jax.Array, own: jax.Array, anchors: jax.Array, nodes: jax.Array) -> jax.Array:
    """What the second layer of Eq. 2 is given for each image cascaded with the anchors, (B, H), before its weights.

    The image's adjacency (A + 1, A + 1), which all share but for its last row and column, is never formed.

    Args:
      among: (A, A), the anchors' adjacency, self-loops included.
      links: (B, A), between image and anchors; own: (B,), between image and itself.
      anchors: (A, H), X W of the first layer; nodes: (B, H), likewise.
    """
    scale_anchors = graph.inverse_root(jnp.sum(among, axis=-1) + links)
    scale_own = graph.inverse_root(jnp.sum(links, axis=-1) + own)[:, None]
    own = own[:, None] * scale_own
    weights = links * scale_anchors  # (B, A)
    # One product for all images, (A, A) with (A, B, H): many small ones are slower.
    scaled = scale_anchors.T[:, :, None] * anchors[:, None, :]
    gathered = jnp.tensordot(among, scaled, 1) + links.T[:, :, None] * (scale_own * nodes)
    of_anchors = jax.nn.relu(scale_anchors.T[:, :, None] * gathered)
    of_image = jax.nn.relu(scale_own * (weights @ anchors + own * nodes))
    return scale_own * (jnp.einsum("ba,abh->bh", weights, of_anchors) + own * of_image)


def _cascade_by_distance(
    module: GraphStudent, among: jax.Array, to_anchors: jax.Array, anchors: jax.Array, nodes: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Eq. 3 on all distances of the A + 1 nodes: each image's input (B, H) of the second layer and row (B, A + 1).

    An image may change any row of the anchors, so each has a graph of its own. Where those of all images are more than
    `_TOGETHER` weights, or B is not known, one image follows the other.

    Args:
      module: the student.
      among: (A, A), distances between anchors.
      to_anchors: (B, A), from images to anchors, and back.
      anchors: (A, H), X W of the first layer; nodes: (B, H), likewise.
    """

    def cascade(of_image: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        to_anchors, node = of_image
        own = jnp.zeros((1,), among.dtype)  # an image is at no distance from itself
        distances = jnp.block([[among, to_anchors[:, None]], [to_anchors, own]])
        adjacency = graph.symmetrize(graph.sparse_neighbors(distances, module.sparsity))
        factor = graph.normalize(adjacency, module.self_loops)
        hidden = jax.nn.relu(factor @ jnp.concatenate([anchors, node[None]]))
        return factor[-1] @ hidden, _with_loops(module, adjacency)[-1]

    size, columns = nodes.shape[0], anchors.shape[0] + 1
    if isinstance(size, int) and size * columns**2 <= _TOGETHER:
        return jax.vmap(cascade)((to_anchors, nodes))
    return jax.lax.map(cascade, (to_anchors, nodes))


def batch_by_batch(
    module: GraphStudent,
    variables: Any,
    anchors: Columns,
    inputs: jax.Array,
    mask: jax.Array | None = None,
    reading: str = "similar",
) -> Prediction:
    """Mechanism 2: a batch of unseen images borrows the graph of their nearest anchors.

    sim(i) is the anchor with the highest probability for image i. Under `similar` the graph is Eq. 3 on the distances
    between sim(i) and sim(j); under `test_rows` on those from image i itself to sim(j). The images' own features are
    propagated over it. Images often share an anchor, so rows have ties (see `graph.sparse_neighbors`). A graph without
    a head has the distances between the images themselves: it is that of the batch, and uses no anchor.

    Args:
      module: the student.
      variables: its parameters and statistics.
      anchors: A training images.
      inputs: (B, ...), unseen images, B > sparsity.
      mask: (B,), False for padding, which takes no part and whose logits mean nothing.
      reading: `similar` or `test_rows`, of the graph of the head.

    Raises:
      ValueError: unknown reading.
    """
    if reading not in READINGS:
        raise ValueError(f"reading {reading!r} is unknown: choose one of {', '.join(READINGS)}")
    nodes = _apply(module, variables, "nodes", inputs)
    nearest = jnp.full((nodes.shape[0],), -1)
    if module.graph == "off":
        logits = _apply(module, variables, "propagate", nodes, None).logits
        return Prediction(logits, jnp.eye(nodes.shape[0]), nearest)
    if module.graph == "learned":
        to_anchors = _distances(module, variables, nodes, anchors)
        nearest = jnp.argmin(to_anchors, axis=-1)
        # Columns are picked out of distances to all anchors, so that images which share an anchor tie to the bit.
        d = _distances(module, variables, anchors.nodes[nearest], anchors) if reading == "similar" else to_anchors
        adjacency = graph.symmetrize(graph.sparse_neighbors(d[:, nearest], module.sparsity, mask))
    else:
        adjacency = _apply(module, variables, "adjacency", nodes, None, mask)
    factor = graph.normalize(adjacency, module.self_loops, mask)
    logits = _apply(module, variables, "propagate", nodes, factor).logits
    return Prediction(logits, _with_loops(module, adjacency), nearest)


def features(module: Any, variables: Any, inputs: jax.Array) -> dict[str, jax.Array]:
    """The features of images by the space in which the training-set graph may measure distances, see `neighbors`.

    Args:
      module: a graph student or a CNN.
      variables: its parameters and statistics.
      inputs: (B, ...).

    Returns:
      `backbone` (B, F), node features of a graph student or pooled features of a CNN; `logits` (B, C), of a graph
      student without its graph; of a graph student `hidden` (B, H), the first layer's activations without its graph;
      of one with a head `head` (B, K + 1), the head's output with a 1 appended, for the bias of its decision layer.
    """
    if not isinstance(module, GraphStudent):
        outputs: Any = module.apply(variables, inputs, train=False)
        return {"backbone": outputs.pooled, "logits": outputs.logits}
    nodes = _apply(module, variables, "nodes", inputs)
    hidden = jax.nn.relu(_apply(module, variables, "project", nodes))
    spaces = {"backbone": nodes, "hidden": hidden, "logits": _apply(module, variables, "classify", hidden)}
    if module.graph == "learned":
        head: Any = module.apply(variables, nodes, method=lambda module, nodes: module.head(nodes))
        spaces["head"] = jnp.append(head, jnp.ones((nodes.shape[0], 1), head.dtype), axis=-1)
    return spaces


def _apply(module: GraphStudent, variables: Any, method: str, *arguments: Any) -> Any:
    return module.apply(variables, *arguments, method=method)


def _distances(module: GraphStudent, variables: Any, nodes: jax.Array, columns: Columns) -> jax.Array:
    return _apply(module, variables, "distances", nodes, columns)


def _with_loops(module: GraphStudent, adjacency: jax.Array) -> jax.Array:
    return graph.add_self_loops(adjacency) if module.self_loops or module.graph == "off" else adjacency
