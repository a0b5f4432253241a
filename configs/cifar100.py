"""CIFAR-100 as in Table 1: ResNet34 teaches the graph student; another pair by `:resnet50-resnet18` and the like.

    python -m cnn2gnn_jax.main --config=configs/cifar100.py
    python -m cnn2gnn_jax.main --config=configs/cifar100.py:smoke

The paper: teacher 62.19, GNN 60.21, CNN2GNN 65.13 (batch by batch, batch order not told). Full size is for an
accelerator; `:smoke` (100 images a class, small networks, few epochs) takes under 10 minutes on 2 CPU cores.
"""

import ml_collections

from cnn2gnn_jax.configs import base


def get_config(word: str = "") -> ml_collections.ConfigDict:
    config = base.get_config()
    config.name = config.data.name = "cifar100"
    return base.with_word(config, word, smoke=base.smoke)
