"""The cross-entropy core: closed forms, temperatures, gradients through keys."""

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


def test_zero_row_has_a_finite_gradient() -> None:
    gradient = jax.grad(lambda x: contrastive.normalize(x).sum())(jnp.zeros((1, 3)))
    assert np.isfinite(gradient).all()
