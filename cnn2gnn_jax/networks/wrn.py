"""Wide residual networks WRN-d-k (Zagoruyko and Komodakis, 2016, arXiv:1605.07146)."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from cnn2gnn_jax.networks import layers
from cnn2gnn_jax.networks.norm import BatchNorm, at_least_float32


class Block(nn.Module):
    """BN, ReLU, 3x3 convolution, twice; where the width changes, the shortcut is a 1x1 convolution of the first ReLU.

    Attributes:
        width: channels of the output.
        stride: of the first convolution and the shortcut.
    """

    width: int
    stride: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, mask: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """Returns the block's raw output and its input after the first BN, before the first ReLU."""
        norm = partial(BatchNorm, param_dtype=at_least_float32(self.dtype))
        before = norm(name="norm1")(x, train, mask)
        active = nn.relu(before)
        out = layers.conv(self.width, 3, self.stride, dtype=self.dtype, name="conv1")(active)
        out = nn.relu(norm(name="norm2")(out, train, mask))
        out = layers.conv(self.width, 3, dtype=self.dtype, name="conv2")(out)
        if self.stride != 1 or x.shape[-1] != self.width:
            x = layers.conv(self.width, 1, self.stride, dtype=self.dtype, name="shortcut_conv")(active)
        return out + x, before


class WRN(nn.Module):
    """WRN-d-k: a stem of 16 channels and three stages of (d - 4) / 6 blocks of widths 16k, 32k, 64k.

    `features` are raw: the stem's output (after its max-pool, where it has one) and the stages'. `preactivations` are
    the same after the BN that reads them: the first of the next stage, the final one for f3.

    Attributes:
        depth: d, with d - 4 a multiple of 6.
        widen: k.
        stem: 'cifar' (3x3) or 'downsample' (7x7 at stride 2, 3x3 max-pool at stride 2).
        dtype: of the convolutions.
    """

    num_classes: int
    depth: int
    widen: int
    stem: str = "cifar"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False, mask: jax.Array | None = None) -> layers.Outputs:
        """images: (B, H, W, channels); mask: (B,) bool, False for padding that BatchNorm leaves out, or None."""
        x = layers.stem_conv(16, self.stem, dtype=self.dtype, name="stem_conv")(images)
        x = layers.stem_pool(x, self.stem)
        features, preactivations = [x], []
        for stage, width in enumerate((16, 32, 64), 1):
            for i in range((self.depth - 4) // 6):
                stride = 2 if stage > 1 and i == 0 else 1
                block = Block(width * self.widen, stride, self.dtype, name=f"stage{stage}_block{i}")
                x, before = block(x, train, mask)
                if i == 0:
                    preactivations.append(before)
            features.append(x)
        norm = BatchNorm(param_dtype=at_least_float32(self.dtype), name="final_norm")
        preactivations.append(norm(x, train, mask))
        pooled = layers.global_average_pool(nn.relu(preactivations[-1]))
        logits = layers.classifier(self.num_classes, layers.linear_init, self.dtype)(pooled)
        return layers.Outputs(logits, tuple(features), tuple(preactivations), pooled)
