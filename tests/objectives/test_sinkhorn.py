"""The row plan against a plain float64 Sinkhorn: rows first, exactly n iterations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from otter_jax.objectives import sinkhorn


def reference(similarity: np.ndarray, epsilon: float, iterations: int) -> np.ndarray:
    """The papers' loop in the log domain and extended precision."""
    log_plan = similarity.astype(np.longdouble) / epsilon

    def log_sum(x: np.ndarray, axis: int) -> np.ndarray:
        peak = x.max(axis=axis, keepdims=True)
        return peak + np.log(np.exp(x - peak).sum(axis=axis, keepdims=True))

    rows, columns = log_plan.shape
    for _ in range(iterations):
        log_plan = log_plan - log_sum(log_plan, axis=1) - np.log(rows)
        log_plan = log_plan - log_sum(log_plan, axis=0) - np.log(columns)
    return np.exp(log_plan - log_sum(log_plan, axis=1)).astype(np.float64)


@settings(max_examples=10, deadline=None)
@given(
    rows=st.sampled_from([8, 33, 256]),
    extra=st.sampled_from([-2, 0, 8]),
    epsilon=st.sampled_from([0.01, 0.05, 0.15, 1.0]),
    iterations=st.integers(1, 6),
    remove=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_equals_the_papers_loop(rows, extra, epsilon, iterations, remove, seed) -> None:
    rng = np.random.default_rng(seed)
    similarity = rng.uniform(-1, 3, size=(rows, rows + extra))
    if remove:
        similarity -= 200.0 * np.eye(rows, rows + extra)
    wanted = reference(similarity, epsilon, iterations)
    with jax.enable_x64(True):
        found = sinkhorn.row_plan(jnp.asarray(similarity), epsilon, iterations)
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-12)


@settings(max_examples=10, deadline=None)
@given(
    rows=st.sampled_from([3, 33, 256]),
    extra=st.sampled_from([-2, 0, 8]),
    epsilon=st.sampled_from([0.12, 0.15, 0.4, 1.0]),
    iterations=st.integers(1, 6),
    remove=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_scaling_form_equals_the_papers_loop(
    rows, extra, epsilon, iterations, remove, seed
) -> None:
    assume(not remove or rows + extra > 1)  # Of a single column nothing would be left.
    similarity = np.random.default_rng(seed).uniform(-3, 3, size=(rows, rows + extra))
    if remove:
        similarity -= 200.0 * np.eye(rows, rows + extra)
    wanted = reference(similarity, epsilon, iterations)
    assert sinkhorn.scaling_is_safe(epsilon, 3.0)
    found = sinkhorn.row_plan(jnp.asarray(similarity, jnp.float32), epsilon, iterations, bound=3.0)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("remove", [False, True])
def test_scaling_form_holds_at_its_limit(remove: bool) -> None:
    """The least even similarities that the bound admits: one image and one text match nothing."""
    similarity = np.full((64, 64), 3.0)
    similarity[5], similarity[:, 9] = -3.0, -3.0
    if remove:
        similarity -= 200.0 * np.eye(64)
    epsilon = 3.0 / sinkhorn.LARGEST_EXPONENT
    assert sinkhorn.scaling_is_safe(epsilon, 3.0) and not sinkhorn.scaling_is_safe(0.1, 3.0)
    found = sinkhorn.row_plan(jnp.asarray(similarity, jnp.float32), epsilon, 5, bound=3.0)
    np.testing.assert_allclose(found, reference(similarity, epsilon, 5), rtol=1e-3, atol=1e-6)


def test_number_of_iterations_is_exact() -> None:
    # Where one more or one fewer iteration shows: a small, far from converged problem.
    similarity = np.random.default_rng(0).uniform(-1, 3, size=(6, 6)).astype(np.float32)
    plans = [sinkhorn.row_plan(jnp.asarray(similarity), 0.1, n) for n in (4, 5, 6)]
    wanted = reference(similarity, 0.1, 5)
    errors = [np.abs(np.asarray(plan) - wanted).max() for plan in plans]
    assert errors[1] < 1e-5 < min(errors[0], errors[2])


@pytest.mark.parametrize("bound", [None, 3.0])
@pytest.mark.parametrize(("size", "epsilon"), [(16, 0.5), (33, 0.2)])
def test_marginals_at_convergence(size: int, epsilon: float, bound: float | None) -> None:
    rng = np.random.default_rng(1)
    similarity = jnp.asarray(rng.uniform(-1, 3, size=(size, size)), jnp.float32)
    plan = np.asarray(sinkhorn.row_plan(similarity, epsilon, 1000, bound))
    np.testing.assert_allclose(plan.sum(0), 1.0, atol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_tiny_epsilon_does_not_overflow(dtype: jnp.dtype) -> None:
    similarity = np.random.default_rng(2).uniform(-3, 3, size=(32, 32))
    plan = np.asarray(sinkhorn.row_plan(jnp.asarray(similarity, dtype), 0.005, 5), np.float32)
    assert np.isfinite(plan).all()
    np.testing.assert_allclose(plan.sum(1), 1.0, atol=2e-2)


def test_no_gradient_flows_into_the_similarity() -> None:
    similarity = jnp.asarray(np.random.default_rng(3).normal(size=(4, 4)), jnp.float32)
    gradient = jax.grad(lambda s: (sinkhorn.row_plan(s, 0.1, 3) ** 2).sum())(similarity)
    np.testing.assert_array_equal(gradient, 0.0)
