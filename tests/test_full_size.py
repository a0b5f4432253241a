"""Tests that the teacher and the graph student of each full-size config take training steps, on generated images."""

import importlib

import jax.numpy as jnp
import numpy as np
import pytest

from cnn2gnn_jax import config as configs
from cnn2gnn_jax.data import Dataset, Split
from cnn2gnn_jax.training import loop, tasks
from cnn2gnn_jax.training.state import init_state
from cnn2gnn_jax.training.step import teacher_shapes

SIZES = {"cifar10": (50_000, 10), "cifar100": (50_000, 100), "stl10": (5_000, 10), "mini_imagenet": (50_000, 100)}


def dataset_of(name):
    count, classes = SIZES[name]
    rng = np.random.default_rng(0)
    labels = np.arange(count, dtype=np.int32) % classes
    # One image is repeated, since only the number and the shape of the images matter here.
    images = np.broadcast_to(rng.integers(0, 256, (1, 32, 32, 3), np.uint8), (count, 32, 32, 3))
    split = Split(images, labels, np.arange(count, dtype=np.int32))
    names = tuple(str(k) for k in range(classes))
    return Dataset(name, names, split, split, None, (0.5,) * 3, (0.25,) * 3, "made-here")


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_a_full_size_config_takes_steps(name):
    config = configs.resolve(importlib.import_module(f"cnn2gnn_jax.configs.{name}").get_config())
    dataset = dataset_of(name)
    configs.check_data(config, dataset)
    assert config.teacher.network == "resnet34"
    assert config.teacher.train.batch_size == config.student.train.batch_size == 100
    for task in (tasks.teacher_task(config, dataset), tasks.student_tasks(config, dataset, "learned")[0]):
        data = {
            "input": jnp.asarray(dataset.train.images),
            "label": jnp.asarray(dataset.train.labels),
            "teacher_logits": jnp.zeros((len(dataset.train), len(dataset.classes))),
        }
        state = init_state(task, data["input"], teacher_shapes(task, data))
        chunk = loop.make_chunk(task)
        state, metrics = chunk(state, data, None, loop.feed([task], 0, 2, {}), task.seed)
        assert int(state.step) == 2
        assert np.all(np.isfinite(metrics["loss"]))
        assert task.total_steps == 200 * len(dataset.train) // 100
