"""Mini-ImageNet at 32x32 pixels with 100 classes (Table 2): the teacher is ResNet34, the student is the graph student.

    python -m cnn2gnn_jax.main --config=configs/mini_imagenet.py --config.data.manual_dir=DIR
    python -m cnn2gnn_jax.main --config=configs/mini_imagenet.py:smoke --config.data.manual_dir=DIR

`:resnet152-resnet18` chooses another pair. DIR contains images/ and the CSV files of Ravi and Larochelle (2017).
Accuracies in the paper: teacher 45.11%, GNN 44.27%, CNN2GNN 57.94% (batch by batch; the batch order is not reported).
The full size needs an accelerator. `:smoke` (100 images per class, small networks, few epochs) takes less than 10
minutes on 2 CPU cores.
"""

import ml_collections

from cnn2gnn_jax.configs import base


def get_config(word: str = "") -> ml_collections.ConfigDict:
    config = base.get_config()
    config.name = config.data.name = "mini_imagenet"
    config.data.image_size = 32
    return base.with_word(config, word, smoke=base.smoke)
