"""Cross-entropy and the response-based distillation loss of Eq. 6 and 7.

Losses are means over the global batch. Each device returns its share of the mean, and the shares add up to it.
"""

import jax
import jax.numpy as jnp
import optax
from jax import lax

from cnn2gnn_jax.runtime.collectives import psum


def batch_mean(values: jax.Array, mask: jax.Array) -> jax.Array:
    """This device's share of the mean over the images of the global batch that are not padding.

    Args:
      values: (b,), one value for each image of this device.
      mask: (b,), False for padding.

    Returns:
      A scalar. The sum over devices is the mean, or 0 if all images are padding.
    """
    count = psum(jnp.sum(mask.astype(values.dtype)))
    return jnp.sum(jnp.where(mask, values, 0)) / jnp.maximum(count, 1)


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Cross-entropy (B,) in nats of logits (B, C) and integer labels (B,), one value for each image.

    >>> logits, labels = jnp.array([[0.0, 0.0], [99.0, 0.0]]), jnp.array([1, 0])
    >>> (cross_entropy(logits, labels) / jnp.log(2)).round(3).tolist()
    [1.0, 0.0]
    """
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)


def distillation(student: jax.Array, teacher: jax.Array, temperature: float, *, tau_squared: bool = True) -> jax.Array:
    """The distillation loss of Eq. 7, KL(q(teacher, tau) || q(student, tau)), for each image.

    Args:
      student: (B, C), the student's logits.
      teacher: (B, C), the teacher's logits. No gradient flows to them.
      temperature: the temperature tau.
      tau_squared: whether to multiply the loss by tau^2, so that gradients keep their magnitude as tau grows (Hinton
        et al., 2015). Without it the loss is the literal Eq. 7, whose gradients shrink as 1/tau^2.

    Returns:
      (B,), in nats.

    >>> teacher, student = jnp.array([[3.0, 0.0]]), jnp.array([[3.0, 0.0]])
    >>> distillation(student, teacher, 4.0).tolist()
    [0.0]
    >>> bool(distillation(-student, teacher, 4.0)[0] > 0)
    True
    """
    log_p = jax.nn.log_softmax(lax.stop_gradient(teacher) / temperature)
    log_q = jax.nn.log_softmax(student / temperature)
    divergence = jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)
    return divergence * (temperature**2 if tau_squared else 1.0)
