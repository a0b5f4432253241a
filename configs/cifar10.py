"""CIFAR-10: ResNet34 teaches the graph student; another pair by `:resnet50-resnet18` and the like.

    python -m cnn2gnn_jax.main --config=configs/cifar10.py
    python -m cnn2gnn_jax.main --config=configs/cifar10.py:smoke

The paper gives its figures in a supplement that is not public. Full size is for an accelerator; `:smoke` takes minutes
on 2 CPU cores.
"""

import ml_collections

from cnn2gnn_jax.configs import base


def get_config(word: str = "") -> ml_collections.ConfigDict:
    config = base.get_config()
    config.name = config.data.name = "cifar10"
    return base.with_word(config, word, smoke=base.smoke)
