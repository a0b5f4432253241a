"""CNNs by name: the teachers and students of the paper's Tables 1 and 2."""

import re
from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from cnn2gnn_jax.networks.layers import STEMS, Outputs
from cnn2gnn_jax.networks.resnet import ResNet
from cnn2gnn_jax.networks.vgg import VGG
from cnn2gnn_jax.networks.wrn import WRN
from cnn2gnn_jax.runtime.errors import UserError

__all__ = ["PAIRS", "Outputs", "create", "parse_pair"]

PAIRS: tuple[str, ...] = (
    "resnet34-resnet18",
    "resnet50-resnet18",
    "resnet101-resnet18",
    "resnet152-resnet18",
    "vgg13-vgg8",
    "vgg16-vgg8",
    "vgg19-vgg8",
    "wrn_40_2-wrn_16_2",
    "wrn_40_2-wrn_40_1",
)
"""The teacher-student pairs of the paper's Tables 1 and 2."""

_narrow_resnet = partial(ResNet, widths=(16, 32, 64))
_BY_NAME: dict[str, Callable[..., nn.Module]] = {
    "resnet8": partial(_narrow_resnet, depths=(1, 1, 1)),
    "resnet20": partial(_narrow_resnet, depths=(3, 3, 3)),
    "resnet32": partial(_narrow_resnet, depths=(5, 5, 5)),
    "resnet18": partial(ResNet, depths=(2, 2, 2, 2)),
    "resnet34": partial(ResNet, depths=(3, 4, 6, 3)),
    "resnet50": partial(ResNet, depths=(3, 4, 6, 3), bottleneck=True),
    "resnet101": partial(ResNet, depths=(3, 4, 23, 3), bottleneck=True),
    "resnet152": partial(ResNet, depths=(3, 8, 36, 3), bottleneck=True),
    "vgg8": partial(VGG, depths=(1, 1, 1, 1, 1)),
    "vgg13": partial(VGG, depths=(2, 2, 2, 2, 2)),
    "vgg16": partial(VGG, depths=(2, 2, 3, 3, 3)),
    "vgg19": partial(VGG, depths=(2, 2, 4, 4, 4)),
}


def _find(name: str) -> Callable[..., nn.Module]:
    if name in _BY_NAME:
        return _BY_NAME[name]
    if match := re.fullmatch(r"wrn_([1-9]\d*)_([1-9]\d*)", name):
        depth, widen = int(match[1]), int(match[2])
        if depth < 10 or (depth - 4) % 6:
            lower = max(10, depth - (depth - 4) % 6)
            raise UserError(
                f"Network {name!r} does not exist: the depth of a WRN is a multiple of 6 plus 4, not {depth}. "
                f"Choose wrn_{lower}_{widen} or wrn_{lower + 6}_{widen}."
            )
        return partial(WRN, depth=depth, widen=widen)
    raise UserError(
        f"Unknown network {name!r}. Choose one of {', '.join(_BY_NAME)}, or wrn_<depth>_<widen>, for example wrn_16_2."
    )


def create(
    name: str,
    num_classes: int,
    *,
    stem: str = "cifar",
    dtype: DTypeLike = jnp.float32,
) -> nn.Module:
    """Creates the network called `name`.

    `module.apply(variables, images_BxHxWxC, train=False, mask=None)` returns `Outputs`. With `train=True`, pass
    `mutable=['batch_stats']`. The network accepts any image size and number of channels. Parameters, batch statistics,
    logits and pooled features are float32, or float64 if `dtype` is float64.

    Args:
        name: 'resnet18', 34, 50, 101, 152; 'resnet8', 20, 32; 'vgg8', 13, 16, 19; 'wrn_<d>_<k>' with d = 6n + 4.
        num_classes: number of classes, the width of the logits.
        stem: 'cifar' (3x3 convolution at stride 1), or, for large images, 'downsample' (7x7 convolution at stride 2
            and max-pooling).
        dtype: dtype of the convolutions.

    Raises:
        UserError: the name or the stem is unknown.

    >>> import jax
    >>> network, images = create("resnet8", 10), jnp.zeros((2, 32, 32, 3))
    >>> outputs = network.apply(network.init(jax.random.key(0), images), images)
    >>> outputs.logits.shape, outputs.pooled.shape
    ((2, 10), (2, 64))
    """
    network = _find(name)
    if stem not in STEMS:
        raise UserError(f"Unknown stem {stem!r}. Choose one of {', '.join(STEMS)}.")
    return network(num_classes=num_classes, stem=stem, dtype=dtype)


def parse_pair(word: str) -> tuple[str, str]:
    """Splits a pair '<teacher>-<student>' into two names of networks. Any two networks are allowed.

    Raises:
        UserError: `word` is not two names joined by '-', or a name is unknown.

    >>> parse_pair("wrn_40_2-wrn_16_2")
    ('wrn_40_2', 'wrn_16_2')
    """
    names = word.split("-")
    if len(names) != 2:
        raise UserError(f"Pair {word!r} is not '<teacher>-<student>'. The paper's pairs: {', '.join(PAIRS)}.")
    for name in names:
        _find(name)
    return names[0], names[1]
