"""Tests that collectives detect whether the batch is split over devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from cnn2gnn_jax.runtime import collectives
from cnn2gnn_jax.runtime.collectives import AXIS


def of_all(part):
    """Returns the results of the collectives for this device's part of a batch of 8, which may be the whole batch."""
    whole = collectives.all_gather(part)
    return collectives.psum(jnp.sum(part)), whole, collectives.local_rows(whole, len(part))


def check(total, whole, rows, batch):
    assert total == np.sum(batch)
    np.testing.assert_array_equal(whole, batch)
    np.testing.assert_array_equal(np.ravel(rows), batch)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit])
def test_collectives_are_the_identity_without_the_axis(wrap):
    batch = jnp.arange(8.0)
    check(*wrap(of_all)(batch), batch)
    assert collectives.first_row(8) == 0


def test_collectives_are_the_identity_without_the_axis_in_loops_and_under_vmap():
    batch = jnp.arange(8.0)
    _, (totals, _, _) = lax.scan(lambda carry, x: (carry, of_all(x)), 0, jnp.stack([batch, batch]))
    assert totals.tolist() == [28, 28]
    totals, _, _ = jax.vmap(of_all, axis_name="another")(jnp.stack([batch, batch]))
    assert totals.tolist() == [28, 28]


def test_under_shard_map():
    mesh, batch = jax.make_mesh((4,), (AXIS,), axis_types=(jax.sharding.AxisType.Auto,)), jnp.arange(8.0)
    mapped = jax.shard_map(of_all, mesh=mesh, in_specs=P(AXIS), out_specs=(P(), P(), P(AXIS)), check_vma=False)
    check(*jax.jit(mapped)(batch), batch)


def test_under_pmap():
    batch = jnp.arange(8.0)
    total, whole, rows = jax.pmap(of_all, AXIS, out_axes=(None, None, 0))(batch.reshape(4, 2))
    check(total, whole, rows, batch)


def test_a_compiled_function_is_traced_again_under_the_axis():
    compiled, batch = jax.jit(of_all), jnp.arange(8.0)
    check(*compiled(batch), batch)
    check(*jax.pmap(compiled, AXIS, out_axes=(None, None, 0))(batch.reshape(4, 2)), batch)
