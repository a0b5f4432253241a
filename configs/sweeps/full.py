"""Common parts of the sweeps over all training images: one teacher with the recipe `fast`, and its students.

A tenth of the training images is held out in all of them, so that they share their teacher and choose nothing on test
images.

The word after the colon is a data set, with `-cpu` for fewer epochs on 2 CPU cores: `cifar100`, `cifar100-cpu`,
`mini_imagenet` or `mini_imagenet-cpu`. The words `smoke` and `digits` are small sizes, to check that everything works.
"""

from ml_collections import ConfigDict

from cnn2gnn_jax.configs.sweeps import grids

SMALL = ("smoke", "digits")
WORDS = ("", *SMALL, *(f"{data}{size}" for data in grids.DATA for size in ("", "-cpu")))
EPOCHS = {"pixels": 20, "teacher": 20, "stem": 10}
"""Number of epochs of a graph student on a CPU, by its node features. The paper trains for 200 epochs."""


def parse(word: str) -> tuple[str, str]:
    """Splits a word into the data set and the size: '' (the paper's size), `cpu`, `smoke` or `digits`."""
    if word in SMALL:
        return "cifar100", word
    data, _, size = word.partition("-")
    return data or "cifar100", size


def config(data: str, size: str, backbone: str = "teacher") -> ConfigDict:
    """The config of a graph student with the paper's recipe, whose teacher has the recipe `fast`."""
    config = grids.base(data, size if size in SMALL else "")
    config.data.holdout, config.teacher.train.recipe = 0.1, "fast"
    config.student.backbone = backbone
    if size not in SMALL:
        config.teacher.network = "vgg8"
    if size == "cpu":
        config.student.train.epochs = EPOCHS[backbone]
    return config


def title(data: str, size: str) -> str:
    """The name of a data set at a size, for headings."""
    if size in SMALL:
        return grids.title(data, size)
    return f"all of {grids.TITLES[data]}" + (", few epochs" if size == "cpu" else "")
