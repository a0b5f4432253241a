"""FT: factor transfer (Kim et al., 2018)."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from cnn2gnn_jax import losses
from cnn2gnn_jax.distillers import maps
from cnn2gnn_jax.distillers.base import Distiller, Setting, Stage, cross_entropy, weighted
from cnn2gnn_jax.distillers.connectors import apply, conv, initialise
from cnn2gnn_jax.networks.norm import BatchNorm, at_least_float32

SLOPE = 0.1  # of the leaky ReLUs
NARROW = ("resnet8", "resnet20", "resnet32")


def published_pretrain_learning_rate(setting: Setting) -> float:
    """The paraphraser's rate by the student's family: 0.01 for WRN and the narrow ResNets, 0.05 for the others."""
    return 0.01 if setting.student.startswith("wrn_") or setting.student in NARROW else 0.05


class Paraphraser(nn.Module):
    """An auto-encoder of the teacher's last stage: 3x3 convolutions, each followed by a leaky ReLU."""

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """Factors (B, H, W, C // 2) and the reconstruction (B, H, W, C) of a map (B, H, W, C)."""
        del mask
        channels, factors = x.shape[-1], max(x.shape[-1] // 2, 1)
        for i, width in enumerate((channels, factors, factors)):
            x = nn.leaky_relu(conv(x, width, 3, name=f"encoder{i}"), SLOPE)
        encoded = x
        # A transposed 3x3 convolution at stride 1 is a 3x3 convolution with its kernel turned round.
        for i, width in enumerate((factors, channels, channels)):
            x = nn.leaky_relu(conv(x, width, 3, name=f"decoder{i}"), SLOPE)
        return encoded, x


class Translator(nn.Module):
    """The student's factors: 3x3 convolutions, each followed by BatchNorm and a leaky ReLU.

    Attributes:
        factors: channels of the paraphraser's factors.
    """

    factors: int

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """(B, H, W, I) to (B, H, W, factors); mask: (B,) bool, False for padding."""
        for i, width in enumerate((x.shape[-1], self.factors, self.factors)):
            x = conv(x, width, 3, name=f"conv{i}")
            x = BatchNorm(param_dtype=at_least_float32(x.dtype), name=f"norm{i}")(x, True, mask)
            x = nn.leaky_relu(x, SLOPE)
        return x


def trains_paraphraser(path: tuple[str, ...]) -> bool:
    """The paraphraser alone."""
    return path[:2] == ("distiller", "paraphraser")


def trains_the_rest(path: tuple[str, ...]) -> bool:
    """The student and its translator."""
    return not trains_paraphraser(path)


def create(hyper: Mapping[str, Any]) -> Distiller:
    """A paraphraser of the teacher's last stage is trained, then the student with a translator of its own.

    Stage `pretrain`, `pretrain_epochs` at `pretrain_learning_rate`: the paraphraser's mean squared error; the student
    stays as it is. Stage `train`: `ce_weight` * cross-entropy + `weight` * mean |Q(A_s) - Q(A_t)|, A the flattened mean
    over channels of F^2, the larger map of factors average-pooled first; the paraphraser stays as it is.
    """

    def modules(teacher):
        factors = max(teacher.features[-1].shape[-1] // 2, 1)
        return {"paraphraser": Paraphraser(), "translator": Translator(factors)}

    def init(rng, student, teacher):
        maps.require_maps("ft", "features", student, teacher)
        inputs = {"paraphraser": teacher.features[-1], "translator": student.features[-1]}
        return initialise(rng, modules(teacher), inputs)

    def reconstruction(params, memory, inputs):
        x = lax.stop_gradient(inputs.teacher.features[-1])
        (_, decoded), memory = apply("paraphraser", Paraphraser(), params, memory, x)
        errors = jnp.mean(jnp.square(maps.wide(decoded) - maps.wide(x)), axis=(1, 2, 3))
        loss = losses.batch_mean(errors, inputs.batch["mask"])
        return loss, memory, {"reconstruction": loss}

    def transfer(params, memory, inputs):
        student, teacher, mask = inputs.student, inputs.teacher, inputs.batch["mask"]
        found = modules(teacher)
        (t, _), memory = apply("paraphraser", found["paraphraser"], params, memory, teacher.features[-1])
        s, memory = apply("translator", found["translator"], params, memory, student.features[-1], mask)
        s, t = maps.to_smaller_size(s, lax.stop_gradient(t))
        errors = jnp.mean(jnp.abs(maps.attention(s) - maps.attention(t)), axis=-1)
        extra = losses.batch_mean(errors, mask)
        total, metrics = weighted(hyper, cross_entropy(inputs), extra)
        return total, memory, metrics

    pretrain = Stage(
        "pretrain", reconstruction, hyper["pretrain_epochs"], hyper["pretrain_learning_rate"], trains_paraphraser
    )
    train = Stage("train", transfer, trains=trains_the_rest)
    return Distiller(("features",), init, (pretrain, train), student=("logits", "features"))
