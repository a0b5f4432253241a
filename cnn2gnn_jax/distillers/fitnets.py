"""FitNets: hints from a middle layer (Romero et al., 2015)."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax import lax

from cnn2gnn_jax import losses
from cnn2gnn_jax.distillers import connectors, maps
from cnn2gnn_jax.distillers.base import Distiller, Stage, cross_entropy, weighted

HINT = 2  # f2 of both networks


def create(hyper: Mapping[str, Any]) -> Distiller:
    """`ce_weight` * cross-entropy + `weight` * the mean squared error of reg(f2 of the student) and f2 of the teacher.

    reg is a `Connector` with ReLU, trained with the student.
    """

    def regressor(student, teacher):
        s, t = student.features[HINT], teacher.features[HINT]
        return connectors.Connector(connectors.target_size(s, t), t.shape[-1], relu=True)

    def init(rng, student, teacher):
        maps.require_maps("fitnets", "features", student, teacher)
        modules = {"regressor": regressor(student, teacher)}
        return connectors.initialise(rng, modules, {"regressor": student.features[HINT]})

    def loss(params, memory, inputs):
        student, teacher, mask = inputs.student, inputs.teacher, inputs.batch["mask"]
        module = regressor(student, teacher)
        hint = maps.adaptive_average_pool(maps.wide(lax.stop_gradient(teacher.features[HINT])), *module.size)
        guess, memory = connectors.apply("regressor", module, params, memory, student.features[HINT], mask)
        errors = jnp.mean(jnp.square(maps.wide(guess) - hint), axis=(1, 2, 3))
        total, metrics = weighted(hyper, cross_entropy(inputs), losses.batch_mean(errors, mask))
        return total, memory, metrics

    return Distiller(("features",), init, (Stage("train", loss),), student=("logits", "features"))
