"""The graph head's decision layer as a table with one row for each training image, updated row by row.

A step reads, differentiates and updates only the rows of its batch, so its cost does not depend on n_train. Under SGD
with momentum and weight decay, a row without gradient still changes, and this change is linear: one step maps its value
w and momentum m by (w, m) -> M (w, m) with

    M = [[1 - lr * decay, -lr * momentum], [decay, momentum]].

Each row stores the number of steps it has seen, and is caught up by M^k when it is gathered; this equals the dense
update up to rounding. Where the learning rate changes, all rows must be caught up (`catch_up`).
"""

from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from cnn2gnn_jax.gnn import HeadRows
from cnn2gnn_jax.runtime.collectives import first_row, psum

_COLUMNS = 4  # columns that are drawn together
_BITS = 24  # a row may be at most 2^24 - 1 steps behind


class Sgd(NamedTuple):
    """The hyperparameters of the linear recurrence, Python floats."""

    momentum: float
    weight_decay: float


class HeadTable(flax.struct.PyTreeNode):
    """The values and momenta of N rows, and the number of steps that each row has seen, (N,) int32."""

    values: HeadRows
    momenta: HeadRows
    seen: jax.Array


def init(rng: jax.Array, rows: int, width: int, dtype: Any = jnp.float32) -> HeadTable:
    """Initializes a table: LeCun-normal kernel, zero bias, zero momenta.

    The values of a row do not depend on the number of rows, and each device of a sharded table draws its own rows.

    Args:
      rng: the key.
      rows: N, the number of rows.
      width: the number of inputs of the decision layer.
      dtype: the dtype of values and momenta.
    """
    # Only this generator of JAX has both properties.
    rng = jax.random.wrap_key_data(jax.random.bits(rng, (2,), jnp.uint32), impl="threefry2x32")
    values = HeadRows(_draw(rng, rows, width, dtype), jnp.zeros((rows,), dtype))
    return HeadTable(values, jax.tree.map(jnp.zeros_like, values), jnp.zeros((rows,), jnp.int32))


def _draw(rng: jax.Array, rows: int, width: int, dtype: Any) -> jax.Array:
    """Draws a LeCun-normal kernel, (rows, width), a few columns at a time: drawing needs several times their memory.

    It draws columns and not rows, because rows may be sharded over devices.
    """

    def columns(k: jax.Array | int, count: int) -> jax.Array:
        return jax.random.normal(jax.random.fold_in(rng, k), (rows, count), dtype) * width**-0.5

    def fill(k: jax.Array, kernel: jax.Array) -> jax.Array:
        return lax.dynamic_update_slice(kernel, columns(k, _COLUMNS), (0, k * _COLUMNS))

    full, remainder = divmod(width, _COLUMNS)
    kernel = lax.fori_loop(0, full, fill, jnp.zeros((rows, width), dtype))
    return lax.dynamic_update_slice(kernel, columns(full, remainder), (0, full * _COLUMNS)) if remainder else kernel


def gather(
    table: HeadTable, index: jax.Array, step: jax.Array, rate: jax.Array, sgd: Sgd, sharded: bool = False
) -> HeadTable:
    """Gathers rows and catches them up.

    Args:
      table: the table.
      index: the rows, (B,).
      step: the number of steps to which they are caught up.
      rate: the learning rate of the steps they have missed.
      sgd: momentum and weight decay.
      sharded: whether `table` is this device's block of rows; `index` and the result are the same on all devices.

    Returns:
      A table of B rows.
    """
    if not sharded:
        rows = jax.tree.map(lambda leaf: leaf[index], table)
    else:
        position, is_local = _position(table, index, sharded)

        def local_rows(leaf: jax.Array) -> jax.Array:
            rows = leaf[jnp.where(is_local, position, 0)]
            return jnp.where(is_local.reshape(is_local.shape + (1,) * (rows.ndim - 1)), rows, 0)

        rows = psum(jax.tree.map(local_rows, table))
    return catch_up(rows, step, rate, sgd)


def _position(table: HeadTable, index: jax.Array, sharded: bool) -> tuple[jax.Array, jax.Array]:
    """The positions of rows in this device's block, and whether it holds them; a whole table is one block."""
    count = table.seen.shape[0]
    position = index - (first_row(count) if sharded else 0)
    return position, (position >= 0) & (position < count)


def catch_up(table: HeadTable, step: jax.Array, rate: jax.Array, sgd: Sgd) -> HeadTable:
    """Brings all rows of `table` to `step` steps; the steps that they have missed are without gradient for them."""
    if sgd.momentum == sgd.weight_decay == 0:
        # Without a gradient nothing changes, and XLA cannot compile the code below for these constants.
        return table.replace(seen=jnp.full_like(table.seen, step))
    missed = step - table.seen
    e00, e01, e10, e11 = _power_minus_identity(missed, table.values.bias.dtype, rate, sgd)

    def move(value: jax.Array, momentum: jax.Array) -> tuple[jax.Array, jax.Array]:
        shape = missed.shape + (1,) * (value.ndim - 1)
        a, b, c, d = (e.reshape(shape).astype(value.dtype) for e in (e00, e01, e10, e11))
        return value + (a * value + b * momentum), momentum + (c * value + d * momentum)

    kernel, kernel_momentum = move(table.values.kernel, table.momenta.kernel)
    bias, bias_momentum = move(table.values.bias, table.momenta.bias)
    return HeadTable(HeadRows(kernel, bias), HeadRows(kernel_momentum, bias_momentum), jnp.full_like(table.seen, step))


def _power_minus_identity(k: jax.Array, dtype: Any, rate: jax.Array, sgd: Sgd) -> tuple[jax.Array, ...]:
    """The four entries of M^k - I for each k, by repeated squaring of M - I.

    M is close to the identity (1 - lr * decay is 1 - 5e-6 in the paper's recipe). There, float32 represents M - I with
    full relative precision, but not M. The products follow from (I + E)(I + F) - I = E + F + E F.
    """
    zero = jnp.zeros(k.shape, dtype)
    result: tuple[jax.Array, ...] = (zero, zero, zero, zero)
    square = (-rate * sgd.weight_decay, -rate * sgd.momentum, sgd.weight_decay, sgd.momentum - 1.0)
    for bit in range(_BITS):
        is_set = (k >> bit) & 1 == 1
        product = _compose(result, square)
        result = tuple(jnp.where(is_set, new, old) for new, old in zip(product, result, strict=True))
        square = _compose(square, square)
    return result


def _compose(e: tuple, f: tuple) -> tuple:
    return (
        e[0] + f[0] + (e[0] * f[0] + e[1] * f[2]),
        e[1] + f[1] + (e[0] * f[1] + e[1] * f[3]),
        e[2] + f[2] + (e[2] * f[0] + e[3] * f[2]),
        e[3] + f[3] + (e[2] * f[1] + e[3] * f[3]),
    )


def sgd_step(rows: HeadTable, gradients: HeadRows, rate: jax.Array, sgd: Sgd) -> HeadTable:
    """Applies an SGD step to gathered rows.

    Args:
      rows: B rows, as `gather` returns them.
      gradients: the gradients of the loss with respect to `rows.values`.
      rate: the learning rate.
      sgd: momentum and weight decay.
    """
    momenta = jax.tree.map(
        lambda g, w, m: sgd.momentum * m + (g + sgd.weight_decay * w), gradients, rows.values, rows.momenta
    )
    values = jax.tree.map(lambda w, m: w - rate * m, rows.values, momenta)
    return HeadTable(values, momenta, rows.seen + 1)


def scatter(
    table: HeadTable, index: jax.Array, rows: HeadTable, mask: jax.Array | None = None, sharded: bool = False
) -> HeadTable:
    """Writes rows into a table.

    Args:
      table: all N rows.
      index: the rows that are written, (B,), without repetitions where `mask` is True.
      rows: the new values, B rows.
      mask: (B,), False for padding, whose rows are not written.
      sharded: whether `table` is this device's block of rows; the other arguments are the same on all devices.

    Returns:
      The new table.
    """
    # The scatter drops rows past the end.
    position, is_local = _position(table, index, sharded)
    target = jnp.where(is_local if mask is None else is_local & mask, position, table.seen.shape[0])
    return jax.tree.map(lambda leaf, new: leaf.at[target].set(new, mode="drop"), table, rows)
