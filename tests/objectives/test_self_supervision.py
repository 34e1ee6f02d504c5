"""SimSiam, masked language modelling and NT-Xent against closed forms and float64 twins."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otter_jax import sharding
from otter_jax.objectives import self_supervision


def unit_rows(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x, np.float64)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def log_sum_exp(x: np.ndarray) -> float:
    return float(x.max() + np.log(np.exp(x - x.max()).sum()))


def test_simsiam_is_the_mean_of_two_negative_cosines(random_rows) -> None:
    p1, p2, z1, z2 = random_rows(4, 5, 3)
    cosines = [(unit_rows(p) * unit_rows(z)).sum(axis=1) for p, z in ((p1, z2), (p2, z1))]
    found = self_supervision.simsiam_loss(p1, p2, z1, z2)
    np.testing.assert_allclose(found, -np.mean(cosines), rtol=1e-5)
    np.testing.assert_allclose(self_supervision.simsiam_loss(p1, p2, p2, p1), -1.0, rtol=1e-6)


def test_projections_take_no_gradient(random_rows) -> None:
    gradients = jax.grad(self_supervision.simsiam_loss, argnums=range(4))(*random_rows(4, 5, 3))
    for gradient in gradients[:2]:
        assert np.abs(gradient).max() > 1e-3
    for gradient in gradients[2:]:
        np.testing.assert_array_equal(gradient, 0.0)


def masked_language_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
    losses = self_supervision.token_losses(logits, labels)
    assert losses.shape == labels.shape
    return self_supervision.masked_language_loss(losses, labels)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), share=st.floats(0.0, 1.0))
def test_masked_tokens_alone_count(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    logits = (5 * rng.normal(size=(3, 4, 6))).astype(np.float32)
    labels = np.where(rng.random((3, 4)) < share, rng.integers(0, 6, (3, 4)), -100)
    losses = [
        log_sum_exp(logits[place].astype(np.float64)) - logits[place][labels[place]]
        for place in np.ndindex(3, 4)
        if labels[place] != -100
    ]
    compute = jax.jit(jax.value_and_grad(masked_language_loss))
    value, gradient = compute(logits, labels)
    np.testing.assert_allclose(value, np.mean(losses) if losses else 0.0, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(np.asarray(gradient)[labels == -100], 0.0)


def test_nothing_masked_is_zero_and_not_undefined() -> None:
    labels = jnp.full((2, 3), self_supervision.IGNORED)
    compute = jax.value_and_grad(masked_language_loss)
    value, gradient = compute(jnp.ones((2, 3, 4)), labels)
    assert value == 0.0
    np.testing.assert_array_equal(gradient, 0.0)


def test_uniform_logits_cost_the_logarithm_of_the_vocabulary() -> None:
    labels = jnp.array([[2, -100, 0]])
    value = masked_language_loss(jnp.zeros((1, 3, 7), jnp.bfloat16), labels)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, math.log(7), rtol=1e-6)


def test_mean_is_over_the_masked_tokens_of_all_devices(random_rows) -> None:
    logits, labels = random_rows(16, 3, 5), np.full((16, 3), -100)
    labels[0] = [1, 2, 3]  # One device has most of them, most have none.
    labels[9, 1] = 4
    compute = jax.jit(masked_language_loss)
    split = jax.device_put((logits, labels), sharding.split_rows(sharding.make_mesh()))
    np.testing.assert_allclose(compute(*split), compute(logits, labels), rtol=1e-6)


def ntxent_twin(z1: np.ndarray, z2: np.ndarray, temperature: float) -> float:
    """One view at a time among all others, in float64."""
    views = unit_rows(np.concatenate([z1, z2]))
    count, losses = len(z1), []
    for i, view in enumerate(views):
        logits = views @ view / temperature
        others = np.delete(logits, i)
        losses.append(log_sum_exp(others) - logits[(i + count) % (2 * count)])
    return sum(losses) / (2 * count)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 999), count=st.sampled_from([2, 7]), temperature=st.floats(0.05, 2.0))
def test_ntxent_is_that_of_its_paper(seed: int, count: int, temperature: float) -> None:
    z1, z2 = np.random.default_rng(seed).normal(size=(2, count, 4)).astype(np.float32)
    found = jax.jit(self_supervision.ntxent_loss)(z1, z2, temperature)
    np.testing.assert_allclose(found, ntxent_twin(z1, z2, temperature), rtol=1e-4, atol=1e-6)


def test_ntxent_moves_both_views(random_rows) -> None:
    views = random_rows(2, 6, 4).astype(np.float64)
    with jax.enable_x64(True):
        gradients = jax.grad(self_supervision.ntxent_loss, (0, 1))(*map(jnp.asarray, views))
    step = np.random.default_rng(1).normal(size=views.shape)
    ahead, behind = (ntxent_twin(*(views + sign * 1e-6 * step), 0.1) for sign in (1, -1))
    along = sum(float(np.vdot(g, s)) for g, s in zip(gradients, step, strict=True))
    assert along == pytest.approx((ahead - behind) / 2e-6, rel=1e-6)


def test_ntxent_is_split_by_the_compiler(random_rows) -> None:
    mesh, views = sharding.make_mesh(), random_rows(2, 256, 8)
    compute = jax.jit(jax.value_and_grad(self_supervision.ntxent_loss, (0, 1)))
    split = [jax.device_put(x, sharding.split_rows(mesh)) for x in views]
    found, wanted = compute(*split), compute(*views)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-8), found, wanted)
    program = compute.lower(*split).compile().as_text()
    assert re.search(r"f32\[32,256\]", program)  # A device's rows of a matrix;
    assert not re.search(r"\[256,256\]", program)  # no device has all of them.
