"""Layers shared by the towers: convolutions with TensorFlow padding, batch norm, dropout.

Images are channels-last, [batch, height, width, channels], everywhere. The depthwise convolution
has two forms with the same numbers, because XLA's CPU compiler is an order of magnitude slower on
grouped convolutions than on the nine (or twenty-five) shifted multiply-adds they stand for, while
GPUs and TPUs have good kernels for them.
"""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

DepthwiseForm = Literal["auto", "shifts", "grouped"]


def same_padding(size: int, kernel_size: int, stride: int) -> tuple[int, int]:
    """Return the (before, after) zero padding of TensorFlow's "SAME" along one axis.

    The output has ceil(size / stride) positions; an odd amount puts the extra zero behind, unlike
    PyTorch's symmetric padding.
    """
    output_size = -(-size // stride)
    total = max((output_size - 1) * stride + kernel_size - size, 0)
    return total // 2, total - total // 2


def conv2d(images: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """Convolve [B, H, W, I] with a kernel [h, w, I, O], TensorFlow "SAME" padding.

    Returns [B, ceil(H / stride), ceil(W / stride), O].
    """
    if kernel.shape[:2] == (1, 1) and stride == 1:
        # A matrix product: the same numbers, and on a CPU several times faster.
        return images @ kernel[0, 0]
    return jax.lax.conv_general_dilated(
        images, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def depthwise_conv2d(
    images: jax.Array, kernel: jax.Array, stride: int = 1, form: DepthwiseForm = "auto"
) -> jax.Array:
    """Convolve every channel of [B, H, W, C] with its own filter, TensorFlow "SAME" padding.

    Args:
        images: [B, H, W, C].
        kernel: [h, w, 1, C].
        stride: step in both directions.
        form: "shifts" (a sum of shifted products), "grouped" (XLA's grouped convolution) or
            "auto": shifts on a CPU, grouped elsewhere. The numbers are the same.

    Returns:
        [B, ceil(H / stride), ceil(W / stride), C].

    Raises:
        ValueError: the form is none of the three.
    """
    if form == "auto":
        form = "shifts" if jax.default_backend() == "cpu" else "grouped"
    if form == "shifts":
        return _depthwise_by_shifts(images, kernel, stride)
    if form == "grouped":
        return _depthwise_grouped(images, kernel, stride)
    raise ValueError(f"depthwise form is {form!r}; it must be 'auto', 'shifts' or 'grouped'")


def _depthwise_grouped(images: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    return jax.lax.conv_general_dilated(
        images,
        kernel,
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=images.shape[-1],
    )


def _depthwise_by_shifts(images: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    height, width = images.shape[1:3]
    kernel_height, kernel_width = kernel.shape[:2]
    rows, columns = -(-height // stride), -(-width // stride)
    padding_rows = same_padding(height, kernel_height, stride)
    padding_columns = same_padding(width, kernel_width, stride)
    padded = jnp.pad(images, ((0, 0), padding_rows, padding_columns, (0, 0)))
    last_row, last_column = (rows - 1) * stride + 1, (columns - 1) * stride + 1
    return sum(
        padded[:, i : i + last_row : stride, j : j + last_column : stride] * kernel[i, j, 0]
        for i in range(kernel_height)
        for j in range(kernel_width)
    )


class Conv(nnx.Module):
    """A convolution without bias, TensorFlow "SAME" padding; depthwise if asked."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        *,
        depthwise: bool = False,
        depthwise_form: DepthwiseForm = "auto",
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        """Draw the kernel [h, w, in (1 if depthwise), out] from He's normal distribution."""
        shape = (kernel_size, kernel_size, 1 if depthwise else in_channels, out_channels)
        initialise = jax.nn.initializers.he_normal(in_axis=(0, 1, 2), out_axis=3)
        self.kernel = nnx.Param(initialise(rngs.params(), shape, jnp.float32))
        self.stride = stride
        self.depthwise = depthwise
        self.depthwise_form: DepthwiseForm = depthwise_form
        self.dtype = dtype

    def __call__(self, images: jax.Array) -> jax.Array:
        """Map [B, H, W, in] to [B, ceil(H / stride), ceil(W / stride), out]."""
        images, kernel = images.astype(self.dtype), self.kernel[...].astype(self.dtype)
        if self.depthwise:
            return depthwise_conv2d(images, kernel, self.stride, self.depthwise_form)
        return conv2d(images, kernel, self.stride)


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zero each element with probability `rate` and scale the rest to keep the mean.

    No key means no dropout (evaluation).
    """
    return _drop(x, rate, key, x.shape)


def drop_examples(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zero whole examples (stochastic depth, Huang et al. 2016) and scale the rest.

    No key means nothing is dropped.
    """
    return _drop(x, rate, key, (x.shape[0],) + (1,) * (x.ndim - 1))


def _drop(x: jax.Array, rate: float, key: jax.Array | None, mask_shape: Sequence[int]) -> jax.Array:
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, mask_shape)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))


def split_key(key: jax.Array | None, count: int) -> Sequence[jax.Array | None]:
    """Return `count` independent keys, or as many Nones where there is no key."""
    return [None] * count if key is None else list(jax.random.split(key, count))
