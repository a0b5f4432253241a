"""Convolution whose gradients are forward convolutions and matrix products.

On the CPU, XLA's own gradients of a convolution are slow, and inside a loop (`lax.scan` over steps) slower by more than
an order of magnitude, since the pass that brings them into its fast form does not look into loops. On accelerators
XLA's own are used.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Initializer
from jax import lax
from jax.typing import DTypeLike

_LAYOUT = ("NHWC", "HWIO", "NHWC")


def _forward(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    return lax.conv_general_dilated(x, kernel, (stride, stride), [(padding, padding)] * 2, dimension_numbers=_LAYOUT)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    return _forward(x, kernel, stride, padding)


def _convolve_fwd(x, kernel, stride, padding):
    return _forward(x, kernel, stride, padding), (x, kernel)


def _convolve_bwd(stride, padding, saved, gradient):
    x, kernel = saved
    size, (height, width) = kernel.shape[0], x.shape[1:3]
    rows, columns = gradient.shape[1:3]
    # To x: the flipped kernel over the gradient, with zeros between its pixels where the stride skipped some.
    before = size - 1 - padding
    edges = [
        (before, extent + padding - (out - 1) * stride - 1, stride - 1)
        for extent, out in ((height, rows), (width, columns))
    ]
    spread = lax.pad(gradient, jnp.zeros((), gradient.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
    to_x = _forward(spread, jnp.flip(kernel, (0, 1)).swapaxes(2, 3), 1, 0)
    # To the kernel: for each of its pixels, a matrix product over all images and places.
    padded = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    flat = gradient.reshape(-1, gradient.shape[-1])

    def to_pixel(i: int, j: int) -> jax.Array:
        seen = padded[:, i : i + (rows - 1) * stride + 1 : stride, j : j + (columns - 1) * stride + 1 : stride]
        return seen.reshape(-1, x.shape[-1]).T @ flat

    to_kernel = jnp.stack([to_pixel(i, j) for i in range(size) for j in range(size)])
    return to_x, to_kernel.reshape(kernel.shape)


_convolve.defvjp(_convolve_fwd, _convolve_bwd)


def _as_product(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    """The same as one matrix product over the pixels under the kernel, set side by side."""
    size = kernel.shape[0]
    padded = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    rows, columns = (side - size + 1 for side in padded.shape[1:3])
    seen = [padded[:, i : i + rows : stride, j : j + columns : stride] for i in range(size) for j in range(size)]
    return jnp.concatenate(seen, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])


def _on_cpu(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    # XLA's convolution of a map smaller than the kernel is slow there, forward as well as backward.
    small = min(x.shape[1:3]) < kernel.shape[0]
    return (_as_product if small else _convolve)(x, kernel, stride, padding)


def convolve(x: jax.Array, kernel: jax.Array, stride: int = 1, padding: int = 0) -> jax.Array:
    """Convolution of (B, H, W, I) with a square kernel (k, k, I, O), zero padding on all sides: (B, H', W', O)."""
    return lax.platform_dependent(
        x,
        kernel,
        cpu=functools.partial(_on_cpu, stride=stride, padding=padding),
        default=functools.partial(_forward, stride=stride, padding=padding),
    )


class Conv(nn.Module):
    """Convolution with the parameters of `nn.Conv`: `kernel` (k, k, I, O) and, with `use_bias`, `bias` (O,)."""

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
        """(B, H, W, I) to (B, H', W', O), in `dtype`."""
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        y = convolve(x.astype(self.dtype), kernel.astype(self.dtype), self.stride, self.padding)
        if self.use_bias:
            y += self.param("bias", nn.initializers.zeros, (self.features,), self.param_dtype).astype(self.dtype)
        return y
