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
from cnn2gnn_jax.distillers.connectors import apply, conv, initialize
from cnn2gnn_jax.networks.norm import BatchNorm, at_least_float32

SLOPE = 0.1  # negative slope of the leaky ReLUs
NARROW_RESNETS = ("resnet8", "resnet20", "resnet32")


def published_pretrain_learning_rate(setting: Setting) -> float:
    """The published learning rate of the paraphraser: 0.01 if the student is a WRN or a narrow ResNet, else 0.05."""
    return 0.01 if setting.student.startswith("wrn_") or setting.student in NARROW_RESNETS else 0.05


class Paraphraser(nn.Module):
    """An autoencoder for the teacher's last feature map: 3x3 convolutions, each followed by a leaky ReLU."""

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """Returns the factors (B, H, W, C // 2) and the reconstruction (B, H, W, C) of a feature map (B, H, W, C)."""
        del mask
        channels, factors = x.shape[-1], max(x.shape[-1] // 2, 1)
        for i, width in enumerate((channels, factors, factors)):
            x = nn.leaky_relu(conv(x, width, 3, name=f"encoder{i}"), SLOPE)
        encoded = x
        # A transposed 3x3 convolution at stride 1 equals a 3x3 convolution with the flipped kernel.
        for i, width in enumerate((factors, channels, channels)):
            x = nn.leaky_relu(conv(x, width, 3, name=f"decoder{i}"), SLOPE)
        return encoded, x


class Translator(nn.Module):
    """Computes the student's factors: 3x3 convolutions, each followed by BatchNorm and a leaky ReLU.

    Attributes:
        factors: number of channels, that of the paraphraser's factors.
    """

    factors: int

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Maps (B, H, W, I) to (B, H, W, factors). The mask is (B,) bool, False for padding."""
        for i, width in enumerate((x.shape[-1], self.factors, self.factors)):
            x = conv(x, width, 3, name=f"conv{i}")
            x = BatchNorm(param_dtype=at_least_float32(x.dtype), name=f"norm{i}")(x, True, mask)
            x = nn.leaky_relu(x, SLOPE)
        return x


def trains_paraphraser(path: tuple[str, ...]) -> bool:
    """Whether the first stage trains the parameter at `path`: only those of the paraphraser."""
    return path[:2] == ("distiller", "paraphraser")


def trains_all_but_paraphraser(path: tuple[str, ...]) -> bool:
    """Whether the second stage trains the parameter at `path`: those of the student and the translator."""
    return not trains_paraphraser(path)


def create(hyper: Mapping[str, Any]) -> Distiller:
    """First the paraphraser of the teacher is trained, then the student together with its translator.

    Stage `pretrain` takes `pretrain_epochs` epochs at `pretrain_learning_rate`. It trains only the paraphraser, by the
    mean squared error of the reconstruction of the teacher's last feature map. Stage `train` trains the student and the
    translator with the loss `ce_weight` * cross-entropy + `weight` * mean |Q(A_s) - Q(A_t)|. A is the flattened mean
    over channels of F^2, where F are the factors, and Q normalizes to unit length. Larger factors are average-pooled.
    """

    def modules(teacher):
        factors = max(teacher.features[-1].shape[-1] // 2, 1)
        return {"paraphraser": Paraphraser(), "translator": Translator(factors)}

    def init(rng, student, teacher):
        maps.require_maps("ft", "features", student, teacher)
        inputs = {"paraphraser": teacher.features[-1], "translator": student.features[-1]}
        return initialize(rng, modules(teacher), inputs)

    def reconstruction(params, memory, inputs):
        x = lax.stop_gradient(inputs.teacher.features[-1])
        (_, decoded), memory = apply("paraphraser", Paraphraser(), params, memory, x)
        errors = jnp.mean(jnp.square(maps.to_float32(decoded) - maps.to_float32(x)), axis=(1, 2, 3))
        loss = losses.batch_mean(errors, inputs.batch["mask"])
        return loss, memory, {"reconstruction": loss}

    def transfer(params, memory, inputs):
        student, teacher, mask = inputs.student, inputs.teacher, inputs.batch["mask"]
        module = modules(teacher)
        (t, _), memory = apply("paraphraser", module["paraphraser"], params, memory, teacher.features[-1])
        s, memory = apply("translator", module["translator"], params, memory, student.features[-1], mask)
        s, t = maps.to_smaller_size(s, lax.stop_gradient(t))
        errors = jnp.mean(jnp.abs(maps.attention(s) - maps.attention(t)), axis=-1)
        factor_loss = losses.batch_mean(errors, mask)
        total, metrics = weighted(hyper, cross_entropy(inputs), factor_loss)
        return total, memory, metrics

    pretrain = Stage(
        "pretrain", reconstruction, hyper["pretrain_epochs"], hyper["pretrain_learning_rate"], trains_paraphraser
    )
    train = Stage("train", transfer, trains=trains_all_but_paraphraser)
    return Distiller(("features",), init, (pretrain, train), student=("logits", "features"))
