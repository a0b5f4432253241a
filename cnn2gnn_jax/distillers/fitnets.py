"""FitNets: hints from an intermediate layer (Romero et al., 2015)."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax import lax

from cnn2gnn_jax import losses
from cnn2gnn_jax.distillers import connectors, maps
from cnn2gnn_jax.distillers.base import Distiller, Stage, cross_entropy, weighted

HINT = 2  # index of the feature map that is compared, f2 of both networks


def create(hyper: Mapping[str, Any]) -> Distiller:
    """The loss is `ce_weight` * cross-entropy + `weight` * mean((r(f2 of the student) - f2 of the teacher)^2).

    The regressor r is a `Connector` with ReLU, which is trained together with the student.
    """

    def regressor(student, teacher):
        s, t = student.features[HINT], teacher.features[HINT]
        return connectors.Connector(connectors.target_size(s, t), t.shape[-1], relu=True)

    def init(rng, student, teacher):
        maps.require_maps("fitnets", "features", student, teacher)
        modules = {"regressor": regressor(student, teacher)}
        return connectors.initialize(rng, modules, {"regressor": student.features[HINT]})

    def loss(params, memory, inputs):
        student, teacher, mask = inputs.student, inputs.teacher, inputs.batch["mask"]
        module = regressor(student, teacher)
        hint = maps.adaptive_average_pool(maps.to_float32(lax.stop_gradient(teacher.features[HINT])), *module.size)
        prediction, memory = connectors.apply("regressor", module, params, memory, student.features[HINT], mask)
        errors = jnp.mean(jnp.square(maps.to_float32(prediction) - hint), axis=(1, 2, 3))
        total, metrics = weighted(hyper, cross_entropy(inputs), losses.batch_mean(errors, mask))
        return total, memory, metrics

    return Distiller(("features",), init, (Stage("train", loss),), student=("logits", "features"))
