"""VGG (Simonyan and Zisserman, 2014, arXiv:1409.1556) with BatchNorm and one linear layer: vgg8, 13, 16 and 19."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from cnn2gnn_jax.networks import layers
from cnn2gnn_jax.networks.norm import BatchNorm, at_least_float32

WIDTHS = (64, 128, 256, 512, 512)


class VGG(nn.Module):
    """VGG with five blocks of 3x3 convolutions.

    Max-pooling follows blocks 0 to 2. It also follows block 3 if the feature maps of block 0 are at least 64 pixels
    high and wide. `features` are the outputs of the blocks after ReLU and before max-pooling; block 0 gives f0.
    `preactivations` are the same feature maps before the ReLU.

    Attributes:
        num_classes: number of classes.
        depths: number of convolutions in each block.
        stem: 'cifar' (3x3 convolution) or 'downsample' (the first convolution is 7x7 at stride 2).
        dtype: dtype of the convolutions.
    """

    num_classes: int
    depths: tuple[int, int, int, int, int]
    stem: str = "cifar"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False, mask: jax.Array | None = None) -> layers.Outputs:
        """Computes the outputs for images (B, H, W, channels). The mask is (B,) bool, False for padding."""
        x = images
        features: list[jax.Array] = []
        preactivations: list[jax.Array] = []
        for block, (depth, width) in enumerate(zip(self.depths, WIDTHS, strict=True)):
            for i in range(depth):
                stem = self.stem if block == i == 0 else "cifar"
                name = f"block{block}_conv{i}"
                x = layers.stem_conv(width, stem, dtype=self.dtype, name=name, use_bias=True)(x)
                norm = BatchNorm(param_dtype=at_least_float32(self.dtype), name=f"block{block}_norm{i}")
                preactivation = norm(x, train, mask)
                x = nn.relu(preactivation)
            preactivations.append(preactivation)
            features.append(x)
            if block < 3 or (block == 3 and min(features[0].shape[1:3]) >= 64):
                x = layers.max_pool(x)
        pooled = layers.global_average_pool(x)
        logits = layers.classifier(self.num_classes, nn.initializers.normal(0.01), self.dtype)(pooled)
        return layers.Outputs(logits, tuple(features), tuple(preactivations), pooled)
