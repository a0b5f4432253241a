"""AB: activation boundaries (Heo et al., 2019)."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from cnn2gnn_jax import losses
from cnn2gnn_jax.distillers import connectors, maps
from cnn2gnn_jax.distillers.base import Distiller, Stage, cross_entropy

MARGIN = 1.0
SCALE = 3 / 1000  # factor of the loss in the published implementation


def trains_all_but_classifier(path: tuple[str, ...]) -> bool:
    """Whether the first stage trains the parameter at `path`: all except those of the student's classifier."""
    return path[:2] != ("student", "classifier")


def trains_student(path: tuple[str, ...]) -> bool:
    """Whether the second stage trains the parameter at `path`: only those of the student."""
    return path[0] == "student"


def create(hyper: Mapping[str, Any]) -> Distiller:
    """The student first learns which neurons of the teacher are active, and is then trained on labels only.

    Stage `pretrain` takes `pretrain_epochs` epochs at `pretrain_learning_rate`. Let t be the teacher's feature map
    before ReLU, and s the student's after a `Connector` without ReLU (or unchanged if both have the same shape). The
    loss is the sum over the stages i = 0..n-1 of

        2^(i - n + 1) * 3/1000 * (1/B) * sum of [(s + 1)^2 where s > -1 and t <= 0] + [(s - 1)^2 where s <= 1 and t > 0]

    with the inner sum over all elements of the feature maps. Stage `train` uses cross-entropy.

    In a WRN, the feature map of a block before ReLU is the output of the BatchNorm that follows the block. Stage
    `pretrain` also trains the BatchNorm after the last block, with the statistics of the batch, as the authors of the
    method do. (RepDistiller uses this BatchNorm with its initial running statistics.)
    """

    def connector(s, t):
        """Returns None if the feature maps have the same shape."""
        if s.shape[1:] == t.shape[1:]:
            return None
        return connectors.Connector(connectors.target_size(s, t), t.shape[-1], relu=False)

    def init(rng, student, teacher):
        maps.require_maps("ab", "preactivations", student, teacher)
        pairs = maps.stage_pairs(student.preactivations, teacher.preactivations)
        candidates = {f"stage{i}": connector(s, t) for i, (s, t) in enumerate(pairs, 1)}
        modules = {name: module for name, module in candidates.items() if module is not None}
        return connectors.initialize(rng, modules, {f"stage{i}": s for i, (s, _) in enumerate(pairs, 1)})

    def boundary_loss(params, memory, inputs):
        mask, errors = inputs.batch["mask"], jnp.zeros(())
        pairs = maps.stage_pairs(inputs.student.preactivations, lax.stop_gradient(inputs.teacher.preactivations))
        for i, (s, t) in enumerate(pairs, 1):
            module = connector(s, t)
            if module is not None:
                s, memory = connectors.apply(f"stage{i}", module, params, memory, s, mask)
                t = maps.adaptive_average_pool(t, *module.size)
            errors += 2.0 ** (i - len(pairs)) * SCALE * _violation(maps.to_float32(s), maps.to_float32(t))
        loss = losses.batch_mean(errors, mask)
        return loss, memory, {"distillation": loss}

    def label_loss(params, memory, inputs):
        del params
        ce = cross_entropy(inputs)
        return ce, memory, {"cross_entropy": ce}

    epochs, learning_rate = hyper["pretrain_epochs"], hyper["pretrain_learning_rate"]
    pretrain = Stage("pretrain", boundary_loss, epochs, learning_rate, trains_all_but_classifier)
    train = Stage("train", label_loss, trains=trains_student)
    return Distiller(("preactivations",), init, (pretrain, train), student=("logits", "preactivations"))


def _violation(s: jax.Array, t: jax.Array) -> jax.Array:
    """Squared distances of the student's neurons from the margin that the teacher's imply, summed per image, (b,)."""
    inactive = jnp.where((s > -MARGIN) & (t <= 0), jnp.square(s + MARGIN), 0)
    active = jnp.where((s <= MARGIN) & (t > 0), jnp.square(s - MARGIN), 0)
    return jnp.sum(inactive + active, axis=(1, 2, 3))
