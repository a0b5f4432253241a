"""Tests of the losses: cross-entropy and distillation (Eq. 7), against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn2gnn_jax import losses


def numpy_log_softmax(logits):
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def logits(seed, scale=3.0):
    return scale * np.random.default_rng(seed).normal(size=(6, 5))


LABELS = np.array([0, 4, 2, 2, 1, 3])


def test_cross_entropy():
    with jax.enable_x64():
        actual = losses.cross_entropy(logits(0), LABELS)
    np.testing.assert_allclose(actual, -numpy_log_softmax(logits(0))[np.arange(6), LABELS], rtol=1e-12)
    np.testing.assert_allclose(losses.cross_entropy(jnp.zeros((2, 10)), LABELS[:2]), np.log(10), rtol=1e-6)


@pytest.mark.parametrize("tau", [0.5, 1.0, 4.0, 48.0])
@pytest.mark.parametrize("tau_squared", [True, False])
def test_distillation_is_eq_7(tau, tau_squared):
    student, teacher = logits(0), logits(1)
    log_p, log_q = (numpy_log_softmax(z / tau) for z in (teacher, student))
    divergence = (np.exp(log_p) * (log_p - log_q)).sum(-1)
    factor = tau**2 if tau_squared else 1
    with jax.enable_x64():
        actual = losses.distillation(student, teacher, tau, tau_squared=tau_squared)
        to_student, to_teacher = jax.grad(
            lambda s, t: jnp.sum(losses.distillation(s, t, tau, tau_squared=tau_squared)), argnums=(0, 1)
        )(student, teacher)
    np.testing.assert_allclose(actual, factor * divergence, rtol=1e-10)
    assert (divergence > 0).all()
    np.testing.assert_allclose(to_student, factor * (np.exp(log_q) - np.exp(log_p)) / tau, atol=1e-12)
    np.testing.assert_array_equal(to_teacher, 0)


def test_tau_squared_is_the_default_and_keeps_gradients_from_vanishing():
    student, teacher = logits(0), logits(1)
    sizes = [
        np.abs(jax.grad(lambda s, tau=tau: jnp.sum(losses.distillation(s, teacher, tau)))(student)).max()
        for tau in (16.0, 48.0, 1000.0)
    ]
    np.testing.assert_allclose(sizes[1:], sizes[0], rtol=0.3)


@pytest.mark.parametrize("shift", [0.0, 7.0])
def test_the_loss_of_equal_logits_is_zero(shift):
    student = np.float32(logits(0))
    np.testing.assert_allclose(losses.distillation(student, student + shift, 4.0), 0, atol=1e-5)
    gradient = jax.grad(lambda s: jnp.sum(losses.distillation(s, student + shift, 4.0)))(student)
    np.testing.assert_allclose(gradient, 0, atol=1e-5)


@pytest.mark.parametrize("tau", [1.0, 48.0])
def test_large_logits_stay_finite(tau):
    extreme = np.float32(1e4 * np.sign(logits(0)))
    for student, teacher in ((extreme, -extreme), (extreme, extreme), (np.float32(logits(1)), extreme)):
        value, gradient = jax.value_and_grad(lambda s, t: jnp.sum(losses.distillation(s, t, tau)))(student, teacher)
        assert np.isfinite(value) and np.isfinite(gradient).all() and value >= 0
        value, gradient = jax.value_and_grad(lambda s: jnp.sum(losses.cross_entropy(s, LABELS)))(student)
        assert np.isfinite(value) and np.isfinite(gradient).all() and value >= 0


def test_batch_mean_ignores_padding():
    values, mask = jnp.array([1.0, 2.0, np.nan, 6.0]), jnp.array([True, True, False, True])
    value, gradient = jax.value_and_grad(losses.batch_mean)(values, mask)
    assert value == 3
    np.testing.assert_allclose(gradient, [1 / 3, 1 / 3, 0, 1 / 3], rtol=1e-6)
    assert losses.batch_mean(values, jnp.zeros(4, bool)) == 0


def test_shares_of_unevenly_filled_devices_sum_to_the_mean():
    values = jnp.arange(8.0).reshape(4, 2)
    mask = jnp.array([[True, True], [True, False], [False, False], [True, True]])
    shares = jax.vmap(losses.batch_mean, axis_name="batch")(values, mask)
    np.testing.assert_allclose(shares, jnp.array([1, 2, 0, 13]) / 5)
