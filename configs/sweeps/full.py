"""What the sweeps over all training images share: one teacher under the recipe `fast`, and the epochs of its students.

A word after the colon is a data set, with `-cpu` for the size that 2 CPU cores finish: `cifar100`, `cifar100-cpu`,
`mini_imagenet`, `mini_imagenet-cpu`. `smoke` and `digits` are small, to see that everything runs.
"""

from ml_collections import ConfigDict

from cnn2gnn_jax.configs.sweeps import grids

SMALL = ("smoke", "digits")
WORDS = ("", *SMALL, *(f"{data}{size}" for data in grids.DATA for size in ("", "-cpu")))
EPOCHS = {"pixels": 20, "teacher": 20, "stem": 10}
"""Of the graph students on a CPU, by their node features; the paper has 200."""


def parse(word: str) -> tuple[str, str]:
    """The data set that a word names, and the size: '' for the paper's, `cpu`, `smoke` or `digits`."""
    if word in SMALL:
        return "cifar100", word
    data, _, size = word.partition("-")
    return data or "cifar100", size


def config(data: str, size: str, backbone: str = "teacher") -> ConfigDict:
    """The config of a graph student under the paper's recipe over a teacher under `fast`."""
    config = grids.base(data, size if size in SMALL else "")
    config.teacher.train.recipe = "fast"
    config.student.backbone = backbone
    if size not in SMALL:
        config.teacher.network = "vgg8"
    if size == "cpu":
        config.student.train.epochs = EPOCHS[backbone]
    return config


def title(data: str, size: str) -> str:
    """What a data set at a size is called."""
    if size in SMALL:
        return grids.title(data, size)
    return f"all of {grids.TITLES[data]}" + (", few epochs" if size == "cpu" else "")
