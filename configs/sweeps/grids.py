"""What the sweeps are made of: pairs, methods, sizes and seeds."""

from collections.abc import Callable, Iterator
from typing import Any

from ml_collections import ConfigDict

from cnn2gnn_jax import networks
from cnn2gnn_jax.configs import cifar10, cifar100, digits, mini_imagenet, stl10

Add = Callable[..., None]

METHODS = (
    *("kd", "fitnets", "at", "sp", "vid", "rkd", "pkt", "ab", "ft", "crd", "ccd", "dkd", "gnn", "cnn2gnn"),
    *("ce", "kd_tau48"),  # controls; the third, CNN2GNN with its graph off, is trained beside each CNN2GNN
)
DATA = {"cifar10": cifar10, "cifar100": cifar100, "stl10": stl10, "mini_imagenet": mini_imagenet}
TITLES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "stl10": "STL-10", "mini_imagenet": "Mini-ImageNet"}
FEW = ("resnet34-resnet18", "vgg13-vgg8")  # the pairs of Figures 3, 4 and 6


def base(data: str, size: str, pair: str = "") -> ConfigDict:
    """The config of a data set at a size: '' for the paper's, `smoke`, or `digits` (in place of the data set)."""
    if size == "digits":
        return digits_config()
    return DATA[data].get_config(size or pair)


def digits_config() -> ConfigDict:
    """Digits at a size at which a cell takes seconds; methods that need it have a rate at which they learn there."""
    config = digits.get_config()
    config.teacher.network = "resnet20"
    config.student.train.epochs = 20
    return config


def pairs(size: str, full: tuple[str, ...] = networks.PAIRS) -> tuple[str, ...]:
    """The pairs of networks of a size."""
    return {"": full, "smoke": ("resnet8-resnet8",), "digits": ("resnet20-resnet8",)}[size]


def seeds(size: str) -> range:
    """Ten, as in the paper; one where it is only to be seen that everything runs."""
    return range(1 if size == "smoke" else 10)


def title(data: str, size: str) -> str:
    """What a data set at a size is called."""
    return "digits" if size == "digits" else f"{TITLES[data]}, {size}".rstrip(", ")


def methods(add: Add, table: str, data: str, size: str) -> None:
    """Every row of a table of the paper for every pair; a seed after the other, so that a table is soon complete."""
    for seed in seeds(size):
        for pair in pairs(size):
            for method in METHODS:
                config = base(data, size, pair)
                config.seed, config.method = seed, method
                if size == "digits":
                    on_digits(config)
                add(config, "methods", f"{table}: {title(data, size)}", row=method, column=pair)


def curves(size: str) -> Iterator[tuple[ConfigDict, dict[str, str]]]:
    """The configs of Figures 4 and 6, to be varied, and their places: a panel for a data set, a line for a pair."""
    for seed in seeds(size) if size != "digits" else range(3):
        for data in ("cifar100",) if size == "digits" else ("cifar100", "mini_imagenet"):
            for pair in pairs(size, FEW):
                config = base(data, size, pair)
                config.seed, config.evaluate.graph_off = seed, False
                yield config, {"panel": title(data, size), "line": pair}


# Where the published hyperparameters do not learn within a few epochs of 8x8 images.
_ON_DIGITS: dict[str, dict[str, Any]] = {
    "at": {"student.train.learning_rate": 0.01},
    "ab": {"distill.pretrain_epochs": 10},
    "ft": {"distill.pretrain_epochs": 10},
    "crd": {"distill.negatives": 512},
}


def on_digits(config: ConfigDict) -> None:
    """Changes a config in place where the method needs it."""
    config.update_from_flattened_dict(_ON_DIGITS.get(config.method, {}))
