"""Graphs over a batch of images: the sparse projection of Eq. 3, normalisation, the ablation's graphs, diagnostics.

Every function is pure, takes any leading batch dimensions, and computes in float32 or wider whatever it is given.

    d_BxC      distances from B nodes to C columns
    p_BxC      row-stochastic neighbour weights
    a_BxB      adjacency
    mask_B     True for real nodes, False for padding, which takes no part
"""

import jax
import jax.numpy as jnp
from jax import lax

_SMALLEST_NORM = 1e-6
_ROUNDING = 32  # of squared distances, in units of the last place; under 7 were seen


def _at_least_f32(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def check_sparsity(sparsity: int, columns: int) -> None:
    """Raises ValueError unless Eq. 3 is defined: it needs the (s+1)-th smallest of the distances."""
    if sparsity < 1 or sparsity + 1 > columns:
        raise ValueError(
            f"sparsity {sparsity} does not fit a graph over {columns} columns: "
            f"Eq. 3 needs 1 <= sparsity <= {columns - 1}"
        )


def sparse_neighbors(distances: jax.Array, sparsity: int, mask: jax.Array | None = None) -> jax.Array:
    """Neighbour weights of Eq. 3 and 4: the sparse closed-form solution of Theorem 1.

    With d_(k) the k-th smallest distance of a row, p_j = max(d_(s+1) - d_j, 0) / sum_{k<=s} (d_(s+1) - d_(k)).
    Invariant to a shift and to a positive scale of a row. Where the s+1 smallest distances are equal, all columns
    at that distance share the row equally, the limit of the quadratic program (Eq. 5) as gamma goes to 0; only then
    may a row have more than `sparsity` non-zeros. Gradients are finite everywhere.

    Infinite distances are the limit of large ones. Columns at -inf are infinitely near: they share the row equally,
    whatever else is in it. Columns at +inf have no weight unless all are; where only they are left to be the (s+1)-th
    smallest, the columns at less than +inf share the row equally. A row with a NaN among the columns that take part is
    NaN in all of these, so that the loss shows it.

    Args:
      distances: (..., B, C), any numbers.
      sparsity: s, with s + 1 <= C.
      mask: (..., C), True for the columns that take part. Where fewer than s + 1 do, s falls to their number less one.

    Returns:
      (..., B, C), float32 or wider; rows sum to 1 (to 0 where no column takes part).

    Raises:
      ValueError: s + 1 > C or s < 1.

    >>> sparse_neighbors(jnp.array([[0.0, 2.0, 3.0, 5.0]]), 2).round(2).tolist()
    [[0.75, 0.25, 0.0, 0.0]]
    """
    check_sparsity(sparsity, distances.shape[-1])
    d = _at_least_f32(distances)
    takes_part = jnp.ones_like(d, dtype=bool) if mask is None else jnp.broadcast_to(mask[..., None, :], d.shape)
    broken = jnp.any(takes_part & jnp.isnan(d), axis=-1, keepdims=True)
    d = _infinite_as_limit(jnp.where(broken, 0, d), takes_part, sparsity)
    if mask is None:
        smallest = -lax.top_k(-d, sparsity + 1)[0]
        threshold = smallest[..., -1:]
    else:
        threshold = _masked_threshold(d, takes_part, sparsity)
        d = jnp.where(takes_part, d, 0)
    # Selected, not `maximum`, whose gradient compares with a value that may have been computed anew, rounded otherwise.
    slack = jnp.where(takes_part & (d < threshold), threshold - d, 0)
    # The weights do not see a row's scale, but their gradient would divide by the square of its sum, which underflows.
    largest = lax.stop_gradient(jnp.max(slack, axis=-1, keepdims=True))
    tied = largest == 0
    slack = slack / jnp.where(tied, 1, largest)
    total = jnp.sum(slack, axis=-1, keepdims=True)
    nearest = jnp.where(takes_part & (d == threshold), 1.0, 0.0).astype(d.dtype)
    share = nearest / jnp.maximum(jnp.sum(nearest, axis=-1, keepdims=True), 1)
    weights = jnp.where(tied, share, slack / jnp.where(tied, 1, total))
    return jnp.where(broken & takes_part, jnp.nan, weights)


def _masked_threshold(d: jax.Array, takes_part: jax.Array, sparsity: int) -> jax.Array:
    """The (s+1)-th smallest distance of the columns that take part, or the last of them; 0 where none does."""
    smallest = -lax.top_k(jnp.where(takes_part, -d, -jnp.inf), sparsity + 1)[0]
    found = smallest < jnp.inf
    threshold = jnp.max(jnp.where(found, smallest, -jnp.inf), axis=-1, keepdims=True)
    return jnp.where(found[..., :1], threshold, 0)  # every weight is masked afterwards


def _infinite_as_limit(d: jax.Array, takes_part: jax.Array, sparsity: int) -> jax.Array:
    """Distances with the weights that Eq. 3 has in the limit where infinite ones grow; finite rows are unchanged."""
    near, far = (takes_part & (d == infinity) for infinity in (-jnp.inf, jnp.inf))
    part = jnp.sum(takes_part, axis=-1, keepdims=True)
    threshold_is_infinite = part - jnp.sum(far, axis=-1, keepdims=True) < jnp.minimum(sparsity + 1, part)
    d = jnp.where(threshold_is_infinite, far.astype(d.dtype), d)
    return jnp.where(jnp.any(near, axis=-1, keepdims=True), jnp.where(near, 0.0, 1.0).astype(d.dtype), d)


def symmetrize(weights: jax.Array) -> jax.Array:
    """The undirected graph A_ij = (p_ij + p_ji) / 2 of (..., B, B) neighbour weights.

    >>> symmetrize(jnp.array([[1.0, 0.0], [0.5, 0.5]])).tolist()
    [[1.0, 0.25], [0.25, 0.5]]
    """
    return (weights + jnp.swapaxes(weights, -1, -2)) / 2


def add_self_loops(adjacency: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """A + I; padding gets no loop."""
    eye = jnp.eye(adjacency.shape[-1], dtype=adjacency.dtype)
    return adjacency + (eye if mask is None else eye * mask[..., None, :])


def normalize(adjacency: jax.Array, self_loops: bool = True, mask: jax.Array | None = None) -> jax.Array:
    """The graph factor P = D^-1/2 A D^-1/2 of Eq. 2 (Kipf and Welling, 2016), of A + I with `self_loops`.

    Args:
      adjacency: (..., B, B), symmetric and non-negative.
      self_loops: whether I is added first.
      mask: (..., B), False for padding: its rows and columns become zero.

    Returns:
      (..., B, B); rows and columns of nodes without any edge are zero.

    >>> normalize(jnp.array([[0.0, 1.0], [1.0, 0.0]])).round(3).tolist()
    [[0.5, 0.5], [0.5, 0.5]]
    """
    a = _at_least_f32(adjacency)
    if mask is not None:
        a = jnp.where(mask[..., None, :] & mask[..., :, None], a, 0)
    if self_loops:
        a = add_self_loops(a, mask)
    scale = inverse_root(jnp.sum(a, axis=-1))
    return a * scale[..., None, :] * scale[..., :, None]


def inverse_root(degree: jax.Array) -> jax.Array:
    """degree^-1/2, 0 for nodes without any edge, NaN where the degree is."""
    isolated = degree <= 0
    return jnp.where(isolated, 0, lax.rsqrt(jnp.where(isolated, 1, degree)))


def squared_distances(x: jax.Array, y: jax.Array) -> jax.Array:
    """Squared Euclidean distances, (..., B, C), between features (..., B, F) and (..., C, F).

    0 where two rows cannot be told apart at this precision: what is left of equal rows is rounding, not distance.
    """
    x, y = _at_least_f32(x), _at_least_f32(y)
    # About the common mean, so that the differences of large numbers lose less.
    centre = jnp.mean(y, axis=-2, keepdims=True)
    x, y = x - centre, y - centre
    inner = jnp.einsum("...bf,...cf->...bc", x, y, precision=lax.Precision.HIGHEST)
    norms = jnp.sum(x**2, -1)[..., :, None] + jnp.sum(y**2, -1)[..., None, :]
    d2 = norms - 2 * inner
    return jnp.where(d2 > _ROUNDING * jnp.finfo(d2.dtype).eps * norms, d2, 0)


def inner_product_adjacency(features: jax.Array, threshold: float = 0.0) -> jax.Array:
    """The ablation's InGNN graph: A_ij = max(<x_i, x_j>, 0) of l2-normalised features, 0 where not over `threshold`.

    Args:
      features: (..., B, F).
      threshold: the smallest weight that is kept.

    Returns:
      (..., B, B).
    """
    x = _at_least_f32(features)
    square = jnp.sum(x**2, axis=-1, keepdims=True)
    x = x * lax.rsqrt(jnp.where(square > _SMALLEST_NORM**2, square, _SMALLEST_NORM**2))
    a = jnp.einsum("...bf,...cf->...bc", x, x, precision=lax.Precision.HIGHEST)
    return jnp.where(a > max(threshold, 0.0), a, 0)


def euclidean_adjacency(features: jax.Array, threshold: float = 0.0) -> jax.Array:
    """The ablation's EucGNN graph: A_ij = 1 / norm(x_i - x_j) off the diagonal, 0 on it and where not over `threshold`.

    Identical images have no finite weight: they get 0, as the diagonal does.

    Args:
      features: (..., B, F).
      threshold: the smallest weight that is kept.

    Returns:
      (..., B, B).
    """
    d2 = squared_distances(features, features)
    apart = (d2 > _SMALLEST_NORM**2) & ~jnp.eye(d2.shape[-1], dtype=bool)
    a = jnp.where(apart, lax.rsqrt(jnp.where(apart, d2, 1)), 0)
    return jnp.where(a > threshold, a, 0)


def diagnostics(
    weights: jax.Array,
    own: jax.Array,
    labels: jax.Array,
    column_labels: jax.Array,
    mask: jax.Array | None = None,
    column_mask: jax.Array | None = None,
) -> dict[str, jax.Array]:
    """What a graph does, as means over nodes; each row, scaled to sum to 1, is read as weights.

    Args:
      weights: (B, C), rows of A, self-loops added if the network adds them.
      own: (B,), the column that is the node itself.
      labels: (B,), the true classes.
      column_labels: (C,), those of the columns; (B, C) where each node has columns of its own.
      mask: (B,), False for padding.
      column_mask: (C,), False for padding.

    Returns:
      self_weight: weight on the node itself; 1 means that the graph has vanished.
      label_agreement: of the weight on other nodes, the part on nodes of the same class.
      label_agreement_chance: the same part if all other nodes weighed equally.
      effective_neighbors: exp of the entropy of the weights; 1 is the node alone, C a uniform graph.
    """
    w = _at_least_f32(weights)
    mask = jnp.ones(w.shape[0], bool) if mask is None else mask
    column_mask = jnp.ones(w.shape[1], bool) if column_mask is None else column_mask
    counted = mask[:, None] & column_mask[None, :]
    is_own = own[:, None] == jnp.arange(w.shape[1])
    w = jnp.where(counted, w, 0)
    total = jnp.sum(w, -1, keepdims=True)
    w = w / jnp.where(total > 0, total, 1)
    same = labels[:, None] == column_labels
    count = jnp.maximum(jnp.sum(mask), 1)
    others = counted & ~is_own
    entropy = -jnp.sum(jnp.where(w > 0, w * jnp.log(jnp.where(w > 0, w, 1)), 0), -1)
    return {
        "self_weight": jnp.sum(jnp.where(is_own, w, 0)) / count,
        "label_agreement": jnp.sum(jnp.where(others & same, w, 0))
        / jnp.maximum(jnp.sum(jnp.where(others, w, 0)), 1e-12),
        "label_agreement_chance": jnp.sum(others & same) / jnp.maximum(jnp.sum(others), 1),
        "effective_neighbors": jnp.sum(jnp.where(mask, jnp.exp(entropy), 0)) / count,
    }
