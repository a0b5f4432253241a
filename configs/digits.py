"""The demo on digits: 1,797 images of 8x8 pixels in ten classes, which are part of scikit-learn. Nothing is downloaded.

    python -m cnn2gnn_jax.main --config=configs/digits.py

It takes less than 3 minutes on 2 CPU cores. The paper does not use this data set.
"""

import ml_collections

from cnn2gnn_jax.configs import base


def get_config(word: str = "") -> ml_collections.ConfigDict:
    config = base.get_config()
    config.name = config.data.name = "digits"
    config.teacher.network, config.student.network = "resnet20", "resnet8"
    config.teacher.train.epochs = 30
    config.teacher.train.learning_rate = 0.05
    config.student.train.epochs = 60
    config.student.stem_widths = (32, 64)
    return base.with_word(config, word, smoke=_smoke)


def _smoke(config: ml_collections.ConfigDict) -> None:
    """Reduces a run to seconds, to check that everything works."""
    config.name += "-smoke"
    config.teacher.network = "resnet8"
    config.teacher.train.epochs = config.student.train.epochs = 3
