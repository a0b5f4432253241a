"""A folder of your own images: DIR/<class>/<image>, or DIR/train/<class>/<image> and DIR/test/<class>/<image>.

Tiny-ImageNet can be used as published, because it is such a folder.

python -m cnn2gnn_jax.main --config=configs/image_folder.py --config.data.manual_dir=DIR --workdir=runs/my_images
python -m cnn2gnn_jax.predict --workdir=runs/my_images IMAGE_OR_FOLDER...
python -m cnn2gnn_jax.export --workdir=runs/my_images --out=BUNDLE
"""

import ml_collections

from cnn2gnn_jax.configs import base


def get_config(word: str = "") -> ml_collections.ConfigDict:
    config = base.get_config()
    config.name = config.data.name = "image_folder"
    config.data.image_size = 32
    config.teacher.network = config.student.network = "resnet8"
    config.teacher.train.recipe = "crd"
    config.teacher.train.epochs = 40
    config.student.stem_widths = (32, 64, 128, 128)
    config.student.train.epochs = 40
    config.student.train.batch_size = 50
    config.student.sparsity = 10
    config.evaluate.batch_size = 50
    # Accuracy is the aim here: the graph over the training set answers where held-out images say that it is better.
    config.data.holdout = 0.1
    config.evaluate.training_set.enabled = True
    return base.with_word(config, word, smoke=_smoke)


def _smoke(config: ml_collections.ConfigDict) -> None:
    """Reduces a run to a minute or less, to check that the folder can be read."""
    config.name += "-smoke"
    config.teacher.train.epochs = config.student.train.epochs = 3
