"""What the sweeps over all training images share: one teacher under the recipe `fast`, and the epochs of its students.

A word after the colon is a data set, with `-cpu` for the size that 2 CPU cores finish: `cifar100`, `cifar100-cpu`,
`mini_imagenet`, `mini_imagenet-cpu`.
"""

from ml_collections import ConfigDict

from configs.sweeps import grids

SIZES = ("", *(f"{data}{size}" for data in grids.DATA for size in ("", "-cpu")))
EPOCHS = {"pixels": 20, "teacher": 20, "stem": 10}
"""Of the graph students on a CPU, by their node features; the paper has 200."""


def parse(word: str) -> tuple[str, bool]:
    """The data set that a word names, and whether it asks for the size of a CPU."""
    return word.removesuffix("-cpu") or "cifar100", word.endswith("-cpu")


def config(data: str, on_cpu: bool, backbone: str = "teacher") -> ConfigDict:
    """The config of a graph student under the paper's recipe over a teacher under `fast`."""
    config = grids.base(data, "")
    config.teacher.network, config.teacher.train.recipe = "vgg8", "fast"
    config.student.backbone = backbone
    if on_cpu:
        config.student.train.epochs = EPOCHS[backbone]
    return config


def title(data: str, on_cpu: bool) -> str:
    """What a data set at a size is called."""
    return f"all of {grids.TITLES[data]}" + (", few epochs" if on_cpu else "")
