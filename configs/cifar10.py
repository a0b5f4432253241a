"""CIFAR-10: the teacher is ResNet34, the student is the graph student. `:resnet50-resnet18` chooses another pair.

    python -m cnn2gnn_jax.main --config=configs/cifar10.py
    python -m cnn2gnn_jax.main --config=configs/cifar10.py:smoke

The paper reports CIFAR-10 in a supplement that is not public. The full size needs an accelerator. `:smoke` takes a few
minutes on 2 CPU cores.
"""

import ml_collections

from cnn2gnn_jax.configs import base


def get_config(word: str = "") -> ml_collections.ConfigDict:
    config = base.get_config()
    config.name = config.data.name = "cifar10"
    return base.with_word(config, word, smoke=base.smoke)
