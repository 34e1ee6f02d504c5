"""Layers shared by the towers: convolutions with TensorFlow padding, batch norm, dropout.

Images are channels-last, [batch, height, width, channels], everywhere. The depthwise convolution
has two forms with the same numbers, because XLA's CPU compiler is an order of magnitude slower on
grouped convolutions than on the nine (or twenty-five) shifted multiply-adds they stand for, while
GPUs and TPUs have good kernels for them.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

DepthwiseForm = Literal["auto", "shifts", "grouped"]
Padding = Literal["SAME"] | int


class TowerOutput(NamedTuple):
    """What a tower makes of a batch."""

    pooled: jax.Array  # float32 [B, width]: one vector an image or text.
    sequence: jax.Array  # [B, positions, channels]: the last layer's patches, cells or tokens.


class Preset(NamedTuple):
    """A tower of a name that users know: its class, and the fields of its configuration."""

    tower: type[nnx.Module]
    fields: Mapping[str, Any] = {}


def same_padding(size: int, kernel_size: int, stride: int) -> tuple[int, int]:
    """Return the (before, after) zero padding of TensorFlow's "SAME" along one axis.

    The output has ceil(size / stride) positions; an odd amount puts the extra zero behind, unlike
    PyTorch's symmetric padding.
    """
    output_size = -(-size // stride)
    total = max((output_size - 1) * stride + kernel_size - size, 0)
    return total // 2, total - total // 2


def conv2d(
    images: jax.Array, kernel: jax.Array, stride: int = 1, padding: Padding = "SAME"
) -> jax.Array:
    """Convolve [B, H, W, I] with a kernel [h, w, I, O].

    Returns [B, rows, columns, O]: ceil(H / stride) rows if padding is "SAME".
    """
    if kernel.shape[:2] == (1, 1) and padding in ("SAME", 0):
        # A matrix product: the same numbers, and on a CPU several times faster.
        return images[:, ::stride, ::stride] @ kernel[0, 0]
    return jax.lax.conv_general_dilated(
        images,
        kernel,
        (stride, stride),
        _pads(images, kernel.shape, stride, padding),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _pads(images, kernel_shape, stride, padding):
    if padding == "SAME":
        return [same_padding(images.shape[1 + i], kernel_shape[i], stride) for i in range(2)]
    return [(padding, padding)] * 2


def max_pool(images: jax.Array, size: int = 3, stride: int = 2, padding: int = 1) -> jax.Array:
    """Maximum over windows."""
    window, strides = (1, size, size, 1), (1, stride, stride, 1)
    pads = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    return jax.lax.reduce_window(images, -jnp.inf, jax.lax.max, window, strides, pads)


def average_pool(images: jax.Array, size: int) -> jax.Array:
    """Mean over windows of size x size that do not overlap; a rest at the border is left out."""
    batch, height, width, channels = images.shape
    rows, columns = height // size, width // size
    images = images[:, : rows * size, : columns * size]
    windows = images.reshape(batch, rows, size, columns, size, channels)
    return jnp.mean(windows, axis=(2, 4))


class BatchNorm(nnx.Module):
    """Batch norm over all axes but the last."""

    def __init__(
        self,
        num_features: int,
        *,
        momentum: float = 0.99,
        epsilon: float = 1e-5,
        initial_scale: float = 1.0,
        dtype: DTypeLike = jnp.float32,
    ) -> None:
        self.scale = nnx.Param(jnp.full(num_features, initial_scale, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(num_features, jnp.float32))
        self.mean = nnx.BatchStat(jnp.zeros(num_features, jnp.float32))
        self.var = nnx.BatchStat(jnp.ones(num_features, jnp.float32))
        self.momentum, self.epsilon, self.dtype = momentum, epsilon, dtype
        self.keep_statistics = False  # Set to use and keep the running ones in training too.

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        train = train and not self.keep_statistics
        x = x.astype(self.dtype)
        mean, var = self.mean[...], self.var[...]
        if train:
            xf = x.astype(jnp.float32)
            axes = tuple(range(x.ndim - 1))
            mean, var = jnp.mean(xf, axes), jnp.var(xf, axes)
            count = x.size // x.shape[-1]
            self._record(mean, var * (count / max(count - 1, 1)))
        scale = self.scale[...] * jax.lax.rsqrt(var + self.epsilon)
        return (x * scale + (self.bias[...] - mean * scale)).astype(self.dtype)

    def _record(self, mean: jax.Array, var: jax.Array) -> None:
        for recorded, new in ((self.mean, mean), (self.var, var)):
            new = jax.lax.stop_gradient(new)
            recorded[...] = self.momentum * recorded[...] + (1 - self.momentum) * new


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


def _shifts(images: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    (height, width), (size_y, size_x) = images.shape[1:3], kernel.shape[:2]
    padded = _pad_same(images, kernel.shape, stride)
    rows, columns = -(-height // stride), -(-width // stride)
    last_y, last_x = (rows - 1) * stride + 1, (columns - 1) * stride + 1
    return sum(
        padded[:, y : y + last_y : stride, x : x + last_x : stride] * kernel[y, x, 0]
        for y in range(size_y)
        for x in range(size_x)
    )


def _pad_same(images: jax.Array, kernel_shape: tuple[int, ...], stride: int) -> jax.Array:
    rows = same_padding(images.shape[1], kernel_shape[0], stride)
    columns = same_padding(images.shape[2], kernel_shape[1], stride)
    return jnp.pad(images, ((0, 0), rows, columns, (0, 0)))


# The gradient that JAX derives from the shifts takes a third longer and compiles in twice the time.
@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _depthwise_by_shifts(images: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    return _shifts(images, kernel, stride)


def _depthwise_forward(
    images: jax.Array, kernel: jax.Array, stride: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _shifts(images, kernel, stride), (images, kernel)


def _depthwise_backward(
    stride: int, saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    images, kernel = saved
    return (
        _image_gradient(images.shape, kernel, stride, gradient),
        _kernel_gradient(images, kernel.shape, stride, gradient),
    )


_depthwise_by_shifts.defvjp(_depthwise_forward, _depthwise_backward)


def _image_gradient(
    shape: tuple[int, ...], kernel: jax.Array, stride: int, gradient: jax.Array
) -> jax.Array:
    """Spread the gradient back to the strided positions, then filter it by the mirrored kernel."""

    def spread(axis: int) -> tuple[int, int, int]:
        size, kernel_size = shape[axis], kernel.shape[axis - 1]
        before = same_padding(size, kernel_size, stride)[0]
        covered = (gradient.shape[axis] - 1) * stride + 1
        return kernel_size - 1 - before, size - covered + before, stride - 1

    keep = (0, 0, 0)
    spaced = jax.lax.pad(
        gradient, jnp.zeros((), gradient.dtype), (keep, spread(1), spread(2), keep)
    )
    (size_y, size_x), (height, width) = kernel.shape[:2], shape[1:3]
    return sum(
        spaced[:, y : y + height, x : x + width] * kernel[size_y - 1 - y, size_x - 1 - x, 0]
        for y in range(size_y)
        for x in range(size_x)
    )


def _kernel_gradient(
    images: jax.Array, kernel_shape: tuple[int, ...], stride: int, gradient: jax.Array
) -> jax.Array:
    """Correlate the images with the gradient, one tap of the kernel after the other."""
    (size_y, size_x), (rows, columns) = kernel_shape[:2], gradient.shape[1:3]
    padded = _pad_same(images, kernel_shape, stride)
    window = (len(images), (rows - 1) * stride + 1, (columns - 1) * stride + 1, images.shape[3])

    def tap(position: jax.Array) -> jax.Array:
        shifted = jax.lax.dynamic_slice(padded, (0, position[0], position[1], 0), window)
        return jnp.sum(shifted[:, ::stride, ::stride] * gradient, axis=(0, 1, 2))

    # A loop, because XLA's CPU compiler fuses the sums of all taps into one very slow pass.
    positions = jnp.array([(y, x) for y in range(size_y) for x in range(size_x)])
    return jax.lax.map(tap, positions).reshape(kernel_shape)


class Conv(nnx.Module):
    """A convolution without bias, TensorFlow "SAME" padding; depthwise if asked."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: Padding = "SAME",
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
        self.padding: Padding = padding
        self.depthwise = depthwise
        self.depthwise_form: DepthwiseForm = depthwise_form
        self.dtype = dtype

    def __call__(self, images: jax.Array) -> jax.Array:
        """Map [B, H, W, in] to [B, ceil(H / stride), ceil(W / stride), out]."""
        images, kernel = images.astype(self.dtype), self.kernel[...].astype(self.dtype)
        if self.depthwise:
            return depthwise_conv2d(images, kernel, self.stride, self.depthwise_form)
        return conv2d(images, kernel, self.stride, self.padding)


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
