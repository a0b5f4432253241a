"""ResNet: resnet18 to resnet152 and the narrow resnet8, resnet20, resnet32 (He et al., 2016, arXiv:1512.03385)."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from cnn2gnn_jax.networks import layers
from cnn2gnn_jax.networks.norm import BatchNorm, at_least_float32


class Block(nn.Module):
    """Two 3x3 convolutions, or 1x1, 3x3 and 1x1 in a bottleneck, beside a shortcut; returns the sum before its ReLU.

    Attributes:
        width: channels of the 3x3 convolutions; a bottleneck returns four times as many.
        stride: of the (first) 3x3 convolution and the shortcut.
    """

    width: int
    stride: int
    bottleneck: bool
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, mask: jax.Array | None) -> jax.Array:
        norm = partial(BatchNorm, param_dtype=at_least_float32(self.dtype))
        plan = [(self.width, 3, self.stride), (self.width, 3, 1)]  # channels, kernel, stride
        if self.bottleneck:
            plan = [(self.width, 1, 1), (self.width, 3, self.stride), (4 * self.width, 1, 1)]
        channels = plan[-1][0]

        out = x
        for i, (width, kernel, stride) in enumerate(plan, 1):
            out = layers.conv(width, kernel, stride, dtype=self.dtype, name=f"conv{i}")(out)
            out = norm(name=f"norm{i}")(out, train, mask)
            if i < len(plan):
                out = nn.relu(out)
        if self.stride != 1 or x.shape[-1] != channels:
            x = layers.conv(channels, 1, self.stride, dtype=self.dtype, name="shortcut_conv")(x)
            x = norm(name="shortcut_norm")(x, train, mask)
        return out + x


class ResNet(nn.Module):
    """ResNet with one stage for each entry of `depths`; every stage but the first halves the map.

    `features` are the stem's output (after its max-pool, where it has one) and the stages', after their ReLU;
    `preactivations` the same before it.

    Attributes:
        depths: blocks of each stage.
        widths: `Block.width` of each stage; the stem has the first one's.
        stem: 'cifar' (3x3) or 'downsample' (7x7 at stride 2, 3x3 max-pool at stride 2).
        dtype: of the convolutions.
    """

    num_classes: int
    depths: tuple[int, ...]
    widths: tuple[int, ...] = (64, 128, 256, 512)
    bottleneck: bool = False
    stem: str = "cifar"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False, mask: jax.Array | None = None) -> layers.Outputs:
        """images: (B, H, W, channels); mask: (B,) bool, False for padding that BatchNorm leaves out, or None."""
        x = layers.stem_conv(self.widths[0], self.stem, dtype=self.dtype, name="stem_conv")(images)
        x = BatchNorm(param_dtype=at_least_float32(self.dtype), name="stem_norm")(x, train, mask)
        # Max-pool and ReLU commute, so that the pooled output, too, has a map before its ReLU.
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
