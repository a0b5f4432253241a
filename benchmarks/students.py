"""Graph students, CNNs and synthetic training sets for the benchmarks."""

import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cnn2gnn_jax import distillers, gnn, networks
from cnn2gnn_jax.config import RECIPES
from cnn2gnn_jax.training.state import TrainState, init_state
from cnn2gnn_jax.training.step import teacher_shapes
from cnn2gnn_jax.training.task import Task

BATCH = 100
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


def recipe(**fields: Any) -> Any:
    """The recipe `paper` as a complete `train` section."""
    defaults = {**RECIPES["paper"], "head_update": "rows", "chunk_steps": 50, "epoch": "last"}
    return types.SimpleNamespace(**{**defaults, **fields})


def student(backbone: str, rows: int, classes: int = 100, method: str = "gnn", **fields: Any) -> Task:
    """The task of a graph student over `backbone` with `rows` training images."""
    distiller = distillers.create(
        distillers.METHODS[method].distiller, distillers.hyperparameters(method, "resnet34", "resnet18")
    )
    features = gnn.create_backbone(backbone, stem_widths=(32, 64, 128), image_stem="cifar", dtype=jnp.float32)
    return Task(
        gnn.GraphStudent(classes, features),
        distiller,
        distiller.stages[0],
        recipe(**fields),
        rows // BATCH,
        rows,
        seed=0,
        mean=MEAN,
        std=STD,
    )


def network(name: str, rows: int, batch: int = BATCH, dtype: Any = jnp.float32) -> Task:
    """The task of a CNN trained by cross-entropy on the labels of 100 classes."""
    distiller = distillers.create("none", {})
    module = networks.create(name, 100, dtype=dtype)
    section = recipe(batch_size=batch)
    return Task(module, distiller, distiller.stages[0], section, rows // batch, rows, seed=0, mean=MEAN, std=STD)


def images(count: int, size: int = 32, classes: int = 100) -> dict[str, jax.Array]:
    """Random images and labels."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    return {"input": jnp.asarray(pixels), "label": jnp.asarray(rng.integers(0, classes, count, dtype=np.int32))}


def start(task: Task, data: dict[str, jax.Array]) -> TrainState:
    """The initial state of a task."""
    return jax.jit(lambda: init_state(task, data["input"], teacher_shapes(task, data)))()
