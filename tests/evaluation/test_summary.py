"""Tests of the FLOPs that a run reports."""

import types

import numpy as np
import pytest

from cnn2gnn_jax import distillers, networks
from cnn2gnn_jax.config import RECIPES
from cnn2gnn_jax.evaluation import summary
from cnn2gnn_jax.training.task import Task


@pytest.mark.parametrize("network", ["resnet8", "resnet18", "wrn_16_2"])
def test_training_takes_three_times_the_flops_of_inference(network):
    """Tests the ratio 3: each of a layer's two gradients costs as much as the layer itself."""
    recipe = types.SimpleNamespace(**{**RECIPES["paper"], "batch_size": 4, "head_update": "rows", "epoch": "last"})
    labels = distillers.create("none", {})
    module = networks.create(network, 100)
    task = Task(module, labels, labels.stages[0], recipe, 1, 4, seed=0, mean=(0.5,) * 3, std=(0.2,) * 3)
    costs = summary.network_costs(task, np.zeros((4, 32, 32, 3), np.uint8))
    assert 2.7 < costs["training_flops"] / costs["inference_flops"] < 3.3
