"""Tests of the layers that the towers share."""

import functools
import math
from collections.abc import Callable
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from otter_jax.models.layers import (
    BatchNorm,
    Conv,
    LayerNorm,
    Linear,
    Padding,
    TowerOutput,
    average_pool,
    batch_norm,
    compiling_eager_calls,
    conv2d,
    depthwise_conv2d,
    drop_examples,
    dropout,
    gelu,
    layer_norm,
    max_pool,
    same_padding,
    split_key,
)

# Height, width, kernel size, stride, padding. A few only: each is a compilation.
CASES = [
    (9, 8, 3, 1, "SAME"),
    (8, 9, 3, 2, "SAME"),
    (7, 10, 5, 2, "SAME"),
    (2, 3, 5, 2, "SAME"),
    (1, 1, 3, 2, "SAME"),
    (2, 2, 3, 1, 1),
    (2, 1, 3, 2, 1),
    (1, 2, 5, 1, 2),
    (7, 8, 3, 1, 1),
    (8, 7, 3, 2, 1),
    (14, 15, 7, 2, 3),
    (6, 7, 3, 1, 0),
    (10, 11, 3, 3, 1),
    (5, 6, 1, 1, 0),
    (5, 6, 1, 2, "SAME"),
    (5, 6, 1, 2, 1),
]
Case = tuple[int, int, int, int, Padding]

jitted_conv2d = jax.jit(conv2d, static_argnums=(2, 3))
jitted_depthwise_conv2d = jax.jit(depthwise_conv2d, static_argnums=(2, 3))


def brute_force(images: np.ndarray, kernel: np.ndarray, stride: int, padding: Padding):
    """Convolve [B, H, W, I] with [h, w, I, O] in float64, one position after the other."""
    size = kernel.shape[0]
    if padding == "SAME":
        pads = [same_padding(length, size, stride) for length in images.shape[1:3]]
    else:
        pads = [(padding, padding)] * 2
    padded = np.pad(images.astype(np.float64), ((0, 0), *pads, (0, 0)))
    rows, columns = ((length - size) // stride + 1 for length in padded.shape[1:3])
    result = np.zeros((len(images), rows, columns, kernel.shape[3]))
    for row in range(rows):
        for column in range(columns):
            window = padded[:, row * stride :, column * stride :][:, :size, :size]
            result[:, row, column] = np.einsum("bhwi,hwio->bo", window, kernel)
    return result


def random_images(case: Case, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.normal(size=(2, *case[:2], 3)).astype(np.float32)


def random_kernel(case: Case, in_channels: int, out_channels: int) -> np.ndarray:
    shape = (case[2], case[2], in_channels, out_channels)
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def on_both_platforms(operation: Callable, *arrays: np.ndarray) -> list[list[jax.Array]]:
    """Return the result and the gradients in the form for CPUs, and in the one for the others."""

    def with_gradients(*arrays: jax.Array) -> list[jax.Array]:
        result, gradients = jax.vjp(operation, *arrays)
        direction = jnp.cos(jnp.arange(result.size, dtype=jnp.float32))
        return [result, *gradients(direction.reshape(result.shape))]

    return on_each_platform(with_gradients, *arrays)


def on_each_platform(function: Callable, *arrays: np.ndarray) -> list:
    """Return what a function gives with the forms for CPUs, and with those for the others."""

    def choose(platform: str, *arrays: jax.Array, cpu: Callable, default: Callable) -> jax.Array:
        chosen.append(platform)
        return {"cpu": cpu, "tpu": default}[platform](*arrays)

    found, chosen = [], []
    for platform in ("cpu", "tpu"):
        with mock.patch.object(jax.lax, "platform_dependent", functools.partial(choose, platform)):
            # Another function each time, or the second would be given the first one's program.
            found.append(jax.jit(lambda *arrays: function(*arrays))(*arrays))
    assert chosen.count("cpu") == chosen.count("tpu")
    return found


def assert_same_numbers(both: list[list[jax.Array]]) -> None:
    (result, *gradients), (expected, *expected_gradients) = both
    np.testing.assert_allclose(result, expected, atol=1e-5)
    for gradient, expected in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(gradient, expected, atol=1e-4)


@settings(max_examples=20, deadline=None)
@given(case=st.sampled_from(CASES), seed=st.integers(0, 99))
def test_convolutions_are_their_definition(case: Case, seed: int):
    images, kernel = random_images(case, seed), random_kernel(case, 3, 4)
    result = jitted_conv2d(images, kernel, *case[3:])
    np.testing.assert_allclose(result, brute_force(images, kernel, *case[3:]), atol=5e-5)
    # A depthwise kernel is a kernel for all channels that is zero between different ones.
    filters = random_kernel(case, 1, 3)
    whole = np.einsum("hwio,oc->hwoc", filters, np.eye(3))
    result = jitted_depthwise_conv2d(images, filters, *case[3:])
    np.testing.assert_allclose(result, brute_force(images, whole, *case[3:]), atol=2e-5)


@pytest.mark.parametrize("case", CASES)
def test_convolutions_are_the_same_on_every_platform(case: Case):
    def convolve(images: jax.Array, kernel: jax.Array) -> jax.Array:
        return conv2d(images, kernel, *case[3:])

    def filter_channels(images: jax.Array, kernel: jax.Array) -> jax.Array:
        return depthwise_conv2d(images, kernel, *case[3:])

    images = random_images(case, 0)
    assert_same_numbers(on_both_platforms(convolve, images, random_kernel(case, 3, 4)))
    assert_same_numbers(on_both_platforms(filter_channels, images, random_kernel(case, 1, 3)))


@pytest.mark.parametrize(
    ("size", "stride", "padding"), [(3, 2, 1), (2, 2, 0), (3, 1, 1), (2, 3, 0)]
)
@pytest.mark.parametrize("values", ["distinct", "ties"])
def test_max_pool_is_the_same_on_every_platform(size: int, stride: int, padding: int, values: str):
    generator = np.random.default_rng(0)
    for height, width in ((8, 9), (7, 6)):
        shape = (2, height, width, 3)
        # Of three values, most windows hold the largest several times.
        ties = values == "ties"
        images = generator.integers(-2, 1, shape) if ties else generator.normal(size=shape)
        both = on_both_platforms(
            lambda images: max_pool(images, size, stride, padding), np.float32(images)
        )
        assert_same_numbers(both)
        windows = np.pad(images, ((0, 0), (padding,) * 2, (padding,) * 2, (0, 0)), "minimum")
        assert both[0][0][1, 0, 0, 2] == windows[1, :size, :size, 2].max()


def test_max_pool_gives_the_gradient_to_the_first_of_equal_pixels():
    gradient = jax.grad(lambda images: jnp.sum(max_pool(images, 2, 2, 0)))(jnp.ones((1, 4, 4, 1)))
    expected = np.zeros((4, 4))
    expected[::2, ::2] = 1
    np.testing.assert_array_equal(gradient[0, :, :, 0], expected)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_average_pool_leaves_the_rest_out(size: int):
    images = random_images((7, 6, 0, 0, 0), 0)
    result = average_pool(images, size)
    assert result.shape == (2, 7 // size, 6 // size, 3)
    expected = images[1, size : 2 * size, :size].mean((0, 1))
    np.testing.assert_allclose(result[1, 1, 0], expected, atol=1e-6)


@pytest.mark.parametrize("platform", ["cpu", "tpu", "cuda"])
def test_the_form_follows_the_platform_that_is_compiled_for(platform: str):
    case = (6, 6, 3, 1, "SAME")
    images, kernel = random_images(case, 0), random_kernel(case, 1, 3)

    def loss(images: jax.Array, kernel: jax.Array) -> jax.Array:
        return jnp.sum(max_pool(jnp.square(depthwise_conv2d(images, kernel))))

    traced = jax.jit(jax.grad(loss, argnums=(0, 1))).trace(images, kernel)
    program = traced.lower(lowering_platforms=(platform,)).as_text()
    # Forward, and backward to the images and to the kernel; no form of a CPU has any.
    assert program.count("stablehlo.convolution") == (0 if platform == "cpu" else 3)
    assert ("stablehlo.select_and_scatter" in program) == (platform != "cpu")


def test_strided_convolution_pads_behind_first():
    images = jnp.arange(16.0).reshape(1, 4, 4, 1)
    result = conv2d(images, jnp.ones((3, 3, 1, 1)), stride=2)
    # Windows begin at pixels 0 and 2; the zeros lie below and to the right.
    np.testing.assert_array_equal(result[0, :, :, 0], [[45, 39], [66, 50]])


def test_gradients_of_bfloat16_images_are_close():
    case = (6, 7, 3, 2, 1)
    images, kernel = random_images(case, 0), random_kernel(case, 3, 3)

    def gradients(dtype: jnp.dtype, convolve: Callable, kernel: np.ndarray) -> list[jax.Array]:
        def loss(images: jax.Array, kernel: jax.Array) -> jax.Array:
            return jnp.sum(jnp.square(convolve(images, kernel, 2, 1)), dtype=jnp.float32)

        return jax.jit(jax.grad(loss, argnums=(0, 1)))(images.astype(dtype), kernel.astype(dtype))

    for convolve, chosen in ((conv2d, kernel), (depthwise_conv2d, kernel[:, :, :1])):
        exact = gradients(jnp.float32, convolve, chosen)
        for rough, expected in zip(gradients(jnp.bfloat16, convolve, chosen), exact, strict=True):
            assert rough.dtype == jnp.bfloat16
            tolerance = 0.03 * float(jnp.abs(expected).max())
            np.testing.assert_allclose(rough.astype(np.float32), expected, atol=tolerance)


def plain_batch_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> jax.Array:
    axes = tuple(range(x.ndim - 1))
    mean, variance = jnp.mean(x, axes), jnp.var(x, axes)
    return (x - mean) / jnp.sqrt(variance + epsilon) * scale + bias


def our_batch_norm(*arguments: jax.Array) -> jax.Array:
    return batch_norm(*arguments)[0]


@functools.partial(jax.jit, static_argnums=(0, 1))
def norm_with_gradients(
    norm: Callable, epsilon: float, x: jax.Array, *others: jax.Array
) -> list[jax.Array]:
    *parameters, direction = others
    result, gradients = jax.vjp(lambda *arguments: norm(*arguments, epsilon), x, *parameters)
    return [result, *gradients(jnp.cos(result) * direction)]


@settings(max_examples=15, deadline=None)
@given(
    shape=st.sampled_from([(2, 3, 4, 5), (7, 2), (1, 2, 2, 3)]),
    offset=st.floats(-5, 5),
    epsilon=st.sampled_from([1e-5, 1e-3]),
    seed=st.integers(0, 99),
)
def test_batch_norm_and_its_gradients_are_the_definition(
    shape: tuple[int, ...], offset: float, epsilon: float, seed: int
):
    generator = np.random.default_rng(seed)
    x = np.float32(generator.normal(size=shape) + offset)
    scale, bias, direction = (np.float32(generator.normal(size=n)) for n in (shape[-1],) * 3)

    result, *gradients = norm_with_gradients(our_batch_norm, epsilon, x, scale, bias, direction)
    expected = norm_with_gradients(plain_batch_norm, epsilon, x, scale, bias, direction)
    np.testing.assert_allclose(result, expected[0], atol=2e-4)
    for gradient, wanted in zip(gradients, expected[1:], strict=True):
        np.testing.assert_allclose(gradient, wanted, atol=1e-3 * max(1.0, np.abs(wanted).max()))


@pytest.mark.parametrize("platform, held", [("cpu", 1), ("tpu", 0), ("cuda", 0)])
def test_a_batch_norm_s_gradient_is_held_apart_on_cpus_alone(platform: str, held: int):
    def total(x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(batch_norm(x, jnp.ones(4), jnp.zeros(4), 1e-5)[0]))

    traced = jax.jit(jax.grad(total)).trace(jnp.ones((3, 4)))
    lowered = traced.lower(lowering_platforms=(platform,)).as_text()
    assert lowered.count("optimization_barrier") == held


def test_batch_norm_records_the_unbiased_variance():
    x = np.float32(np.random.default_rng(0).normal(3.0, 2.0, size=(2, 3, 2, 4)))
    layer = BatchNorm(4, momentum=0.9)
    layer(x, train=True)
    rows = x.reshape(-1, 4).astype(np.float64)
    np.testing.assert_allclose(layer.mean[...], 0.1 * rows.mean(0), atol=1e-5)
    np.testing.assert_allclose(layer.var[...], 0.9 + 0.1 * rows.var(0, ddof=1), atol=1e-5)


def test_recording_statistics_costs_the_same_wherever_it_is_traced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def asked(_: object) -> None:  # What takes time in a large program; it is only ever refused.
        raise AssertionError("a traced number was asked for its sharding")

    graph, state = nnx.split(BatchNorm(3, momentum=0.9))
    monkeypatch.setattr(jax.core.Tracer, "sharding", property(asked))

    @jax.jit
    def record(state: nnx.State, x: jax.Array) -> jax.Array:
        layer = nnx.merge(graph, state)
        layer(x, train=True)
        return layer.mean[...]

    mean = record(state, jnp.arange(12.0).reshape(4, 3))
    np.testing.assert_allclose(mean, 0.1 * np.array([4.5, 5.5, 6.5]), rtol=1e-6)


def test_batch_norm_evaluates_with_the_running_statistics_and_keeps_them():
    layer = BatchNorm(3, epsilon=0.5)
    layer.mean[...], layer.var[...] = jnp.array([1.0, 2, 3]), jnp.array([0.5, 3.5, 8.5])
    layer.scale[...], layer.bias[...] = jnp.array([1.0, 2, -3]), jnp.array([0.0, 1, 2])
    expected = [(2 - 1) / 1, (2 - 2) / 2 * 2 + 1, (2 - 3) / 3 * -3 + 2]
    np.testing.assert_allclose(layer(jnp.full((1, 3), 2.0), train=False), [expected], rtol=1e-6)
    layer.keep_statistics = True
    np.testing.assert_allclose(layer(jnp.full((1, 3), 2.0), train=True), [expected], rtol=1e-6)
    np.testing.assert_array_equal(layer.mean[...], [1, 2, 3])


def test_statistics_and_gradients_of_a_spread_batch_are_those_of_the_whole():
    devices = len(jax.devices())
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    generator = np.random.default_rng(0)
    x = np.float32(generator.normal(size=(2 * devices, 5, 4, 3)))
    kernel, filters = random_kernel((0, 0, 3, 0, 0), 3, 4), random_kernel((0, 0, 3, 0, 0), 1, 4)

    def gradients(x: jax.Array) -> tuple[tuple[jax.Array, ...], jax.Array]:
        def loss(x: jax.Array, kernel: jax.Array, filters: jax.Array):
            features = depthwise_conv2d(conv2d(x, kernel, 2), filters)
            normalised, mean, _ = batch_norm(max_pool(features), jnp.ones(4), jnp.zeros(4), 1e-5)
            return jnp.sum(jnp.sin(normalised)), mean

        return jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(x, kernel, filters)

    spread = jax.device_put(x, jax.NamedSharding(mesh, jax.P("data")))
    for one, other in zip(
        jax.tree.leaves(jax.jit(gradients)(spread)),
        jax.tree.leaves(jax.jit(gradients)(x)),
        strict=True,
    ):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_linear_is_flax_s_with_its_gradients():
    theirs = nnx.Linear(5, 3, rngs=nnx.Rngs(0))
    ours = Linear(5, 3, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (2, 4, 6, 5))

    def loss(layer: nnx.Linear, x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(layer(x)))

    found = nnx.grad(loss, argnums=(0, 1))(ours, x)
    wanted = nnx.grad(loss, argnums=(0, 1))(theirs, x)
    assert ours(x).shape == (2, 4, 6, 3)
    np.testing.assert_allclose(ours(x), theirs(x), rtol=1e-6)
    for mine, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**31 - 1),
    offset=st.floats(-100, 100),
    epsilon=st.sampled_from([1e-12, 1e-6, 1e-3]),
)
def test_layer_norm_and_its_gradients_are_the_definition(seed: int, offset: float, epsilon: float):
    random = np.random.default_rng(seed)
    x, gradient = random.normal(size=(2, 6, 16)).astype(np.float32)
    scale, bias = random.normal(size=(2, 16)).astype(np.float32)
    x = x + np.float32(offset)

    def definition(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
        centred = x - x.mean(axis=1, keepdims=True)
        variance = jnp.square(centred).mean(axis=1, keepdims=True)
        return centred / jnp.sqrt(variance + epsilon) * scale + bias

    found, pull = jax.vjp(lambda *a: layer_norm(*a, epsilon), x, scale, bias)
    with jax.enable_x64():
        doubles = [jnp.asarray(array, jnp.float64) for array in (x, scale, bias)]
        wanted, double_pull = jax.vjp(definition, *doubles)
        wanted_gradients = double_pull(jnp.asarray(gradient, jnp.float64))
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    for mine, other in zip(pull(gradient), wanted_gradients, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-3, atol=2e-4)


def test_layer_norm_computes_in_float32_whatever_its_type():
    layer = LayerNorm(64, epsilon=1e-5, dtype=jnp.bfloat16)
    x = 1000 + jax.random.normal(jax.random.key(0), (3, 64))
    y = layer(x)
    assert y.dtype == jnp.bfloat16 and layer.scale.dtype == jnp.float32
    rounded = np.asarray(x.astype(jnp.bfloat16), np.float64)
    centred = rounded - rounded.mean(axis=1, keepdims=True)
    wanted = centred / np.sqrt(np.square(centred).mean(axis=1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(y.astype(np.float32), wanted, rtol=1e-2, atol=1e-2)


def test_gelu_and_its_gradient_are_the_definition():
    x = np.linspace(-12, 12, 481)
    distribution = np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in x])
    density = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    singles = jnp.asarray(x, jnp.float32)
    np.testing.assert_allclose(gelu(singles), x * distribution, atol=1e-6)
    slope = jax.vmap(jax.grad(gelu))(singles)
    np.testing.assert_allclose(slope, distribution + x * density, atol=1e-6)


@given(size=st.integers(1, 40), kernel_size=st.integers(1, 7), stride=st.integers(1, 3))
def test_same_padding_gives_the_promised_size(size: int, kernel_size: int, stride: int):
    before, after = same_padding(size, kernel_size, stride)
    assert 0 <= after - before <= 1
    if kernel_size >= stride:
        assert (size + before + after - kernel_size) // stride + 1 == -(-size // stride)


def test_conv_keeps_float32_parameters_and_computes_in_its_type():
    layer = Conv(3, 4, 3, 2, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    assert layer.kernel[...].dtype == jnp.float32
    result = layer(jnp.ones((1, 5, 5, 3)))
    assert result.dtype == jnp.bfloat16 and result.shape == (1, 3, 3, 4)


def test_dropout_keeps_the_mean_and_hits_the_rate():
    x = jnp.full((400, 500), 2.0)
    dropped = np.asarray(dropout(x, 0.25, jax.random.key(0)))
    np.testing.assert_allclose(np.unique(dropped), [0.0, 2.0 / 0.75], rtol=1e-6)
    assert abs(np.mean(dropped == 0) - 0.25) < 0.005


def test_dropping_examples_drops_them_whole():
    dropped = np.asarray(drop_examples(jnp.ones((200, 3, 2)), 0.5, jax.random.key(1)))
    assert set(np.unique(dropped)) == {0.0, 2.0}
    assert (dropped == dropped[:, :1, :1]).all()
    assert 60 < np.sum(dropped[:, 0, 0] == 0) < 140


def test_no_key_or_no_rate_drops_nothing():
    x = jnp.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(dropout(x, 0.9, None), x)
    np.testing.assert_array_equal(drop_examples(x, 0.0, jax.random.key(0)), x)


def test_split_key_gives_different_keys_or_none():
    assert split_key(None, 3) == [None] * 3
    keys = [tuple(np.asarray(jax.random.key_data(key))) for key in split_key(jax.random.key(0), 3)]
    assert len(set(keys)) == 3


@pytest.mark.parametrize("case", [(6, 7, 3, 2, 1), (6, 7, 1, 1, 0), (2, 2, 3, 1, 1)])
@pytest.mark.parametrize("convolve", [conv2d, depthwise_conv2d])
def test_gradients_of_parameters_are_float32_sums_of_bfloat16_products(
    case: Case, convolve: Callable
):
    """Not bfloat16 sums: those have 8 bits, and so no digit beyond them in float32."""
    images = random_images(case, 0).astype(jnp.bfloat16)
    kernel = random_kernel(case, 3 if convolve is conv2d else 1, 3)

    def to_kernel(images: jax.Array, kernel: jax.Array) -> jax.Array:
        def loss(kernel: jax.Array) -> jax.Array:
            return jnp.sum(convolve(images, kernel, *case[3:]).astype(jnp.float32))

        return jax.grad(loss)(kernel)

    for found in on_each_platform(to_kernel, images, kernel):
        assert found.dtype == jnp.float32
        assert (np.asarray(found).view(np.uint32) & 0xFFFF).any()
        exact = to_kernel(images.astype(jnp.float32), jnp.asarray(kernel))
        np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-5)


def test_eager_calls_of_a_tower_are_compiled_as_a_whole():
    class Tower(nnx.Module):
        def __init__(self):
            self.scale, self.seen = nnx.Param(jnp.float32(2.0)), nnx.BatchStat(jnp.float32(0.0))

        @compiling_eager_calls
        def __call__(self, x, *, train=False, dropout_key=None):
            traced.append(isinstance(x * self.scale[...], jax.core.Tracer))
            if train:
                self.seen[...] += 1.0
            return TowerOutput(x * self.scale[...], x)

    traced: list[bool] = []
    tower, x = Tower(), np.arange(3, dtype=np.float32)
    for _ in range(2):
        np.testing.assert_array_equal(tower(x).pooled, 2 * x)
    assert traced == [True]  # Traced once; the second call runs what was compiled.
    tower(x, train=True)
    assert float(tower.seen[...]) == 1.0
    slope = nnx.grad(lambda module: module(x).pooled.sum())(tower)
    assert float(slope.scale[...]) == 3.0
