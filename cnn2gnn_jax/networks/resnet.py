"""ResNet (He et al., 2016, arXiv:1512.03385): resnet18 to resnet152, and the narrow resnet8, resnet20 and resnet32."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from cnn2gnn_jax.networks import layers
from cnn2gnn_jax.networks.norm import BatchNorm, at_least_float32


class Block(nn.Module):
    """A residual block of two 3x3 convolutions, or of 1x1, 3x3 and 1x1 convolutions if it is a bottleneck.

    It returns the sum with the shortcut before the ReLU.

    Attributes:
        width: channels of the 3x3 convolutions. A bottleneck returns four times as many channels.
        stride: stride of the (first) 3x3 convolution and of the shortcut.
        bottleneck: whether the block is a bottleneck.
        dtype: dtype of the convolutions.
    """

    width: int
    stride: int
    bottleneck: bool
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, mask: jax.Array | None) -> jax.Array:
        norm = partial(BatchNorm, param_dtype=at_least_float32(self.dtype))
        convolutions = [(self.width, 3, self.stride), (self.width, 3, 1)]  # channels, kernel size, stride
        if self.bottleneck:
            convolutions = [(self.width, 1, 1), (self.width, 3, self.stride), (4 * self.width, 1, 1)]
        channels = convolutions[-1][0]

        out = x
        for i, (width, kernel, stride) in enumerate(convolutions, 1):
            out = layers.conv(width, kernel, stride, dtype=self.dtype, name=f"conv{i}")(out)
            out = norm(name=f"norm{i}")(out, train, mask)
            if i < len(convolutions):
                out = nn.relu(out)
        if self.stride != 1 or x.shape[-1] != channels:
            x = layers.conv(channels, 1, self.stride, dtype=self.dtype, name="shortcut_conv")(x)
            x = norm(name="shortcut_norm")(x, train, mask)
        return out + x


class ResNet(nn.Module):
    """ResNet with one stage for each entry of `depths`. Every stage except the first halves the height and width.

    `features` are the outputs of the stem (after its max-pooling, if any) and of the stages after their ReLU.
    `preactivations` are the same feature maps before the ReLU.

    Attributes:
        num_classes: number of classes.
        depths: number of blocks in each stage.
        widths: `Block.width` of each stage. The stem has as many channels as the first entry.
        bottleneck: whether blocks are bottlenecks.
        stem: 'cifar' (3x3 convolution) or 'downsample' (7x7 convolution at stride 2, 3x3 max-pooling at stride 2).
        dtype: dtype of the convolutions.
    """

    num_classes: int
    depths: tuple[int, ...]
    widths: tuple[int, ...] = (64, 128, 256, 512)
    bottleneck: bool = False
    stem: str = "cifar"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False, mask: jax.Array | None = None) -> layers.Outputs:
        """Computes the outputs for images (B, H, W, channels). The mask is (B,) bool, False for padding."""
        x = layers.stem_conv(self.widths[0], self.stem, dtype=self.dtype, name="stem_conv")(images)
        x = BatchNorm(param_dtype=at_least_float32(self.dtype), name="stem_norm")(x, train, mask)
        # Max-pooling and ReLU commute. Pooling first gives the pooled feature map a preactivation too.
        x = layers.stem_pool(x, self.stem)
        preactivations = [x]
        for stage, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True), 1):
            for i in range(depth):
                stride = 2 if stage > 1 and i == 0 else 1
                block = Block(width, stride, self.bottleneck, self.dtype, name=f"stage{stage}_block{i}")
                x = block(nn.relu(x), train, mask)
            preactivations.append(x)
        features = tuple(nn.relu(x) for x in preactivations)
        pooled = layers.global_average_pool(features[-1])
        logits = layers.classifier(self.num_classes, layers.linear_init, self.dtype)(pooled)
        return layers.Outputs(logits, features, tuple(preactivations), pooled)
