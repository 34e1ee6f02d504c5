"""Convolutions and max pooling in forms that XLA's CPU compiler turns into fast code.

The numbers are those of the `lax` operations, which remain the right form on GPUs and TPUs. On a
CPU, `lax`'s own convolutions are fast where they run forwards without groups; what is slow is

* a 1x1 convolution that is not written as a matrix product, and its kernel's gradient when XLA
  fuses the operations around it into the transposed copy of an operand;
* the kernel's gradient of any other convolution, which is a convolution with a huge window;
* the image's gradient of a strided convolution or pooling, which works on zeros between pixels;
* a grouped convolution in any direction;
* a kernel larger than its image: XLA takes the one for the other;
* a convolution of an odd number of channels to few.

So each operation here has a gradient of its own. Images are [batch, height, width, channels].
`pads` holds the zeros before and after the rows, and before and after the columns. Strides are at
most as long as the windows, and pads shorter; with gaps between windows `lax` will have to do.
Kernels and matrices may be of a wider type than the images; their gradients are sums in it.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Pads = tuple[tuple[int, int], tuple[int, int]]
Taps = tuple[slice, slice]  # Which of a kernel's rows and columns.
FEW_CHANNELS = 32  # As many out, or fewer, are where an odd number in costs time.


@jax.custom_vjp
def pointwise(images: jax.Array, matrix: jax.Array) -> jax.Array:
    """Multiply the channels of every pixel, [..., I], by a matrix [I, O], in the images' type."""
    return images @ matrix.astype(images.dtype)


def _pointwise_forward(
    images: jax.Array, matrix: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return pointwise(images, matrix), (images, matrix)


def _pointwise_backward(
    saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    images, matrix = saved
    images, gradient = as_it_is((images, gradient))
    to_matrix = jnp.matmul(_rows(images).T, _rows(gradient), preferred_element_type=matrix.dtype)
    return gradient @ matrix.astype(images.dtype).T, to_matrix


pointwise.defvjp(_pointwise_forward, _pointwise_backward)


def convolution(images: jax.Array, kernel: jax.Array, stride: int, pads: Pads) -> jax.Array:
    """Convolve [B, H, W, I] with a kernel [h, w, I, O], in the images' type."""
    if all(kernel.shape[axis] > images.shape[axis + 1] for axis in (0, 1)):
        return _small_convolution(images, kernel, stride, pads)
    return _large_convolution(images, kernel, stride, pads)


def _small_convolution(images: jax.Array, kernel: jax.Array, stride: int, pads: Pads) -> jax.Array:
    """Multiply, for every pixel that comes out, the pixels that are there with their taps."""
    rows, columns = (_meetings(images, kernel, stride, pads, axis) for axis in (0, 1))

    def pixel(y: slice, x: slice, taps_y: slice, taps_x: slice) -> jax.Array:
        met, taps = images[:, y, x], kernel[taps_y, taps_x]
        return pointwise(met.reshape(len(images), -1), taps.reshape(-1, kernel.shape[3]))

    pixels = [pixel(y, x, taps_y, taps_x) for y, taps_y in rows for x, taps_x in columns]
    return jnp.stack(pixels, axis=1).reshape(len(images), len(rows), len(columns), -1)


def _meetings(
    images: jax.Array, kernel: jax.Array, stride: int, pads: Pads, axis: int
) -> list[tuple[slice, slice]]:
    """Return, for every position along an axis, the pixels that meet taps, and those taps."""
    length, size, (before, after) = images.shape[axis + 1], kernel.shape[axis], pads[axis]
    starts = range(-before, length + after - size + 1, stride)
    edges = [(start, max(start, 0), min(start + size, length)) for start in starts]
    return [(slice(a, b), slice(a - start, b - start)) for start, a, b in edges]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _large_convolution(images: jax.Array, kernel: jax.Array, stride: int, pads: Pads) -> jax.Array:
    return _convolve(images, kernel.astype(images.dtype), stride, pads)


def _convolve(images: jax.Array, kernel: jax.Array, stride: int, pads: Pads) -> jax.Array:
    if kernel.shape[2] % 2 and kernel.shape[3] <= FEW_CHANNELS:  # A channel of zeros.
        images = jnp.pad(images, ((0, 0), (0, 0), (0, 0), (0, 1)))
        kernel = jnp.pad(kernel, ((0, 0), (0, 0), (0, 1), (0, 0)))
    return jax.lax.conv_general_dilated(
        images, kernel, (stride, stride), pads, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _large_convolution_forward(
    images: jax.Array, kernel: jax.Array, stride: int, pads: Pads
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _large_convolution(images, kernel, stride, pads), (images, kernel)


def _large_convolution_backward(
    stride: int, pads: Pads, saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    images, kernel = saved
    images, gradient = as_it_is((images, gradient))

    def plane(taps: Taps, plane_pads: Pads) -> jax.Array:
        mirrored = kernel[taps][::-1, ::-1].swapaxes(2, 3).astype(images.dtype)
        return _convolve(gradient, mirrored, 1, plane_pads)

    return (
        _spread(plane, images.shape, gradient.shape, kernel.shape, stride, pads),
        _kernel_gradient(images, kernel, stride, pads, gradient),
    )


_large_convolution.defvjp(_large_convolution_forward, _large_convolution_backward)


def _kernel_gradient(
    images: jax.Array, kernel: jax.Array, stride: int, pads: Pads, gradient: jax.Array
) -> jax.Array:
    """Multiply the gradient with the patches it belongs to: one matrix product for each row.

    Row by row, because the patches of whole images do not fit into the cache.
    """
    out_channels = kernel.shape[3]

    def add(total: jax.Array, window: jax.Array, row: jax.Array) -> jax.Array:
        patches = _patches_of_row(window, kernel.shape, stride, row.shape)
        product = jnp.matmul(_rows(row).T, _rows(patches), preferred_element_type=jnp.float32)
        return total + product

    start = jnp.zeros((out_channels, kernel.size // out_channels), jnp.float32)
    total = _over_rows(add, start, images, kernel.shape, stride, pads, gradient)
    return total.T.reshape(kernel.shape).astype(kernel.dtype)


def _patches_of_row(
    window: jax.Array, kernel_shape: tuple[int, ...], stride: int, row_shape: tuple[int, ...]
) -> jax.Array:
    """Return the patches [B, 1, columns, taps and channels] that a row of the output has met."""
    columns, (rows, wide, channels) = row_shape[2], kernel_shape[:3]
    if 2 * columns > rows * wide:
        return jnp.concatenate(_shifted(window, kernel_shape, stride, row_shape), axis=-1)
    # Fewer and longer pieces: a patch's rows are runs of neighbouring numbers.
    flat, step, run = window.reshape(*window.shape[:2], -1), stride * channels, wide * channels
    runs = [flat[:, :, at : at + run] for at in range(0, columns * step, step)]
    return jnp.stack(runs, axis=1).reshape(len(window), 1, columns, -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def depthwise(images: jax.Array, kernel: jax.Array, stride: int, pads: Pads) -> jax.Array:
    """Convolve every channel of [B, H, W, C] with its own filter of a kernel [h, w, 1, C].

    A sum of shifted products in the images' type, one for each of the kernel's taps.
    """
    kernel = kernel.astype(images.dtype)
    padded = _pad(images, pads)
    size = [(padded.shape[axis] - kernel.shape[axis - 1]) // stride + 1 for axis in (1, 2)]
    shifted = _shifted(padded, kernel.shape, stride, (images.shape[0], *size))
    taps = kernel.reshape(-1, kernel.shape[-1])
    return sum(part * tap for part, tap in zip(shifted, taps, strict=True))


def _depthwise_forward(
    images: jax.Array, kernel: jax.Array, stride: int, pads: Pads
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return depthwise(images, kernel, stride, pads), (images, kernel)


def _depthwise_backward(
    stride: int, pads: Pads, saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    images, kernel = saved
    images, gradient = as_it_is((images, gradient))

    def plane(taps: Taps, plane_pads: Pads) -> jax.Array:
        return depthwise(gradient, kernel[taps][::-1, ::-1], 1, plane_pads)

    return (
        _spread(plane, images.shape, gradient.shape, kernel.shape, stride, pads),
        _depthwise_kernel_gradient(images, kernel, stride, pads, gradient),
    )


depthwise.defvjp(_depthwise_forward, _depthwise_backward)


def _depthwise_kernel_gradient(
    images: jax.Array, kernel: jax.Array, stride: int, pads: Pads, gradient: jax.Array
) -> jax.Array:
    """Correlate the images with the gradient.

    The products of all taps are added up row by row, elementwise; XLA would turn the plain sums
    into one slow pass over both arrays for each tap.
    """

    def add(totals: list[jax.Array], window: jax.Array, row: jax.Array) -> list[jax.Array]:
        shifted = _shifted(window, kernel.shape, stride, row.shape)
        return [total + part * row for total, part in zip(totals, shifted, strict=True)]

    batch, _, columns, channels = gradient.shape
    start = [jnp.zeros((batch, 1, columns, channels), jnp.float32)] * (kernel.size // channels)
    totals = _over_rows(add, start, images, kernel.shape, stride, pads, gradient)
    sums = [jnp.sum(total, axis=(0, 1, 2)) for total in totals]
    return jnp.stack(sums).reshape(kernel.shape).astype(kernel.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def max_pool_on_cpu(images: jax.Array, size: int, stride: int, padding: int) -> jax.Array:
    """Take the maximum over windows of size x size; of equal pixels the first has the gradient."""
    return functools.reduce(jnp.maximum, _windows(images, size, stride, padding))


def _windows(images: jax.Array, size: int, stride: int, padding: int) -> list[jax.Array]:
    """Return, for each place in a window, the pixels at that place in all windows."""
    padded = _pad(images, ((padding, padding),) * 2, -jnp.inf)
    out = [(length - size) // stride + 1 for length in padded.shape[1:3]]
    return _shifted(padded, (size, size), stride, (images.shape[0], *out))


def _max_pool_forward(
    images: jax.Array, size: int, stride: int, padding: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    maximum = max_pool_on_cpu(images, size, stride, padding)
    return maximum, (images, maximum)


def _max_pool_backward(
    size: int,
    stride: int,
    padding: int,
    saved: tuple[jax.Array, jax.Array],
    gradient: jax.Array,
) -> tuple[jax.Array]:
    images, maximum = saved
    places = np.arange(size * size, dtype=np.int8).reshape(size, size)
    winner = jnp.full(maximum.shape, -1, jnp.int8)
    windows = _windows(images, size, stride, padding)
    for place, pixels in reversed(list(zip(places.ravel(), windows, strict=True))):
        winner = jnp.where(pixels == maximum, place, winner)
    winner, gradient = as_it_is((winner, gradient))

    def plane(taps: Taps, plane_pads: Pads) -> jax.Array:
        mirrored = places[taps][::-1, ::-1]
        winners, gradients = _pad(winner, plane_pads, -1), _pad(gradient, plane_pads)
        out = [winners.shape[axis] - mirrored.shape[axis - 1] + 1 for axis in (1, 2)]
        parts = (
            _shifted(array, mirrored.shape, 1, (len(images), *out))
            for array in (winners, gradients)
        )
        return sum(
            jnp.where(number == place, part, 0)
            for place, number, part in zip(mirrored.ravel(), *parts, strict=True)
        )

    pads = ((padding, padding),) * 2
    return (_spread(plane, images.shape, gradient.shape, places.shape, stride, pads),)


max_pool_on_cpu.defvjp(_max_pool_forward, _max_pool_backward)


def as_it_is(arrays: Any) -> Any:
    """Keep XLA from fusing what leads to an array, or to several, into each of their uses."""
    return jax.lax.optimization_barrier(arrays)


def _rows(x: jax.Array) -> jax.Array:
    return x.reshape(-1, x.shape[-1])


def _pad(images: jax.Array, pads: Pads, value: float = 0) -> jax.Array:
    return jnp.pad(images, ((0, 0), *pads, (0, 0)), constant_values=value)


def _shifted(
    padded: jax.Array, kernel_shape: tuple[int, ...], stride: int, out_shape: tuple[int, ...]
) -> list[jax.Array]:
    """Return, for each tap of a kernel, the pixels it meets, [B, rows, columns, C]."""
    last_y, last_x = ((size - 1) * stride + 1 for size in out_shape[1:3])
    return [
        padded[:, y : y + last_y : stride, x : x + last_x : stride]
        for y in range(kernel_shape[0])
        for x in range(kernel_shape[1])
    ]


def _over_rows(
    add: Callable,
    start: jax.Array | list[jax.Array],
    images: jax.Array,
    kernel_shape: tuple[int, ...],
    stride: int,
    pads: Pads,
    gradient: jax.Array,
) -> jax.Array | list[jax.Array]:
    """Sum over the gradient's rows: add(total, the rows of all images that it meets, the row)."""
    padded = _pad(images, pads)

    def step(total: jax.Array, row: jax.Array) -> tuple[jax.Array, None]:
        window = jax.lax.dynamic_slice_in_dim(padded, row * stride, kernel_shape[0], axis=1)
        return add(total, window, jax.lax.dynamic_slice_in_dim(gradient, row, 1, axis=1)), None

    return jax.lax.scan(step, start, jnp.arange(gradient.shape[1]))[0]


def _spread(
    plane: Callable[[Taps, Pads], jax.Array],
    shape: tuple[int, ...],
    out_shape: tuple[int, ...],
    kernel_shape: tuple[int, ...],
    stride: int,
    pads: Pads,
) -> jax.Array:
    """Return the gradient [B, H, W, C] of strided windows' input.

    Padded positions that are equal modulo the stride meet the same taps, each of them once for
    every window. So the gradient at such a plane of positions is an operation without stride on
    those taps, `plane(taps, pads)`, and no time goes into zeros between the windows.
    """

    def along(axis: int, phase: int) -> tuple[slice, tuple[int, int]]:
        (before, _), kernel_size = pads[axis], kernel_shape[axis]
        first, last = before // stride, (before + shape[axis + 1] - 1) // stride
        taps = len(range(phase, kernel_size, stride))
        return slice(phase, None, stride), (taps - 1 - first, last - out_shape[axis + 1] + 1)

    def plane_at(phase_y: int, phase_x: int) -> jax.Array:
        (taps_y, pads_y), (taps_x, pads_x) = along(0, phase_y), along(1, phase_x)
        return plane((taps_y, taps_x), (pads_y, pads_x))

    phases = range(stride)
    if stride == 1:
        return plane_at(0, 0)
    rows = [jnp.stack([plane_at(y, x) for x in phases], axis=3) for y in phases]
    planes = jnp.stack(rows, axis=2)  # [B, rows, stride, columns, stride, C]
    height, width = planes.shape[1] * stride, planes.shape[3] * stride
    positions = planes.reshape(planes.shape[0], height, width, -1)
    top, left = (before % stride for before, _ in pads)
    return positions[:, top : top + shape[1], left : left + shape[2]]
