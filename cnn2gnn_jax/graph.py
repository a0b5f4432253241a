"""Graphs over a batch of images: the sparse projection of Eq. 3, normalization, the ablation's graphs and diagnostics.

Every function is pure, accepts any leading batch dimensions (`diagnostics` accepts none), and computes in float32 or
wider whatever the dtype of its inputs.

    d_BxC      distances from B nodes to C columns
    p_BxC      row-stochastic neighbor weights
    a_BxB      adjacency
    mask_B     True for real nodes, False for padding, which the graph ignores
"""

import jax
import jax.numpy as jnp
from jax import lax

_SMALLEST_NORM = 1e-6  # smaller norms and distances count as zero
# A bound for the rounding error of a squared distance, in multiples of eps * (|x|^2 + |y|^2). The largest error in
# experiments was below 7.
_ROUNDING = 32


def _at_least_f32(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def check_sparsity(sparsity: int, columns: int) -> None:
    """Checks that Eq. 3, which needs the (s+1)-th smallest distance, is defined for a number of columns.

    Raises:
      ValueError: s < 1 or s + 1 > columns.
    """
    if sparsity < 1 or sparsity + 1 > columns:
        raise ValueError(
            f"sparsity {sparsity} does not fit a graph over {columns} columns: "
            f"Eq. 3 needs 1 <= sparsity <= {columns - 1}"
        )


def sparse_neighbors(distances: jax.Array, sparsity: int, mask: jax.Array | None = None) -> jax.Array:
    """Neighbor weights p_ij of Eq. 3 and 4, the sparse closed-form solution of Theorem 1.

    With d_(k) the k-th smallest distance of a row, p_j = max(d_(s+1) - d_j, 0) / sum_{k<=s} (d_(s+1) - d_(k)).
    The weights do not change when a row of distances is shifted or multiplied by a positive number. If the s+1 smallest
    distances are equal, all columns at that distance get the same weight. This is the limit of the quadratic program
    (Eq. 5) as gamma goes to 0, and the only case of more than `sparsity` non-zeros in a row. Gradients are finite.

    Infinite distances are treated as the limit of large ones. Columns at -inf share the row equally, whatever the other
    distances are. Columns at +inf get no weight unless all columns are at +inf; if the (s+1)-th smallest distance is
    +inf, the columns at smaller distances share the row equally. If an unmasked column has a NaN, all unmasked weights
    of its row are NaN, so that the loss becomes NaN too.

    Args:
      distances: (..., B, C), any real numbers.
      sparsity: s, with s + 1 <= C.
      mask: (..., C), False for columns to ignore. If fewer than s + 1 columns remain, s is reduced to their number
        minus one.

    Returns:
      (..., B, C), float32 or wider. Rows sum to 1, or to 0 if all columns are masked.

    Raises:
      ValueError: s + 1 > C or s < 1.

    >>> sparse_neighbors(jnp.array([[0.0, 2.0, 3.0, 5.0]]), 2).round(2).tolist()
    [[0.75, 0.25, 0.0, 0.0]]
    """
    check_sparsity(sparsity, distances.shape[-1])
    d = _at_least_f32(distances)
    valid = jnp.ones_like(d, dtype=bool) if mask is None else jnp.broadcast_to(mask[..., None, :], d.shape)
    has_nan = jnp.any(valid & jnp.isnan(d), axis=-1, keepdims=True)
    d = _replace_infinite_distances(jnp.where(has_nan, 0, d), valid, sparsity)
    if mask is None:
        smallest = -lax.top_k(-d, sparsity + 1)[0]
        threshold = smallest[..., -1:]
    else:
        threshold = _masked_threshold(d, valid, sparsity)
        d = jnp.where(valid, d, 0)
    # The numerators of Eq. 3. The gradient of `jnp.maximum` would compare numbers that XLA may round differently.
    margins = jnp.where(valid & (d < threshold), threshold - d, 0)
    # Without this division, the gradient would divide by the square of the row's sum, which could underflow to 0.
    largest = lax.stop_gradient(jnp.max(margins, axis=-1, keepdims=True))
    all_tied = largest == 0
    margins = margins / jnp.where(all_tied, 1, largest)
    total = jnp.sum(margins, axis=-1, keepdims=True)
    nearest = jnp.where(valid & (d == threshold), 1.0, 0.0).astype(d.dtype)
    equal_weights = nearest / jnp.maximum(jnp.sum(nearest, axis=-1, keepdims=True), 1)
    weights = jnp.where(all_tied, equal_weights, margins / jnp.where(all_tied, 1, total))
    return jnp.where(has_nan & valid, jnp.nan, weights)


def _masked_threshold(d: jax.Array, mask: jax.Array, sparsity: int) -> jax.Array:
    """The (s+1)-th smallest unmasked distance of each row, or the largest if there are fewer, (..., B, 1).

    It is 0 for rows without unmasked columns, which get no weight in any case.
    """
    smallest = -lax.top_k(jnp.where(mask, -d, -jnp.inf), sparsity + 1)[0]
    is_finite = smallest < jnp.inf
    threshold = jnp.max(jnp.where(is_finite, smallest, -jnp.inf), axis=-1, keepdims=True)
    return jnp.where(is_finite[..., :1], threshold, 0)


def _replace_infinite_distances(d: jax.Array, mask: jax.Array, sparsity: int) -> jax.Array:
    """Replaces rows with infinite distances by rows of 0 and 1 that give the limit weights; other rows are unchanged.

    In Eq. 3 itself, infinity minus infinity would be NaN.
    """
    infinitely_near, infinitely_far = (mask & (d == infinity) for infinity in (-jnp.inf, jnp.inf))
    columns = jnp.sum(mask, axis=-1, keepdims=True)
    nearer_columns = columns - jnp.sum(infinitely_far, axis=-1, keepdims=True)
    threshold_is_infinite = nearer_columns < jnp.minimum(sparsity + 1, columns)
    d = jnp.where(threshold_is_infinite, infinitely_far.astype(d.dtype), d)
    any_near = jnp.any(infinitely_near, axis=-1, keepdims=True)
    return jnp.where(any_near, jnp.where(infinitely_near, 0.0, 1.0).astype(d.dtype), d)


def symmetrize(weights: jax.Array) -> jax.Array:
    """Makes neighbor weights an undirected graph: A_ij = (p_ij + p_ji) / 2, (..., B, B) to (..., B, B).

    >>> symmetrize(jnp.array([[1.0, 0.0], [0.5, 0.5]])).tolist()
    [[1.0, 0.25], [0.25, 0.5]]
    """
    return (weights + jnp.swapaxes(weights, -1, -2)) / 2


def add_self_loops(adjacency: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Returns A + I, (..., B, B). Padding, where `mask` (..., B) is False, gets no self-loop."""
    eye = jnp.eye(adjacency.shape[-1], dtype=adjacency.dtype)
    return adjacency + (eye if mask is None else eye * mask[..., None, :])


def normalize(adjacency: jax.Array, self_loops: bool = True, mask: jax.Array | None = None) -> jax.Array:
    """The normalized adjacency P = D^-1/2 A D^-1/2 of Eq. 2 (Kipf and Welling, 2016).

    Args:
      adjacency: (..., B, B), symmetric and non-negative.
      self_loops: whether to add I to the adjacency first.
      mask: (..., B), False for padding. Rows and columns of padding are set to zero.

    Returns:
      (..., B, B), float32 or wider. Rows and columns of nodes without edges are zero.

    >>> normalize(jnp.array([[0.0, 1.0], [1.0, 0.0]])).round(3).tolist()
    [[0.5, 0.5], [0.5, 0.5]]
    """
    a = _at_least_f32(adjacency)
    if mask is not None:
        a = jnp.where(mask[..., None, :] & mask[..., :, None], a, 0)
    if self_loops:
        a = add_self_loops(a, mask)
    inverse_sqrt = inverse_sqrt_degree(jnp.sum(a, axis=-1))
    return a * inverse_sqrt[..., None, :] * inverse_sqrt[..., :, None]


def inverse_sqrt_degree(degree: jax.Array) -> jax.Array:
    """Returns degree^-1/2, element by element: 0 for nodes without edges, NaN where the degree is NaN."""
    isolated = degree <= 0
    return jnp.where(isolated, 0, lax.rsqrt(jnp.where(isolated, 1, degree)))


def squared_distances(x: jax.Array, y: jax.Array) -> jax.Array:
    """Squared Euclidean distances, (..., B, C), between features (..., B, F) and (..., C, F).

    A distance that is smaller than the rounding error is set to 0, so that equal rows are at distance 0.
    """
    x, y = _at_least_f32(x), _at_least_f32(y)
    # Subtracting the common mean keeps precision where all features are large numbers.
    center = jnp.mean(y, axis=-2, keepdims=True)
    x, y = x - center, y - center
    inner_products = jnp.einsum("...bf,...cf->...bc", x, y, precision=lax.Precision.HIGHEST)
    norms = jnp.sum(x**2, -1)[..., :, None] + jnp.sum(y**2, -1)[..., None, :]
    d2 = norms - 2 * inner_products
    return jnp.where(d2 > _ROUNDING * jnp.finfo(d2.dtype).eps * norms, d2, 0)


def inner_product_adjacency(features: jax.Array, threshold: float = 0.0) -> jax.Array:
    """The adjacency of InGNN (Table 3): A_ij = max(<x_i, x_j>, 0) for l2-normalized features x.

    Args:
      features: (..., B, F).
      threshold: weights that are not greater than this are set to 0.

    Returns:
      (..., B, B), float32 or wider.
    """
    x = _at_least_f32(features)
    squared_norm = jnp.sum(x**2, axis=-1, keepdims=True)
    x = x * lax.rsqrt(jnp.where(squared_norm > _SMALLEST_NORM**2, squared_norm, _SMALLEST_NORM**2))
    a = jnp.einsum("...bf,...cf->...bc", x, x, precision=lax.Precision.HIGHEST)
    return jnp.where(a > max(threshold, 0.0), a, 0)


def euclidean_adjacency(features: jax.Array, threshold: float = 0.0) -> jax.Array:
    """The adjacency of EucGNN (Table 3): A_ij = 1 / norm(x_i - x_j) off the diagonal and 0 on it.

    The weight between identical images would be infinite. It is set to 0.

    Args:
      features: (..., B, F).
      threshold: weights that are not greater than this are set to 0.

    Returns:
      (..., B, B), float32 or wider.
    """
    d2 = squared_distances(features, features)
    is_edge = (d2 > _SMALLEST_NORM**2) & ~jnp.eye(d2.shape[-1], dtype=bool)
    a = jnp.where(is_edge, lax.rsqrt(jnp.where(is_edge, d2, 1)), 0)
    return jnp.where(a > threshold, a, 0)


def diagnostics(
    weights: jax.Array,
    self_columns: jax.Array,
    labels: jax.Array,
    column_labels: jax.Array,
    mask: jax.Array | None = None,
    column_mask: jax.Array | None = None,
) -> dict[str, jax.Array]:
    """Statistics that describe a graph. Each row of weights is first scaled to sum to 1.

    Args:
      weights: (B, C), rows of A, with self-loops if the network adds them.
      self_columns: (B,), the column of each node itself.
      labels: (B,), the true classes of the nodes.
      column_labels: (C,), the classes of the columns, or (B, C) if each node has its own columns.
      mask: (B,), False for padding.
      column_mask: (C,), False for padding.

    Returns:
      A dictionary of scalars:
        self_weight: the mean weight of a node on itself. If it is 1, the graph has no effect.
        label_agreement: the share of the weight on other nodes that falls on nodes of the same class.
        label_agreement_chance: the value that label_agreement has if all other nodes get the same weight.
        effective_neighbors: the mean exponential of the entropy of a row, from 1 (a single column) to C (uniform).
    """
    w = _at_least_f32(weights)
    mask = jnp.ones(w.shape[0], bool) if mask is None else mask
    column_mask = jnp.ones(w.shape[1], bool) if column_mask is None else column_mask
    pair_mask = mask[:, None] & column_mask[None, :]
    is_self = self_columns[:, None] == jnp.arange(w.shape[1])
    w = jnp.where(pair_mask, w, 0)
    total = jnp.sum(w, -1, keepdims=True)
    w = w / jnp.where(total > 0, total, 1)
    same_class = labels[:, None] == column_labels
    node_count = jnp.maximum(jnp.sum(mask), 1)
    is_other = pair_mask & ~is_self
    entropy = -jnp.sum(jnp.where(w > 0, w * jnp.log(jnp.where(w > 0, w, 1)), 0), -1)
    return {
        "self_weight": jnp.sum(jnp.where(is_self, w, 0)) / node_count,
        "label_agreement": jnp.sum(jnp.where(is_other & same_class, w, 0))
        / jnp.maximum(jnp.sum(jnp.where(is_other, w, 0)), 1e-12),
        "label_agreement_chance": jnp.sum(is_other & same_class) / jnp.maximum(jnp.sum(is_other), 1),
        "effective_neighbors": jnp.sum(jnp.where(mask, jnp.exp(entropy), 0)) / node_count,
    }
