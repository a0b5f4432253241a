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
SCALE = 3 / 1000  # of the published implementation


def trains_trunk(path: tuple[str, ...]) -> bool:
    """All but the student's classifier."""
    return path[:2] != ("student", "classifier")


def trains_student(path: tuple[str, ...]) -> bool:
    """The student alone."""
    return path[0] == "student"


def create(hyper: Mapping[str, Any]) -> Distiller:
    """The student's trunk learns which neurons of the teacher fire; afterwards the student learns the labels alone.

    Stage `pretrain`, `pretrain_epochs` at `pretrain_learning_rate`: over the stages i = 0..n-1,
    sum of 2^(i - n + 1) * 3/1000 * (1/B) * sum over the map of (s + 1)^2 where s > -1 and t <= 0, and of (s - 1)^2
    where s <= 1 and t > 0, with t the teacher's map before ReLU and s the student's after its connector: nothing where
    both maps have one shape, else a `Connector` without ReLU. Stage `train`: cross-entropy.

    The map before ReLU of a WRN's block is that after the BatchNorm which follows the block. Stage `pretrain` trains
    this BatchNorm after the last block too, with the statistics of the batch, as the method's authors do. RepDistiller
    evaluates it there with its untrained statistics.
    """

    def connector(s, t):
        """None where the maps have one shape."""
        if s.shape[1:] == t.shape[1:]:
            return None
        return connectors.Connector(connectors.target_size(s, t), t.shape[-1], relu=False)

    def init(rng, student, teacher):
        maps.require_maps("ab", "preactivations", student, teacher)
        pairs = maps.stage_pairs(student.preactivations, teacher.preactivations)
        found = {f"stage{i}": connector(s, t) for i, (s, t) in enumerate(pairs, 1)}
        modules = {name: module for name, module in found.items() if module is not None}
        return connectors.initialise(rng, modules, {f"stage{i}": s for i, (s, _) in enumerate(pairs, 1)})

    def boundaries(params, memory, inputs):
        mask, errors = inputs.batch["mask"], jnp.zeros(())
        pairs = maps.stage_pairs(inputs.student.preactivations, lax.stop_gradient(inputs.teacher.preactivations))
        for i, (s, t) in enumerate(pairs, 1):
            module = connector(s, t)
            if module is not None:
                s, memory = connectors.apply(f"stage{i}", module, params, memory, s, mask)
                t = maps.adaptive_average_pool(t, *module.size)
            errors += 2.0 ** (i - len(pairs)) * SCALE * _violation(maps.wide(s), maps.wide(t))
        loss = losses.batch_mean(errors, mask)
        return loss, memory, {"distillation": loss}

    def labels(params, memory, inputs):
        del params
        ce = cross_entropy(inputs)
        return ce, memory, {"cross_entropy": ce}

    pretrain = Stage("pretrain", boundaries, hyper["pretrain_epochs"], hyper["pretrain_learning_rate"], trains_trunk)
    train = Stage("train", labels, trains=trains_student)
    return Distiller(("preactivations",), init, (pretrain, train), student=("logits", "preactivations"))


def _violation(s: jax.Array, t: jax.Array) -> jax.Array:
    """The squared distances of the student's neurons from their side of the boundary, summed for each image, (b,)."""
    off = jnp.where((s > -MARGIN) & (t <= 0), jnp.square(s + MARGIN), 0)
    on = jnp.where((s <= MARGIN) & (t > 0), jnp.square(s - MARGIN), 0)
    return jnp.sum(off + on, axis=(1, 2, 3))
