"""VGG with BatchNorm: vgg8, vgg13, vgg16, vgg19 (Simonyan and Zisserman, 2014, arXiv:1409.1556), one linear layer."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from cnn2gnn_jax.networks import layers
from cnn2gnn_jax.networks.norm import BatchNorm, at_least_float32

WIDTHS = (64, 128, 256, 512, 512)


class VGG(nn.Module):
    """VGG of five blocks of 3x3 convolutions.

    A max-pool follows blocks 0 to 2, and block 3 where block 0's maps have 64 pixels a side or more.
    `features` are the blocks' outputs after ReLU and before their max-pool (block 0 is f0); `preactivations` the same
    before their last ReLU.

    Attributes:
        depths: convolutions of each block.
        stem: 'cifar', or 'downsample': the first convolution is 7x7 at stride 2, and block 0's own max-pool follows.
        dtype: of the convolutions.
    """

    num_classes: int
    depths: tuple[int, int, int, int, int]
    stem: str = "cifar"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False, mask: jax.Array | None = None) -> layers.Outputs:
        """images: (B, H, W, channels); mask: (B,) bool, False for padding that BatchNorm leaves out, or None."""
        x = images
        features: list[jax.Array] = []
        preactivations: list[jax.Array] = []
        for block, (depth, width) in enumerate(zip(self.depths, WIDTHS, strict=True)):
            for i in range(depth):
                stem = self.stem if block == i == 0 else "cifar"
                name = f"block{block}_conv{i}"
                x = layers.stem_conv(width, stem, dtype=self.dtype, name=name, use_bias=True)(x)
                norm = BatchNorm(param_dtype=at_least_float32(self.dtype), name=f"block{block}_norm{i}")
                before = norm(x, train, mask)
                x = nn.relu(before)
            preactivations.append(before)
            features.append(x)
            if block < 3 or (block == 3 and min(features[0].shape[1:3]) >= 64):
                x = layers.max_pool(x)
        pooled = layers.global_average_pool(x)
        logits = layers.classifier(self.num_classes, nn.initializers.normal(0.01), self.dtype)(pooled)
        return layers.Outputs(logits, tuple(features), tuple(preactivations), pooled)
