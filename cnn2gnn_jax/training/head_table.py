"""The graph head's decision layer as a table with one row for each training image, updated row by row.

A batch needs, differentiates and updates its own rows alone, so a step costs the same whatever n_train is. Under SGD
with momentum and weight decay a row without gradient still moves, linearly: one step maps its value w and momentum m
by (w, m) -> M (w, m) with

    M = [[1 - lr * decay, -lr * momentum], [decay, momentum]].

Each row remembers how many steps it has seen and is caught up by M^k when it is gathered, which equals the dense
update to rounding. All rows must be caught up (`catch_up`) where the learning rate changes.
"""

from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from cnn2gnn_jax.gnn import HeadRows
from cnn2gnn_jax.runtime.collectives import first_row, psum

_COLUMNS = 4  # drawn at a time
_BITS = 24  # rows may wait for up to 2^24 - 1 steps


class Sgd(NamedTuple):
    """The hyperparameters of the linear recurrence; Python floats."""

    momentum: float
    weight_decay: float


class HeadTable(flax.struct.PyTreeNode):
    """Values and momenta of N rows, and the number of steps each row has seen, (N,) int32."""

    values: HeadRows
    momenta: HeadRows
    seen: jax.Array


def init(rng: jax.Array, rows: int, width: int, dtype: Any = jnp.float32) -> HeadTable:
    """A table of `rows` rows over a head of `width` outputs: LeCun-normal kernel, zero bias and momenta.

    A row does not depend on how many there are, and of a table that is spread over devices each draws its own.
    """
    # Of JAX's generators this one alone has both properties.
    rng = jax.random.wrap_key_data(jax.random.bits(rng, (2,), jnp.uint32), impl="threefry2x32")
    values = HeadRows(_draw(rng, rows, width, dtype), jnp.zeros((rows,), dtype))
    return HeadTable(values, jax.tree.map(jnp.zeros_like, values), jnp.zeros((rows,), jnp.int32))


def _draw(rng: jax.Array, rows: int, width: int, dtype: Any) -> jax.Array:
    """A LeCun-normal kernel, (rows, width), a few columns at a time, for drawing takes several times the room.

    Columns, since rows may be spread over devices.
    """

    def columns(k: jax.Array | int, count: int) -> jax.Array:
        return jax.random.normal(jax.random.fold_in(rng, k), (rows, count), dtype) * width**-0.5

    def fill(k: jax.Array, kernel: jax.Array) -> jax.Array:
        return lax.dynamic_update_slice(kernel, columns(k, _COLUMNS), (0, k * _COLUMNS))

    full, rest = divmod(width, _COLUMNS)
    kernel = lax.fori_loop(0, full, fill, jnp.zeros((rows, width), dtype))
    return lax.dynamic_update_slice(kernel, columns(full, rest), (0, full * _COLUMNS)) if rest else kernel


def gather(
    table: HeadTable, index: jax.Array, step: jax.Array, rate: jax.Array, sgd: Sgd, sharded: bool = False
) -> HeadTable:
    """The rows `index`, (B,), caught up to `step` steps at learning rate `rate`.

    If `sharded`, `table` is this device's block of the rows; `index` and the answer are the same on all devices.
    """
    if not sharded:
        rows = jax.tree.map(lambda leaf: leaf[index], table)
    else:
        position, mine = _position(table, index, sharded)

        def own_rows(leaf: jax.Array) -> jax.Array:
            found = leaf[jnp.where(mine, position, 0)]
            return jnp.where(mine.reshape(mine.shape + (1,) * (found.ndim - 1)), found, 0)

        rows = psum(jax.tree.map(own_rows, table))
    return catch_up(rows, step, rate, sgd)


def _position(table: HeadTable, index: jax.Array, sharded: bool) -> tuple[jax.Array, jax.Array]:
    """Where the rows `index` are in this device's block, and which of them it holds. A whole table is one block."""
    count = table.seen.shape[0]
    position = index - (first_row(count) if sharded else 0)
    return position, (position >= 0) & (position < count)


def catch_up(table: HeadTable, step: jax.Array, rate: jax.Array, sgd: Sgd) -> HeadTable:
    """All rows of `table` as they are after `step` steps, those they have not seen being without gradient."""
    if sgd.momentum == sgd.weight_decay == 0:
        # Nothing moves without a gradient, and XLA cannot compile what is below for these constants.
        return table.replace(seen=jnp.full_like(table.seen, step))
    waited = step - table.seen
    e00, e01, e10, e11 = _power_minus_identity(waited, table.values.bias.dtype, rate, sgd)

    def move(value: jax.Array, momentum: jax.Array) -> tuple[jax.Array, jax.Array]:
        shape = waited.shape + (1,) * (value.ndim - 1)
        a, b, c, d = (e.reshape(shape).astype(value.dtype) for e in (e00, e01, e10, e11))
        return value + (a * value + b * momentum), momentum + (c * value + d * momentum)

    kernel, kernel_momentum = move(table.values.kernel, table.momenta.kernel)
    bias, bias_momentum = move(table.values.bias, table.momenta.bias)
    return HeadTable(HeadRows(kernel, bias), HeadRows(kernel_momentum, bias_momentum), jnp.full_like(table.seen, step))


def _power_minus_identity(k: jax.Array, dtype: Any, rate: jax.Array, sgd: Sgd) -> tuple[jax.Array, ...]:
    """The four entries of M^k - I for each k, by squaring M - I.

    M is near the identity (1 - lr * decay is 1 - 5e-6 in the paper's recipe), where float32 holds its difference from
    the identity to full precision but not M itself: (I + E)(I + F) - I = E + F + E F.
    """
    zero = jnp.zeros(k.shape, dtype)
    result: tuple[jax.Array, ...] = (zero, zero, zero, zero)
    square = (-rate * sgd.weight_decay, -rate * sgd.momentum, sgd.weight_decay, sgd.momentum - 1.0)
    for bit in range(_BITS):
        taken = (k >> bit) & 1 == 1
        moved = _compose(result, square)
        result = tuple(jnp.where(taken, new, old) for new, old in zip(moved, result, strict=True))
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
    """Rows that `gather` gave, after one SGD step.

    Args:
      rows: (B,) of them.
      gradients: of the loss with respect to `rows.values`.
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
    """`table` with `rows` in the places `index`.

    Args:
      table: all N rows.
      index: (B,), without repeats among the unmasked.
      rows: the new ones.
      mask: (B,), False for padding, whose rows are left alone.
      sharded: whether `table` is this device's block of the rows; the other arguments are the same on all devices.
    """
    # A row past the end is dropped by the scatter.
    position, mine = _position(table, index, sharded)
    target = jnp.where(mine if mask is None else mine & mask, position, table.seen.shape[0])
    return jax.tree.map(lambda leaf, new: leaf.at[target].set(new, mode="drop"), table, rows)
