"""Tests that BatchNorm equals its formula in NumPy, ignores padding, and is the same on one and on many devices."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads

from cnn2gnn_jax import networks
from cnn2gnn_jax.networks.norm import BatchNorm, batch_moments

KEY = jax.random.key(0, impl="rbg")  # this generator compiles several times faster than the default one


def oracle(x, mask, momentum=0.9, epsilon=1e-5):
    """Returns the output and the running statistics of a training step from the initial parameters and statistics."""
    rows = x if mask is None else x[mask]
    axes = tuple(range(x.ndim - 1))
    mean, var = rows.mean(axes), rows.var(axes)
    running = {"mean": (1 - momentum) * mean, "var": momentum + (1 - momentum) * var}
    return (x - mean) / np.sqrt(var + epsilon), running


@pytest.mark.parametrize("shape", [(6, 3, 5, 4), (6, 4)])
@pytest.mark.parametrize("masked", [False, True])
def test_training_step_equals_numpy(shape, masked):
    rng = np.random.default_rng(0)
    x = rng.normal(3, 2, shape)
    mask = np.array([1, 1, 0, 1, 0, 1], bool) if masked else None
    with jax.enable_x64():
        norm = BatchNorm(param_dtype=jnp.float64)
        variables = norm.init(KEY, x, train=True)
        assert np.all(variables["batch_stats"]["mean"] == 0) and np.all(variables["batch_stats"]["var"] == 1)
        y, updated = norm.apply(variables, x, train=True, mask=mask, mutable=["batch_stats"])
        expected, running = oracle(x, mask)
        assert y.dtype == jnp.float64
        np.testing.assert_allclose(y, expected, atol=1e-12)
        jax.tree.map(partial(np.testing.assert_allclose, atol=1e-12), updated["batch_stats"], running)


@pytest.mark.parametrize("masked", [False, True])
def test_gradients_equal_those_of_the_formula_and_finite_differences(masked):
    rng = np.random.default_rng(0)
    mask = jnp.array([1, 1, 0, 1, 0, 1], bool) if masked else None
    with jax.enable_x64():
        x, weights = rng.normal(3, 2, (6, 3, 2, 4)), rng.normal(size=(6, 3, 2, 4))
        params = {"scale": jnp.asarray(rng.normal(size=4)), "bias": jnp.asarray(rng.normal(size=4))}
        stats = {"mean": jnp.zeros(4), "var": jnp.ones(4)}

        def ours(x, params):
            variables = {"params": params, "batch_stats": stats}
            y, _ = BatchNorm().apply(variables, x, train=True, mask=mask, mutable=["batch_stats"])
            return jnp.sum(jnp.sin(y) * weights)

        def formula(x, params):
            mean, var, _ = batch_moments(x, mask)
            y = (x - mean) / jnp.sqrt(var + 1e-5) * params["scale"] + params["bias"]
            return jnp.sum(jnp.sin(y) * weights)

        gradients, expected = (jax.jit(jax.grad(f, (0, 1)))(x, params) for f in (ours, formula))
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-11), gradients, expected)
        check_grads(ours, (x, params), order=1, modes=["rev"])


def test_evaluation_uses_the_running_statistics_and_ignores_the_mask():
    x = jax.random.normal(KEY, (4, 2, 2, 3))
    stats = {"mean": jnp.array([1.0, 2.0, 3.0]), "var": jnp.array([4.0, 1.0, 0.25])}
    params = {"scale": jnp.array([1.0, 2.0, 3.0]), "bias": jnp.array([0.0, 1.0, 2.0])}
    apply = partial(BatchNorm().apply, {"params": params, "batch_stats": stats}, x, train=False)
    expected = (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) * params["scale"] + params["bias"]
    np.testing.assert_allclose(apply(), expected, atol=1e-5)
    np.testing.assert_array_equal(apply(mask=jnp.array([True, False, False, True])), apply())


def test_the_content_of_padding_has_no_effect():
    x = np.random.default_rng(0).normal(size=(4, 2, 2, 3)).astype(np.float32)
    mask = jnp.array([True, True, False, True])
    norm = BatchNorm()
    variables = norm.init(KEY, x, train=True)
    other = x.copy()
    other[2] = 1e6
    y, stats = norm.apply(variables, x, train=True, mask=mask, mutable=["batch_stats"])
    z, others = norm.apply(variables, other, train=True, mask=mask, mutable=["batch_stats"])
    np.testing.assert_array_equal(y[mask], z[mask])
    jax.tree.map(np.testing.assert_array_equal, stats, others)


def test_an_empty_batch_keeps_the_running_statistics():
    x = jnp.ones((2, 3))
    variables = {
        "params": {"scale": jnp.ones(3), "bias": jnp.zeros(3)},
        "batch_stats": {"mean": jnp.arange(3.0), "var": jnp.full(3, 2.0)},
    }
    y, stats = BatchNorm().apply(variables, x, train=True, mask=jnp.zeros(2, bool), mutable=["batch_stats"])
    assert np.isfinite(y).all()
    jax.tree.map(np.testing.assert_array_equal, stats["batch_stats"], variables["batch_stats"])


def test_variance_survives_a_large_mean_in_float32():
    x = np.random.default_rng(0).normal(1000, 0.1, (256, 8)).astype(np.float32)
    _, var, count = batch_moments(jnp.asarray(x))
    np.testing.assert_allclose(var, x.astype(np.float64).var(0), rtol=1e-3)
    assert count == 256


def test_bfloat16_in_and_out_with_float32_statistics():
    x = jax.random.normal(KEY, (64, 4)).astype(jnp.bfloat16)
    y, variables = BatchNorm().init_with_output(KEY, x, train=True)
    assert y.dtype == jnp.bfloat16
    assert {a.dtype for a in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    _, stats = BatchNorm().apply(variables, x, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(stats["batch_stats"]["mean"], 0.1 * np.float32(x).mean(0), atol=1e-6)


# One network of each family. The ResNet has few blocks, so that it compiles quickly.
RESNET, *OTHERS = ("resnet8", {"depths": (1, 1), "widths": (8, 16)}), ("vgg8", {}), ("wrn_10_1", {})


@pytest.mark.parametrize(("name", "fields"), [RESNET, *OTHERS])
def test_a_padded_batch_equals_the_batch_without_padding(name, fields):
    with jax.enable_x64():
        net = networks.create(name, 10, dtype=jnp.float64).clone(**fields)
        images = jax.random.normal(KEY, (6, 8, 8, 3), jnp.float64)
        keep = np.array([0, 2, 3, 5])
        mask = jnp.zeros(6, bool).at[keep].set(True)
        variables = jax.jit(net.init)(KEY, images)
        apply = jax.jit(partial(net.apply, train=True, mutable=["batch_stats"]))
        padded, padded_stats = apply(variables, images, mask=mask)
        plain, plain_stats = apply(variables, images[keep])
        close = partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-10)
        jax.tree.map(lambda a, b: close(a[keep], b), padded, plain)
        jax.tree.map(close, padded_stats, plain_stats)


@pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices (JAX_NUM_CPU_DEVICES=8)")
@pytest.mark.parametrize(
    ("name", "fields"), [RESNET, *(pytest.param(*other, marks=pytest.mark.slow) for other in OTHERS)]
)
def test_eight_unevenly_filled_devices_equal_one(name, fields):
    filled = (3, 3, 2, 3, 0, 1, 3, 2)  # the number of unmasked images of each device
    with jax.enable_x64():
        mask = (jnp.arange(3) < jnp.array(filled)[:, None]).reshape(-1)
        images = jax.random.normal(KEY, (24, 8, 8, 3), jnp.float64)
        labels = jnp.arange(24) % 10
        total = sum(filled)

        def gradients(net, variables, images, labels, mask):
            def loss(params):
                out, updated = net.apply(
                    variables | {"params": params}, images, train=True, mask=mask, mutable=["batch_stats"]
                )
                log_p = jax.nn.log_softmax(out.logits)
                each = -jnp.take_along_axis(log_p, labels[:, None], 1)[:, 0]
                return jnp.sum(jnp.where(mask, each, 0)) / total, (updated["batch_stats"], out.logits)

            (value, (stats, logits)), grads = jax.value_and_grad(loss, has_aux=True)(variables["params"])
            return value, grads, stats, logits

        network = networks.create(name, 10, dtype=jnp.float64).clone(**fields)

        def device_step(*inputs):
            value, grads, stats, logits = gradients(network, *inputs)
            return *jax.lax.psum((value, grads), "batch"), stats, logits

        variables = jax.jit(network.init)(KEY, images[:1])
        mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
        spread = jax.shard_map(
            device_step,
            mesh=mesh,
            in_specs=(P(), P("batch"), P("batch"), P("batch")),
            out_specs=(P(), P(), P(), P("batch")),
            check_vma=False,
        )
        eight = jax.jit(spread)(variables, images, labels, mask)
        expected = jax.jit(partial(gradients, network))(variables, images, labels, mask)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-10), eight, expected)
