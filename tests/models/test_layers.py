"""Tests of the layers that the towers share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from otter_jax.models.layers import (
    Conv,
    conv2d,
    depthwise_conv2d,
    drop_examples,
    dropout,
    same_padding,
    split_key,
)

# A few shapes only: each is a compilation.
depthwise_cases = st.sampled_from(
    [(9, 8, 3, 1), (8, 8, 3, 2), (7, 10, 5, 2), (5, 5, 5, 1), (2, 3, 5, 2), (1, 1, 3, 2)]
)


def brute_force_depthwise(images: np.ndarray, kernel: np.ndarray, stride: int) -> np.ndarray:
    """Convolve in float64, one output position after the other."""
    batch, height, width, channels = images.shape
    size = kernel.shape[0]
    rows, columns = -(-height // stride), -(-width // stride)
    padded = np.zeros((batch, height + 2 * size, width + 2 * size, channels))
    top = max((rows - 1) * stride + size - height, 0) // 2
    left = max((columns - 1) * stride + size - width, 0) // 2
    padded[:, top : top + height, left : left + width] = images
    result = np.zeros((batch, rows, columns, channels))
    for row in range(rows):
        for column in range(columns):
            window = padded[:, row * stride :, column * stride :][:, :size, :size]
            result[:, row, column] = (window * kernel[None, :, :, 0]).sum((1, 2))
    return result


def random_case(case: tuple[int, int, int, int], seed: int) -> tuple[np.ndarray, np.ndarray, int]:
    height, width, size, stride = case
    generator = np.random.default_rng(seed)
    images = generator.normal(size=(2, height, width, 3)).astype(np.float32)
    return images, generator.normal(size=(size, size, 1, 3)).astype(np.float32), stride


@settings(max_examples=15, deadline=None)
@given(case=depthwise_cases, seed=st.integers(0, 99))
def test_both_depthwise_forms_are_the_definition(case: tuple[int, int, int, int], seed: int):
    images, kernel, stride = random_case(case, seed)
    expected = brute_force_depthwise(images, kernel, stride)
    for form in ("shifts", "grouped"):
        np.testing.assert_allclose(
            depthwise_conv2d(images, kernel, stride, form), expected, atol=2e-5
        )


@settings(max_examples=12, deadline=None)
@given(case=depthwise_cases, seed=st.integers(0, 99))
def test_both_depthwise_forms_have_the_same_gradients(case: tuple[int, int, int, int], seed: int):
    images, kernel, stride = random_case(case, seed)

    def loss(images: jax.Array, kernel: jax.Array, form: str) -> jax.Array:
        return jnp.sum(jnp.sin(depthwise_conv2d(images, kernel, stride, form)))

    gradients = [
        jax.grad(loss, argnums=(0, 1))(images, kernel, form) for form in ("shifts", "grouped")
    ]
    for by_shifts, grouped in zip(*gradients, strict=True):
        np.testing.assert_allclose(by_shifts, grouped, atol=5e-5)


def test_auto_depthwise_form_follows_the_platform(monkeypatch: pytest.MonkeyPatch):
    images, kernel, stride = random_case((6, 6, 3, 1), 0)

    def operations() -> str:
        return str(jax.make_jaxpr(lambda x, k: depthwise_conv2d(x, k, stride))(images, kernel))

    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    assert "conv_general_dilated" not in operations()
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert "conv_general_dilated" in operations()


def test_unknown_depthwise_form_is_refused():
    images, kernel, _ = random_case((6, 6, 3, 1), 0)
    with pytest.raises(ValueError, match="depthwise form is 'fast'; it must be 'auto'"):
        depthwise_conv2d(images, kernel, 1, "fast")


def test_pointwise_convolution_is_a_matrix_product_per_pixel():
    generator = np.random.default_rng(0)
    images, kernel = generator.normal(size=(2, 3, 4, 5)), generator.normal(size=(1, 1, 5, 6))
    expected = np.einsum("bhwi,io->bhwo", images, kernel[0, 0])
    result = conv2d(jnp.float32(images), jnp.float32(kernel))
    np.testing.assert_allclose(result, expected, atol=1e-5)


def test_strided_convolution_pads_behind_first():
    images = jnp.arange(16.0).reshape(1, 4, 4, 1)
    result = conv2d(images, jnp.ones((3, 3, 1, 1)), stride=2)
    # Windows begin at pixels 0 and 2; the zeros lie below and to the right.
    np.testing.assert_array_equal(result[0, :, :, 0], [[45, 39], [66, 50]])


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
