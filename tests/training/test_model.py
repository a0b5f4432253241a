"""Tests of trained models: their inputs, and the compiled function that models of one module share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn2gnn_jax import gnn, networks
from cnn2gnn_jax.evaluation.outputs import network_outputs
from cnn2gnn_jax.training import metrics
from cnn2gnn_jax.training.model import TrainedModel

CLASSES = ("a", "b", "c")


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 255, (4, 8, 8, 1)).astype(np.uint8)


def network(seed, mean=(0.5,), std=(0.25,)):
    module = networks.create("resnet8", len(CLASSES))
    variables = jax.jit(lambda: module.init(jax.random.key(seed), jnp.zeros((1, 8, 8, 1))))()
    return TrainedModel(module, variables, mean, std, CLASSES)


def test_inputs_are_normalised_images_or_the_teachers_features_or_stored_ones(images):
    teacher = network(0)
    np.testing.assert_allclose(teacher.inputs(images), (images / 255 - 0.5) / 0.25, atol=1e-5)
    module = gnn.GraphStudent(len(CLASSES), gnn.Flatten(), graph="off")
    stored = TrainedModel(module, {}, (), (), CLASSES)
    features = teacher.outputs(images).pooled
    assert stored.inputs(features) is features
    np.testing.assert_array_equal(stored.replace(features=teacher).inputs(images), features)
    assert (teacher.is_graph, teacher.graph) == (False, None) and (stored.is_graph, stored.graph) == (True, "off")


def test_models_of_one_module_share_a_compiled_function(images):
    actual = [network_outputs(network(0), images)[0]]
    other = network(1)
    compiled = len(metrics._compilations())
    actual.append(network_outputs(other, images)[0])
    assert len(metrics._compilations()) == compiled
    assert not np.allclose(*actual)
    network_outputs(other.replace(mean=(0.1,)), images)
    assert len(metrics._compilations()) > compiled
