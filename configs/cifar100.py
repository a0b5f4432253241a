"""CIFAR-100 (Table 1): the teacher is ResNet34, the student is the graph student.

    python -m cnn2gnn_jax.main --config=configs/cifar100.py
    python -m cnn2gnn_jax.main --config=configs/cifar100.py:smoke

`:resnet50-resnet18` chooses another pair. Accuracies in the paper: teacher 62.19%, GNN 60.21%, CNN2GNN 65.13% (batch by
batch; the batch order is not reported).
The full size needs an accelerator. `:smoke` (100 images per class, small networks, few epochs) takes less than 10
minutes on 2 CPU cores.
"""

import ml_collections

from cnn2gnn_jax.configs import base


def get_config(word: str = "") -> ml_collections.ConfigDict:
    config = base.get_config()
    config.name = config.data.name = "cifar100"
    return base.with_word(config, word, smoke=base.smoke)
