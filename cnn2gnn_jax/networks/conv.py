"""Convolution with square kernels. It is computed as a matrix product if the image is smaller than the kernel."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Initializer
from jax import lax
from jax.typing import DTypeLike


def convolve(x: jax.Array, kernel: jax.Array, stride: int = 1, padding: int = 0) -> jax.Array:
    """Convolves (B, H, W, I) with a square kernel (k, k, I, O) to (B, H', W', O), with zero padding on all sides."""
    if min(x.shape[1:3]) < kernel.shape[0]:
        # XLA's convolution on the CPU is slow for such images: it takes 1,300 ms for 100 feature maps of 2x2x512 and a
        # 3x3 kernel, where the matrix product takes 40 ms.
        return _convolve_by_product(x, kernel, stride, padding)
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), [(padding, padding)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _convolve_by_product(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    """The same convolution as a matrix product of patches (B, H', W', k * k * I) and the flattened kernel."""
    size = kernel.shape[0]
    padded = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    height, width = (side - size + 1 for side in padded.shape[1:3])
    patches = [padded[:, i : i + height : stride, j : j + width : stride] for i in range(size) for j in range(size)]
    return jnp.concatenate(patches, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])


class Conv(nn.Module):
    """A convolution with the same parameters as `nn.Conv`: `kernel` (k, k, I, O), and `bias` (O,) if `use_bias`."""

    features: int
    kernel_size: int
    stride: int = 1
    padding: int = 0
    use_bias: bool = False
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    kernel_init: Initializer = nn.initializers.he_normal()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (B, H, W, I) to (B, H', W', O), in `dtype`."""
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        y = convolve(x.astype(self.dtype), kernel.astype(self.dtype), self.stride, self.padding)
        if self.use_bias:
            y += self.param("bias", nn.initializers.zeros, (self.features,), self.param_dtype).astype(self.dtype)
        return y
