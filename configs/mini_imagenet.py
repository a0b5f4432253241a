"""Mini-ImageNet at 32x32 pixels, 100-way, as in Table 2: ResNet34 teaches the graph student; another pair by
`:resnet152-resnet18` and the like.

    python -m cnn2gnn_jax.main --config=configs/mini_imagenet.py --config.data.manual_dir=DIR
    python -m cnn2gnn_jax.main --config=configs/mini_imagenet.py:smoke --config.data.manual_dir=DIR

DIR holds images/ and the csv files of Ravi and Larochelle. The paper: teacher 45.11, GNN 44.27, CNN2GNN 57.94 (batch by
batch, batch order not told). Full size is for an accelerator; `:smoke` (100 images a class, small networks, few epochs)
takes under 10 minutes on 2 CPU cores.
"""

import ml_collections

from cnn2gnn_jax.configs import base


def get_config(word: str = "") -> ml_collections.ConfigDict:
    config = base.get_config()
    config.name = config.data.name = "mini_imagenet"
    config.data.image_size = 32
    return base.with_word(config, word, smoke=base.smoke)
