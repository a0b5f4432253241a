"""DKD: decoupled distillation of the target class and the non-target classes (Zhao et al., 2022)."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from cnn2gnn_jax import losses
from cnn2gnn_jax.distillers.base import Distiller, Setting, Stage, cross_entropy, no_params, weighted


def published_beta(setting: Setting) -> float:
    """The published weight beta: 6 for VGG13-VGG8 and pairs of WRNs, 8 for other pairs."""
    is_wrn_pair = setting.teacher.startswith("wrn_") and setting.student.startswith("wrn_")
    return 6.0 if is_wrn_pair or (setting.teacher, setting.student) == ("vgg13", "vgg8") else 8.0


def create(hyper: Mapping[str, Any]) -> Distiller:
    """The loss is `ce_weight` * cross-entropy + `weight` * w * T^2 * (KL_target + `beta` * KL_nontarget).

    The divergences compare the distributions of teacher and student at the temperature T. KL_target compares the
    probabilities of the target class and of all other classes together. KL_nontarget compares the distributions over
    the other classes alone. The factor w = min((epoch + 1) / `warmup`, 1) rises with the epochs, which count from 0, as
    in the published code. It is 1 throughout if `warmup` is 0. The metric `distillation` does not include w.
    """

    def divergence(student: jax.Array, teacher: jax.Array, labels: jax.Array) -> jax.Array:
        is_target = labels[:, None] == jnp.arange(student.shape[-1])
        s_target, s_rest, s_nontarget = _log_probabilities(student / hyper["temperature"], is_target)
        t_target, t_rest, t_nontarget = _log_probabilities(lax.stop_gradient(teacher) / hyper["temperature"], is_target)
        kl_target = jnp.exp(t_target) * (t_target - s_target) + jnp.exp(t_rest) * (t_rest - s_rest)
        kl_nontarget = jnp.sum(jnp.exp(t_nontarget) * (t_nontarget - s_nontarget), axis=-1)
        return hyper["temperature"] ** 2 * (kl_target + hyper["beta"] * kl_nontarget)

    def loss(params, memory, inputs):
        del params
        batch = inputs.batch
        divergences = divergence(inputs.student.logits, inputs.teacher.logits, batch["label"])
        dkd = losses.batch_mean(divergences, batch["mask"])
        factor = jnp.minimum((inputs.epoch + 1).astype(dkd.dtype) / hyper["warmup"], 1) if hyper["warmup"] else 1.0
        warmed_up = {**hyper, "weight": hyper["weight"] * factor}
        total, metrics = weighted(warmed_up, cross_entropy(inputs), dkd)
        return total, memory, metrics

    return Distiller(("logits",), no_params, (Stage("train", loss),))


def _log_probabilities(logits: jax.Array, is_target: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Log-probabilities of target and non-target classes. The probabilities themselves could underflow.

    Args:
      logits: (B, C), divided by the temperature.
      is_target: (B, C), True at the class of each image.

    Returns:
      Log-probabilities of the target class (B,), of all other classes together (B,), and of each other class given that
      the target class is excluded (B, C), with 0 at the target class.
    """
    log_sum = jax.nn.logsumexp(logits, axis=-1)
    log_rest = jax.nn.logsumexp(logits, axis=-1, where=~is_target)
    target = jnp.sum(jnp.where(is_target, logits, 0), axis=-1)
    return target - log_sum, log_rest - log_sum, jnp.where(is_target, 0, logits - log_rest[:, None])
