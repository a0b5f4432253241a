"""STL-10 at 32x32 pixels: the teacher is ResNet34, the student is the graph student.

    python -m cnn2gnn_jax.main --config=configs/stl10.py
    python -m cnn2gnn_jax.main --config=configs/stl10.py:smoke
    python -m cnn2gnn_jax.main --config=configs/stl10.py --config.data.image_size=0 --config.teacher.stem=downsample

`:resnet50-resnet18` chooses another pair. The paper reports STL-10 in a supplement that is not public, and does not
state the image size. The last command uses the published size of 96x96 pixels. The full size needs an accelerator.
`:smoke` takes a few minutes on 2 CPU cores.
"""

import ml_collections

from cnn2gnn_jax.configs import base


def get_config(word: str = "") -> ml_collections.ConfigDict:
    config = base.get_config()
    config.name = config.data.name = "stl10"
    config.data.image_size = 32
    return base.with_word(config, word, smoke=base.smoke)
