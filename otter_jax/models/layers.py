"""Layers shared by the towers: convolution, pooling, linear maps, norms, dropout.

Images are channels-last, [batch, height, width, channels], everywhere. Convolutions and max pooling
have two forms with the same numbers: on GPUs and TPUs XLA's own operations, on a CPU those of
`cpu_forms`, which says why. The choice is made by what a function is compiled for.

Parameters are float32, and where computation is bfloat16, a parameter's gradient is a float32 sum
over the batch all the same, and so over the devices: the operations here take parameters as they
are and cast them inside.
"""

import contextlib
import contextvars
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from otter_jax.models import cpu_forms
from otter_jax.models.cpu_forms import Pads

Padding = Literal["SAME"] | int  # TensorFlow's, or as many zeros on every side (PyTorch).


class TowerOutput(NamedTuple):
    """What a tower makes of a batch."""

    pooled: jax.Array  # float32 [B, width]: one vector an image or text.
    sequence: jax.Array  # [B, positions, channels]: the last layer's patches, cells or tokens.


def compiling_eager_calls(call: Callable[..., TowerOutput]) -> Callable[..., TowerOutput]:
    """Have a tower's call compiled as a whole where it would run operation by operation.

    The first call of a tower costs a fifth of what its operations cost one by one, and later ones
    are faster. Inside of jit, grad and the like nothing changes.
    """
    compiled = nnx.jit(call, static_argnames="train")

    @functools.wraps(call)
    def wrapped(tower: nnx.Module, *inputs: Any, **options: Any) -> TowerOutput:
        leaves = jax.tree.leaves((nnx.state(tower), inputs, options))
        traced = any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)
        return (call if traced else compiled)(tower, *inputs, **options)

    return wrapped


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
    """Convolve [B, H, W, I] with a kernel [h, w, I, O], in the images' type.

    Returns [B, rows, columns, O]; with "SAME", ceil(H / stride) rows and ceil(W / stride) columns.
    """
    pads = _pads(images, kernel, stride, padding)
    if kernel.shape[:2] == (1, 1) and padding in ("SAME", 0):
        return _pointwise(stride, pads)(images, kernel)
    if stride <= min(kernel.shape[:2]):
        return _convolution(stride, pads)(images, kernel)
    return _lax_convolution(images, kernel, stride, pads)


def depthwise_conv2d(
    images: jax.Array, kernel: jax.Array, stride: int = 1, padding: Padding = "SAME"
) -> jax.Array:
    """Convolve every channel of [B, H, W, C] with its own filter of a kernel [h, w, 1, C].

    In the images' type. Returns [B, rows, columns, C]; with "SAME", ceil(H / stride) rows and
    ceil(W / stride) columns.
    """
    pads = _pads(images, kernel, stride, padding)
    if stride <= min(kernel.shape[:2]):
        return _depthwise(stride, pads)(images, kernel)
    return _lax_convolution(images, kernel, stride, pads, depthwise=True)


def max_pool(images: jax.Array, size: int = 3, stride: int = 2, padding: int = 1) -> jax.Array:
    """Take the maximum over windows of size x size, in [B, H, W, C]; the padding never wins.

    Of equal pixels of a window, the first (row by row) has the gradient, as in PyTorch.
    """
    if stride <= size:
        return _max_pool(size, stride, padding)(images)
    return _lax_max_pool(images, size, stride, padding)


def _lax_max_pool(images: jax.Array, size: int, stride: int, padding: int) -> jax.Array:
    pads = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    window, strides = (1, size, size, 1), (1, stride, stride, 1)
    return jax.lax.reduce_window(images, -jnp.inf, jax.lax.max, window, strides, pads)


def average_pool(images: jax.Array, size: int, keep_rest: bool = False) -> jax.Array:
    """Average over windows of size x size side by side.

    Args:
        images: [B, H, W, C].
        size: pixels of a window's side; 1 returns the images.
        keep_rest: whether a rest at the border makes windows of its own, the mean of the pixels
            that are there (PyTorch's `ceil_mode` without `count_include_pad`); it is left out
            otherwise.

    Returns:
        [B, H / size, W / size, C], rounded up to keep a rest and down to leave it out.
    """
    if size == 1:
        return images
    batch, height, width, channels = images.shape
    if keep_rest and (height % size or width % size):
        rest = ((0, 0), (0, -height % size), (0, -width % size), (0, 0))
        counts = jnp.pad(jnp.ones((1, height, width, 1), images.dtype), rest)
        return average_pool(jnp.pad(images, rest), size) / average_pool(counts, size)
    rows, columns = height // size, width // size
    images = images[:, : rows * size, : columns * size]
    windows = images.reshape(batch, rows, size, columns, size, channels)
    return jnp.mean(windows, axis=(2, 4))


_portable = contextvars.ContextVar("portable", default=False)


@contextlib.contextmanager
def portable_operations() -> Iterator[None]:
    """Trace the forms of operations that converters to other formats know, for the time being."""
    token = _portable.set(True)
    try:
        yield
    finally:
        _portable.reset(token)


def is_portable() -> bool:
    """Return whether this is inside of `portable_operations`."""
    return _portable.get()


def by_platform(cpu: Callable, other: Callable, portable: Callable | None = None) -> Callable:
    """Return an operation that has one form on CPUs and another elsewhere, with the same numbers.

    The platform is the one that is compiled for, which need not be the host's. The choice is made
    once more for the gradient, instead of differentiating it, which would keep what either form
    has to remember. Inside of `portable_operations` there is no choice, but one form, `other`
    unless it is given.
    """

    @jax.custom_vjp
    def operation(*arrays: jax.Array) -> jax.Array:
        if is_portable():
            return (portable or other)(*arrays)
        return jax.lax.platform_dependent(*arrays, cpu=cpu, default=other)

    def forward(*arrays: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        return operation(*arrays), arrays

    def backward(arrays: tuple[jax.Array, ...], gradient: jax.Array) -> tuple[jax.Array, ...]:
        def pull(form: Callable) -> Callable:
            return lambda gradient, *arrays: jax.vjp(form, *arrays)[1](gradient)

        return jax.lax.platform_dependent(gradient, *arrays, cpu=pull(cpu), default=pull(other))

    operation.defvjp(forward, backward)
    return operation


# Made once for each stride and padding, so that JAX traces equal layers once.


@functools.cache
def _pointwise(stride: int, pads: Pads) -> Callable:
    return by_platform(
        lambda images, kernel: cpu_forms.pointwise(images[:, ::stride, ::stride], kernel[0, 0]),
        lambda images, kernel: _lax_convolution(images, kernel, stride, pads),
    )


@functools.cache
def _convolution(stride: int, pads: Pads) -> Callable:
    return by_platform(
        lambda images, kernel: cpu_forms.convolution(images, kernel, stride, pads),
        lambda images, kernel: _lax_convolution(images, kernel, stride, pads),
    )


@functools.cache
def _depthwise(stride: int, pads: Pads) -> Callable:
    return by_platform(
        lambda images, kernel: cpu_forms.depthwise(images, kernel, stride, pads),
        lambda images, kernel: _lax_convolution(images, kernel, stride, pads, depthwise=True),
    )


@functools.cache
def _max_pool(size: int, stride: int, padding: int) -> Callable:
    def on_cpu(images: jax.Array) -> jax.Array:
        return cpu_forms.max_pool_on_cpu(images, size, stride, padding)

    # onnxruntime pools over three axes at most, and a window of XLA's has all four.
    return by_platform(
        on_cpu, lambda images: _lax_max_pool(images, size, stride, padding), portable=on_cpu
    )


def _pads(images: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> Pads:
    if padding != "SAME":
        return ((padding, padding), (padding, padding))
    (height, width), (size_y, size_x) = images.shape[1:3], kernel.shape[:2]
    return same_padding(height, size_y, stride), same_padding(width, size_x, stride)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _lax_convolution(
    images: jax.Array, kernel: jax.Array, stride: int, pads: Pads, depthwise: bool = False
) -> jax.Array:
    return jax.lax.conv_general_dilated(
        images,
        kernel.astype(images.dtype),
        (stride, stride),
        pads,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=images.shape[-1] if depthwise else 1,
    )


def _lax_convolution_forward(
    images: jax.Array, kernel: jax.Array, stride: int, pads: Pads, depthwise: bool
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _lax_convolution(images, kernel, stride, pads, depthwise), (images, kernel)


def _lax_convolution_backward(
    stride: int,
    pads: Pads,
    depthwise: bool,
    saved: tuple[jax.Array, jax.Array],
    gradient: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Return JAX's own gradients, but that the kernel's is summed in the kernel's type.

    That one convolves the images with the gradient: the batch takes the place of the channels, the
    stride lies between the gradient's pixels, and what comes out is as large as the kernel.
    """
    images, kernel = saved

    def of_images(images: jax.Array) -> jax.Array:
        return _lax_convolution.fun(images, kernel, stride, pads, depthwise)

    ends = [
        (before, taps + (pixels - 1) * stride - size - before)
        for (before, _), taps, pixels, size in zip(
            pads, kernel.shape[:2], gradient.shape[1:3], images.shape[1:3], strict=True
        )
    ]
    to_kernel = jax.lax.conv_general_dilated(
        images,
        gradient,
        (1, 1),
        ends,
        rhs_dilation=(stride, stride),
        dimension_numbers=("CHWN", "IHWO", "HWNC"),
        batch_group_count=images.shape[-1] if depthwise else 1,
        preferred_element_type=kernel.dtype,
    )
    return jax.vjp(of_images, images)[1](gradient)[0], to_kernel


_lax_convolution.defvjp(_lax_convolution_forward, _lax_convolution_backward)


class Conv(nnx.Module):
    """A convolution, without bias unless asked; depthwise if asked."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: Padding = "SAME",
        *,
        depthwise: bool = False,
        use_bias: bool = False,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        """Draw the kernel [h, w, in (1 if depthwise), out] from He's normal distribution."""
        shape = (kernel_size, kernel_size, 1 if depthwise else in_channels, out_channels)
        initialise = jax.nn.initializers.he_normal(in_axis=(0, 1, 2), out_axis=3)
        self.kernel = nnx.Param(initialise(rngs.params(), shape, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(out_channels)) if use_bias else None
        self.stride = stride
        self.padding: Padding = padding
        self.depthwise = depthwise
        self.dtype = dtype

    def __call__(self, images: jax.Array) -> jax.Array:
        """Map [B, H, W, in] to [B, rows, columns, out]."""
        convolve = depthwise_conv2d if self.depthwise else conv2d
        images = convolve(images.astype(self.dtype), self.kernel[...], self.stride, self.padding)
        return images if self.bias is None else add_parameter(images, self.bias[...])


def _apart_on_cpu(arrays: Any) -> Any:
    """Return an array, or several, that XLA:CPU computes once instead of in each of their uses.

    Compilers for GPUs and TPUs end a convolution or a product with the sums over what it gives,
    which spares a pass over the gradient.
    """
    return jax.lax.platform_dependent(arrays, cpu=cpu_forms.as_it_is, default=lambda arrays: arrays)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def batch_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalise [..., C] with the statistics of the batch itself, in float32 (Ioffe, Szegedy 2015).

    Under jit the batch may be spread over devices; its statistics are those of the whole. The
    variance is what cancellation leaves where a channel's mean is a thousand times its deviation.

    Returns:
        The normalised batch, and the mean and (biased) variance [C], which carry no gradient.
    """
    return _batch_norm_forward(x, scale, bias, epsilon)[0]


def _batch_norm_forward(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
    rows = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
    mean = jnp.mean(rows, axis=0)
    # The mean square less the squared mean, as in Flax: one pass less over the batch.
    variance = jnp.maximum(jnp.mean(jnp.square(rows), axis=0) - jnp.square(mean), 0.0)
    inverse = jax.lax.rsqrt(variance + epsilon)
    y = _scale_and_shift(x, scale * inverse, bias - mean * scale * inverse)
    return (y, mean, variance), (x, scale, mean, inverse)


def _batch_norm_backward(
    epsilon: float, saved: tuple[jax.Array, ...], gradients: tuple[jax.Array, ...]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the gradients, written out: derived ones pass over the batch several times more."""
    x, scale, mean, inverse = saved
    gradient = _apart_on_cpu(gradients[0])
    rows = gradient.reshape(-1, x.shape[-1]).astype(jnp.float32)
    to_bias = jnp.sum(rows, axis=0)
    to_scale = (jnp.sum(rows * x.reshape(rows.shape), axis=0) - mean * to_bias) * inverse
    # scale * inverse * (gradient - to_bias / count - normalised * to_scale / count)
    of_gradient = scale * inverse
    of_x = -of_gradient * inverse * to_scale / len(rows)
    constant = -of_gradient * to_bias / len(rows) - of_x * mean
    to_x = gradient * of_gradient + x * of_x + constant
    return to_x.astype(x.dtype), to_scale, to_bias


batch_norm.defvjp(_batch_norm_forward, _batch_norm_backward)


def _scale_and_shift(x: jax.Array, scale: jax.Array, shift: jax.Array) -> jax.Array:
    return (x * scale + shift).astype(x.dtype)


class BatchNorm(nnx.Module):
    """Batch norm over all axes but the last, with PyTorch's numbers and Flax's state.

    Attributes:
        keep_statistics: set to use, and to keep, the running statistics in training too.
    """

    def __init__(
        self,
        num_features: int,
        *,
        momentum: float = 0.99,
        epsilon: float = 1e-5,
        initial_scale: float = 1.0,
        dtype: DTypeLike = jnp.float32,
    ) -> None:
        """Start with running statistics of mean 0 and variance 1.

        Args:
            num_features: channels C.
            momentum: share of the old running statistics that a training step keeps (one minus
                what PyTorch calls momentum).
            epsilon: added to the variance.
            initial_scale: zero makes a residual block start as the identity.
            dtype: type of the result; statistics and parameters are float32.
        """
        self.scale = nnx.Param(jnp.full(num_features, initial_scale, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(num_features, jnp.float32))
        self.mean = nnx.BatchStat(jnp.zeros(num_features, jnp.float32))
        self.var = nnx.BatchStat(jnp.ones(num_features, jnp.float32))
        self.momentum, self.epsilon, self.dtype = momentum, epsilon, dtype
        self.keep_statistics = False

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Normalise [..., C]; in training with the batch's statistics, which are recorded."""
        x = x.astype(self.dtype)
        scale, bias = self.scale[...], self.bias[...]
        if train and not self.keep_statistics:
            y, mean, variance = batch_norm(x, scale, bias, self.epsilon)
            count = x.size // x.shape[-1]
            # PyTorch normalises with the biased variance, but records the unbiased one.
            self._record(mean, variance * count / max(count - 1, 1))
            return y
        # One multiplication and one addition a pixel.
        scale = scale * jax.lax.rsqrt(self.var[...] + self.epsilon)
        return _scale_and_shift(x, scale, bias - self.mean[...] * scale)

    def _record(self, mean: jax.Array, variance: jax.Array) -> None:
        for running, new in ((self.mean, mean), (self.var, variance)):
            new = jax.lax.stop_gradient(new)
            # `running[...] =` would walk over all that was traced before, for an error's text.
            running.set_value(self.momentum * running[...] + (1 - self.momentum) * new)


@jax.custom_vjp
def product(rows: jax.Array, matrix: jax.Array) -> jax.Array:
    """Multiply [N, I] by a parameter [I, O], in the rows' type; its gradient is in its own."""
    return rows @ matrix.astype(rows.dtype)


def _product_forward(
    rows: jax.Array, matrix: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return product(rows, matrix), (rows, matrix)


def _product_backward(
    saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    rows, matrix = saved
    contract = jax.lax.dot_general
    to_rows = contract(gradient, matrix.astype(rows.dtype), (((1,), (1,)), ((), ())))
    to_matrix = contract(
        gradient, rows, (((0,), (0,)), ((), ())), preferred_element_type=matrix.dtype
    )
    return to_rows, to_matrix.T


product.defvjp(_product_forward, _product_backward)


@jax.custom_vjp
def add_parameter(x: jax.Array, parameter: jax.Array) -> jax.Array:
    """Add a parameter to [..., *its shape], in x's type; its gradient is in its own."""
    return x + parameter.astype(x.dtype)


def _add_parameter_forward(x: jax.Array, parameter: jax.Array) -> tuple[jax.Array, jax.Array]:
    return add_parameter(x, parameter), parameter


def _add_parameter_backward(
    parameter: jax.Array, gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    leading = range(gradient.ndim - parameter.ndim)
    return gradient, jnp.sum(gradient, axis=tuple(leading), dtype=parameter.dtype)


add_parameter.defvjp(_add_parameter_forward, _add_parameter_backward)


class Linear(nnx.Linear):
    """A linear layer that takes its inputs as the rows of one matrix.

    The numbers are `nnx.Linear`'s, but the kernel's gradient contracts one axis instead of all that
    lead to the channels, which XLA:CPU does three times as fast, and is float32.
    """

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [..., in] to [..., out]."""
        rows = product(x.reshape(-1, x.shape[-1]).astype(self.dtype), self.kernel[...])
        if self.bias is not None:
            rows = add_parameter(rows, self.bias[...])
        return rows.reshape(*x.shape[:-1], -1)


class Embed(nnx.Embed):
    """A table of embeddings, whose gradient is float32."""

    def __call__(self, ids: jax.Array) -> jax.Array:
        """Return the rows of int [...], [..., width]."""
        return jnp.take(self.embedding[...], ids, axis=0).astype(self.dtype)

    def attend(self, x: jax.Array) -> jax.Array:
        """Return the inner products of [..., width] with all rows, [..., rows]."""
        rows = product(x.reshape(-1, x.shape[-1]).astype(self.dtype), self.embedding[...].T)
        return rows.reshape(*x.shape[:-1], -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> jax.Array:
    """Normalise each row of [N, C], in float32 (Ba et al. 2016)."""
    return _layer_norm_forward(x, scale, bias, epsilon)[0]


def _layer_norm_forward(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    rows = x.astype(jnp.float32)
    mean = jnp.mean(rows, axis=1, keepdims=True)
    # Not the mean square less the squared mean, which loses digits where epsilon is 1e-12.
    variance = jnp.mean(jnp.square(rows - mean), axis=1, keepdims=True)
    inverse = jax.lax.rsqrt(variance + epsilon)
    y = (rows - mean) * inverse * scale + bias
    return y.astype(x.dtype), (x, scale, mean, inverse)


def _layer_norm_backward(
    epsilon: float, saved: tuple[jax.Array, ...], gradient: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the gradients, written out: derived ones keep and pass over more arrays."""
    x, scale, mean, inverse = saved
    x, gradient = _apart_on_cpu((x, gradient))
    normalised = (x.astype(jnp.float32) - mean) * inverse
    rows = gradient.astype(jnp.float32)
    scaled = rows * scale
    along = jnp.mean(scaled * normalised, axis=1, keepdims=True)
    to_x = inverse * (scaled - jnp.mean(scaled, axis=1, keepdims=True) - normalised * along)
    return to_x.astype(x.dtype), jnp.sum(rows * normalised, axis=0), jnp.sum(rows, axis=0)


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


class LayerNorm(nnx.Module):
    """Layer norm over the last axis."""

    def __init__(
        self, num_features: int, *, epsilon: float, use_bias: bool = True, dtype: DTypeLike
    ) -> None:
        """Start as the identity on normalised rows.

        Args:
            num_features: channels C.
            epsilon: added to the variance.
            use_bias: whether something is added to each channel.
            dtype: type of the result; parameters and computation are float32.
        """
        self.scale = nnx.Param(jnp.ones(num_features, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(num_features, jnp.float32)) if use_bias else None
        self.epsilon, self.dtype = epsilon, dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalise [..., C]."""
        rows = x.reshape(-1, x.shape[-1]).astype(self.dtype)
        scale = self.scale[...]
        bias = jnp.zeros_like(scale) if self.bias is None else self.bias[...]
        return layer_norm(rows, scale, bias, self.epsilon).reshape(x.shape)


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """Weight each element by the normal distribution below it (Hendrycks and Gimpel 2016), exactly.

    By erf like PyTorch. `jax.nn.gelu` asks erfc, for relative precision far out on the left, and
    keeps more for its gradient.
    """
    return x * _normal_distribution(x)


def _gelu_forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return gelu(x), x


def _gelu_backward(x: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    x, gradient = _apart_on_cpu((x, gradient))
    density = jnp.exp(-0.5 * jnp.square(x)) / math.sqrt(2 * math.pi)
    return (gradient * (_normal_distribution(x) + x * density),)


gelu.defvjp(_gelu_forward, _gelu_backward)


def _normal_distribution(x: jax.Array) -> jax.Array:
    return 0.5 * (1.0 + jax.lax.erf(x * math.sqrt(0.5)))


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Set each element to zero with probability `rate` and scale the rest to keep the mean.

    `key` is one for all, or one for each row of [N, ...], which is then dropped in the same way
    whatever rows are beside it. None means no dropout (evaluation).
    """
    return _drop(x, rate, key, x.shape)


def drop_examples(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Set whole examples to zero (stochastic depth, Huang et al. 2016) and scale the rest.

    `key` as in `dropout`.
    """
    return _drop(x, rate, key, (x.shape[0],) + (1,) * (x.ndim - 1))


def _drop(x: jax.Array, rate: float, key: jax.Array | None, mask_shape: Sequence[int]) -> jax.Array:
    return drop_where(x, rate, dropout_mask(key, rate, mask_shape))


def dropout_mask(key: jax.Array | None, rate: float, shape: Sequence[int]) -> jax.Array | None:
    """Return bool [*shape], what `dropout` with this key keeps of it; None for all."""
    if key is None or rate == 0.0:
        return None
    if key.ndim:
        draw = functools.partial(jax.random.bernoulli, p=1.0 - rate, shape=shape[1:])
        return jax.vmap(draw)(key)
    return jax.random.bernoulli(key, 1.0 - rate, shape)


def drop_where(x: jax.Array, rate: float, keep: jax.Array | None) -> jax.Array:
    """Set what a mask of `dropout_mask` does not keep to zero, and scale the rest."""
    return x if keep is None else jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))


def split_key(key: jax.Array | None, count: int) -> Sequence[jax.Array | None]:
    """Return `count` independent keys, or as many Nones where there is no key.

    A key for each row, [N], becomes `count` times a key for each row.
    """
    if key is None:
        return [None] * count
    if key.ndim:
        return list(jax.vmap(lambda row: jax.random.split(row, count), out_axes=1)(key))
    return list(jax.random.split(key, count))
