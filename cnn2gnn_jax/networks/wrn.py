"""Wide residual networks WRN-d-k (Zagoruyko and Komodakis, 2016, arXiv:1605.07146)."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from cnn2gnn_jax.networks import layers
from cnn2gnn_jax.networks.norm import BatchNorm, at_least_float32


class Block(nn.Module):
    """A residual block: twice BatchNorm, ReLU and a 3x3 convolution.

    If the shape changes, the shortcut is a 1x1 convolution of the first ReLU's output.

    Attributes:
        width: channels of the output.
        stride: stride of the first convolution and of the shortcut.
        dtype: dtype of the convolutions.
    """

    width: int
    stride: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, mask: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """Returns the output of the block, without ReLU, and the output of its first BatchNorm."""
        norm = partial(BatchNorm, param_dtype=at_least_float32(self.dtype))
        preactivation = norm(name="norm1")(x, train, mask)
        activation = nn.relu(preactivation)
        out = layers.conv(self.width, 3, self.stride, dtype=self.dtype, name="conv1")(activation)
        out = nn.relu(norm(name="norm2")(out, train, mask))
        out = layers.conv(self.width, 3, dtype=self.dtype, name="conv2")(out)
        if self.stride != 1 or x.shape[-1] != self.width:
            x = layers.conv(self.width, 1, self.stride, dtype=self.dtype, name="shortcut_conv")(activation)
        return out + x, preactivation


class WRN(nn.Module):
    """WRN-d-k: a stem with 16 channels, and three stages of (d - 4) / 6 blocks with widths 16k, 32k and 64k.

    `features` are the outputs of the stem (after its max-pooling, if any) and of the stages, without ReLU.
    `preactivations` are the same feature maps after the BatchNorm that follows them: the first one of the next stage,
    or the final one after the last stage.

    Attributes:
        num_classes: number of classes.
        depth: d, where d - 4 is a multiple of 6.
        widen: k, the widening factor.
        stem: 'cifar' (3x3 convolution) or 'downsample' (7x7 convolution at stride 2, 3x3 max-pooling at stride 2).
        dtype: dtype of the convolutions.
    """

    num_classes: int
    depth: int
    widen: int
    stem: str = "cifar"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False, mask: jax.Array | None = None) -> layers.Outputs:
        """Computes the outputs for images (B, H, W, channels). The mask is (B,) bool, False for padding."""
        x = layers.stem_conv(16, self.stem, dtype=self.dtype, name="stem_conv")(images)
        x = layers.stem_pool(x, self.stem)
        features, preactivations = [x], []
        for stage, width in enumerate((16, 32, 64), 1):
            for i in range((self.depth - 4) // 6):
                stride = 2 if stage > 1 and i == 0 else 1
                block = Block(width * self.widen, stride, self.dtype, name=f"stage{stage}_block{i}")
                x, preactivation = block(x, train, mask)
                if i == 0:
                    preactivations.append(preactivation)
            features.append(x)
        norm = BatchNorm(param_dtype=at_least_float32(self.dtype), name="final_norm")
        preactivations.append(norm(x, train, mask))
        pooled = layers.global_average_pool(nn.relu(preactivations[-1]))
        logits = layers.classifier(self.num_classes, layers.linear_init, self.dtype)(pooled)
        return layers.Outputs(logits, tuple(features), tuple(preactivations), pooled)
