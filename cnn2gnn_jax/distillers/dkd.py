"""DKD: decoupled distillation of the target class and the others (Zhao et al., 2022)."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from cnn2gnn_jax import losses
from cnn2gnn_jax.distillers.base import Distiller, Setting, Stage, cross_entropy, nothing, weighted


def published_beta(setting: Setting) -> float:
    """beta by pair: 6 for VGG13-VGG8 and the WRN pairs, 8 for the others."""
    wide = setting.teacher.startswith("wrn_") and setting.student.startswith("wrn_")
    return 6.0 if wide or (setting.teacher, setting.student) == ("vgg13", "vgg8") else 8.0


def create(hyper: Mapping[str, Any]) -> Distiller:
    """`ce_weight` * cross-entropy + `weight` * min((epoch + 1) / `warmup`, 1) * T^2 * (KL_target + `beta` * KL_others).

    At temperature T, KL_target is the teacher's divergence from the student over (the image's class, any other), and
    KL_others over the other classes among themselves. Epochs count from 0, so the first has the factor 1 / `warmup`, as
    in the published code; with a `warmup` of 0 it is 1 throughout. The metric `distillation` is the loss before the
    factor that grows with the epochs.
    """

    def divergence(student: jax.Array, teacher: jax.Array, labels: jax.Array) -> jax.Array:
        own = labels[:, None] == jnp.arange(student.shape[-1])
        s_own, s_rest, s_others = _parts(student / hyper["temperature"], own)
        t_own, t_rest, t_others = _parts(lax.stop_gradient(teacher) / hyper["temperature"], own)
        target = jnp.exp(t_own) * (t_own - s_own) + jnp.exp(t_rest) * (t_rest - s_rest)
        others = jnp.sum(jnp.exp(t_others) * (t_others - s_others), axis=-1)
        return hyper["temperature"] ** 2 * (target + hyper["beta"] * others)

    def loss(params, memory, inputs):
        del params
        batch = inputs.batch
        each = divergence(inputs.student.logits, inputs.teacher.logits, batch["label"])
        extra = losses.batch_mean(each, batch["mask"])
        part = jnp.minimum((inputs.epoch + 1).astype(extra.dtype) / hyper["warmup"], 1) if hyper["warmup"] else 1.0
        now = {**hyper, "weight": hyper["weight"] * part}
        total, metrics = weighted(now, cross_entropy(inputs), extra)
        return total, memory, metrics

    return Distiller(("logits",), nothing, (Stage("train", loss),))


def _parts(logits: jax.Array, own: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Log-probabilities of the own class (B,), of any other (B,), and of each other given that it is one of them
    (B, C), 0 in the own class's place. All in log space: the probabilities themselves underflow."""
    every = jax.nn.logsumexp(logits, axis=-1)
    rest = jax.nn.logsumexp(logits, axis=-1, where=~own)
    target = jnp.sum(jnp.where(own, logits, 0), axis=-1)
    return target - every, rest - every, jnp.where(own, 0, logits - rest[:, None])
