"""STL-10 at 32x32 pixels: ResNet34 teaches the graph student; another pair by `:resnet50-resnet18` and the like.

    python -m cnn2gnn_jax.main --config=configs/stl10.py
    python -m cnn2gnn_jax.main --config=configs/stl10.py:smoke
    python -m cnn2gnn_jax.main --config=configs/stl10.py --config.data.image_size=0 --config.teacher.stem=downsample

The paper gives its figures in a supplement that is not public, and does not say the size; the last line takes the
images as published, 96x96. Full size is for an accelerator; `:smoke` takes minutes on 2 CPU cores.
"""

import ml_collections

from cnn2gnn_jax.configs import base


def get_config(word: str = "") -> ml_collections.ConfigDict:
    config = base.get_config()
    config.name = config.data.name = "stl10"
    config.data.image_size = 32
    return base.with_word(config, word, smoke=base.smoke)
