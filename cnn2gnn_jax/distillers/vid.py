"""VID: variational information distillation (Ahn et al., 2019)."""

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from cnn2gnn_jax import losses
from cnn2gnn_jax.distillers import connectors, maps
from cnn2gnn_jax.distillers.base import Distiller, Stage, cross_entropy, weighted
from cnn2gnn_jax.networks.norm import at_least_float32

INITIAL_VARIANCE, MIN_VARIANCE = 5.0, 1e-5


class Gaussian(nn.Module):
    """A Gaussian distribution of the teacher's feature map given the student's.

    Its mean is computed by three 1x1 convolutions. Its variance is one parameter for each channel.

    Attributes:
        size: height and width to which the student's feature map is pooled.
        channels: channels of the teacher's feature map.
    """

    size: tuple[int, int]
    channels: int

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Maps (B, H, W, I) to means (B, *size, channels) and variances (channels,)."""
        x = maps.adaptive_average_pool(x, *self.size)
        for i in range(3):
            x = connectors.conv(nn.relu(x) if i else x, self.channels, 1, use_bias=False, name=f"conv{i}")
        initial_rho = math.log(math.expm1(INITIAL_VARIANCE - MIN_VARIANCE))
        rho = self.param("rho", nn.initializers.constant(initial_rho), (self.channels,), at_least_float32(x.dtype))
        return maps.to_float32(x), nn.softplus(rho) + MIN_VARIANCE


def create(hyper: Mapping[str, Any]) -> Distiller:
    """The loss is `ce_weight` * cross-entropy + `weight` * the sum over stages of mean(((mu - f_t)^2 / v + log v) / 2).

    The mean mu and the variance v are those of a `Gaussian` for each stage, given the student's feature map. They are
    trained together with the student. f_t is the teacher's feature map.
    """

    def modules(student, teacher):
        pairs = maps.stage_pairs(student.features, teacher.features)
        return {f"stage{i}": Gaussian(maps.smaller_size(s, t), t.shape[-1]) for i, (s, t) in enumerate(pairs, 1)}

    def init(rng, student, teacher):
        maps.require_maps("vid", "features", student, teacher)
        pairs = maps.stage_pairs(student.features, teacher.features)
        return connectors.initialize(
            rng, modules(student, teacher), {f"stage{i}": s for i, (s, _) in enumerate(pairs, 1)}
        )

    def loss(params, memory, inputs):
        student, teacher, mask = inputs.student, inputs.teacher, inputs.batch["mask"]
        pairs = maps.stage_pairs(student.features, lax.stop_gradient(teacher.features))
        negative_log_likelihood = jnp.zeros(())
        for (name, module), (s, t) in zip(modules(student, teacher).items(), pairs, strict=True):
            mean, variance = module.apply({"params": params[name]}, s)
            errors = jnp.square(mean - maps.adaptive_average_pool(maps.to_float32(t), *module.size))
            negative_log_likelihood += jnp.mean(0.5 * (errors / variance + jnp.log(variance)), axis=(1, 2, 3))
        variational_loss = losses.batch_mean(negative_log_likelihood, mask)
        total, metrics = weighted(hyper, cross_entropy(inputs), variational_loss)
        return total, memory, metrics

    return Distiller(("features",), init, (Stage("train", loss),), student=("logits", "features"))
