"""The cross-entropy core: closed forms, temperatures, gradients through keys."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from otter_jax.objectives import contrastive


def test_cross_entropy_of_uniform_logits() -> None:
    target = jnp.eye(7)
    np.testing.assert_allclose(
        contrastive.cross_entropy(jnp.zeros((7, 7)), target), np.log(7), rtol=1e-6
    )


@pytest.mark.parametrize(
    ("log_scale", "scale", "gradient"),
    [
        (-1.0, 1.0, 0.0),
        (0.0, 1.0, 1.0),
        (2.0, np.exp(2.0), np.exp(2.0)),
        (np.log(100.0), 100.0, 100.0),
        (4.61, 100.0, 0.0),
        (5.0, 100.0, 0.0),
    ],
)
def test_scale_is_clamped_with_its_gradient(log_scale, scale, gradient) -> None:
    value, slope = jax.value_and_grad(contrastive.scale_from_log)(jnp.float32(log_scale))
    np.testing.assert_allclose([value, slope], [scale, gradient], rtol=1e-6)


@pytest.mark.parametrize(
    ("log_scale", "scale", "gradient"),
    [(2.0, math.exp(3), 0.0), (3.0, math.exp(3), 1.0), (4.0, math.exp(4), 1.0), (5.0, 90.0, 0.0)],
)
def test_scale_is_clamped_to_its_own_bounds(log_scale, scale, gradient) -> None:
    bounds = {"lowest": math.exp(3), "highest": 90.0}
    scale_of = functools.partial(contrastive.scale_from_log, **bounds)
    value, slope = jax.value_and_grad(scale_of)(jnp.float32(log_scale))
    np.testing.assert_allclose([value, slope], [scale, gradient * scale], rtol=1e-5)
    # A parameter brought back is at the rim, where it has its gradient again.
    back = contrastive.clip_log_scale(jnp.float32(log_scale), **bounds)
    np.testing.assert_allclose(jax.grad(scale_of)(back), scale, rtol=1e-5)


@pytest.mark.parametrize("log_scale", [-1.0, 6.0])
def test_scale_without_bounds_is_not_clamped(log_scale: float) -> None:
    found = contrastive.scale_from_log(jnp.float32(log_scale), None, None)
    np.testing.assert_allclose(found, math.exp(log_scale), rtol=1e-6)


def test_zero_row_has_a_finite_gradient() -> None:
    gradient = jax.grad(lambda x: contrastive.normalize(x).sum())(jnp.zeros((1, 3)))
    assert np.isfinite(gradient).all()
