"""Fixtures: random outputs of two small networks, from which the losses of the methods are computed."""

import types

import jax
import numpy as np
import pytest

from cnn2gnn_jax import distillers, networks

# The side and the channels of the feature maps f0, f1, ... of the student, and then those of the teacher. Together, the
# cases cover all ways in which the shapes of two feature maps can differ.
MAPS = {
    "alike": (((8, 4), (8, 6), (4, 8), (2, 10)), ((8, 4), (8, 6), (4, 12), (2, 10))),
    "larger_student": (((9, 4), (9, 6), (8, 8), (4, 10)), ((8, 4), (4, 6), (4, 12), (2, 12))),
    "larger_teacher": (((4, 4), (4, 6), (4, 8), (2, 10)), ((8, 4), (8, 6), (8, 12), (5, 12))),
    "odd": (((7, 4), (7, 6), (3, 8), (2, 10)), ((8, 4), (5, 6), (8, 12), (1, 10))),
    "more_stages": (((8, 4), (8, 6), (4, 8), (2, 10)), ((8, 4), (8, 6), (8, 8), (4, 12), (2, 14))),
}
TRAINING_LABELS = np.array([0, 1, 2, 3, 4] * 6 + [0, 0, 1], np.int32)  # the classes have different numbers of images
FEW = {"negatives": 9, "feature_dim": 7}  # hyperparameters of crd that suit only 33 training images


def random_outputs(seed, maps, rows, classes, dtype):
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return rng.normal(size=shape).astype(dtype)

    before = tuple(draw(rows, side, side, channels) for side, channels in maps)
    after = tuple(np.maximum(x, 0) for x in before)
    return networks.Outputs(2 * draw(rows, classes), after, before, np.abs(draw(rows, maps[-1][1])))


def random_state(distiller, student, teacher):
    """Returns random parameters, and a memory like the initial one. It saves the time to compile `init`."""
    rng = np.random.default_rng(7)
    params, memory = jax.eval_shape(distiller.init, jax.random.key(7), student, teacher)
    params = jax.tree.map(lambda leaf: rng.uniform(-0.6, 0.6, leaf.shape).astype(leaf.dtype), params)

    def start(path, leaf):
        if "bank" in jax.tree_util.keystr(path):
            return rng.normal(size=leaf.shape, scale=leaf.shape[-1] ** -0.5).astype(leaf.dtype)
        return np.full(leaf.shape, "var" in jax.tree_util.keystr(path), leaf.dtype)

    return params, jax.tree_util.tree_map_with_path(start, memory)


def make_example(method, maps="alike", rows=6, classes=5, dtype="float64"):
    """Returns a distiller and all inputs of its losses: outputs of both networks, a batch, parameters and memory."""
    hyper = distillers.hyperparameters(method, "vgg13", "vgg8")
    if method == "crd":
        hyper = hyper | FEW | {"training_labels": TRAINING_LABELS % classes}
    distiller = distillers.create(method, hyper)
    views = 1 if distiller.second_view is None else 2
    student, teacher = (
        random_outputs(seed, sizes, views * rows, classes, dtype) for seed, sizes in enumerate(MAPS[maps])
    )
    index = np.arange(3, 3 + rows, dtype=np.int32)
    batch = {"label": TRAINING_LABELS[index] % classes, "index": index, "mask": np.ones(rows, bool)}
    params, memory = random_state(distiller, student, teacher)
    return types.SimpleNamespace(
        distiller=distiller, hyper=hyper, student=student, teacher=teacher, batch=batch, params=params, memory=memory
    )


@pytest.fixture
def example():
    return make_example
