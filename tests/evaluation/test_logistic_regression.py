"""The fit against scikit-learn and a zero gradient, on one device and eight."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from otter_jax.evaluation import logistic_regression


def problem(count: int = 203, width: int = 12, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, size=count)
    centres = rng.normal(size=(classes, width))
    return (centres[labels] + rng.normal(size=(count, width))).astype(np.float32), labels


def objective(weights: dict, features: np.ndarray, labels: np.ndarray, l2: float) -> float:
    """Return the sum of cross-entropies and penalty, in float64."""
    kernel, bias = (np.asarray(weights[name], np.float64) for name in ("kernel", "bias"))
    logits = features @ kernel + bias
    logits -= logits.max(axis=1, keepdims=True)
    log_sums = np.log(np.exp(logits).sum(axis=1))
    own = logits[np.arange(len(labels)), labels]
    return float((log_sums - own).sum() + 0.5 * l2 * (kernel**2).sum())


@pytest.mark.parametrize("l2", [1.0, 30.0, 1e3])
def test_objective_and_predictions_equal_scikit_learns(l2: float) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model", reason="[test] installs it")
    features, labels = problem()
    fitted = logistic_regression.fit(features, labels, 4, l2)
    theirs = linear_model.LogisticRegression(C=1 / l2, max_iter=5000, tol=1e-8)
    theirs.fit(features.astype(np.float64), labels)
    wanted = {"kernel": theirs.coef_.T, "bias": theirs.intercept_}
    best = objective(wanted, features, labels, l2)
    assert objective(fitted, features, labels, l2) == pytest.approx(best, rel=1e-3)
    ours = logistic_regression.predict(fitted, features, block=50)
    np.testing.assert_allclose(ours.sum(axis=1), 1.0, rtol=1e-5)
    assert (ours.argmax(axis=1) == theirs.predict(features)).mean() > 0.99
    np.testing.assert_allclose(ours, theirs.predict_proba(features), atol=0.02)


def test_a_probe_of_many_classes_is_fitted_to_the_end() -> None:
    """The gradient of the mean is below scikit-learn's tolerance before anything is learned."""
    count, width = 3000, 64
    features = np.random.default_rng(0).normal(size=(count, width))
    features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)
    labels, l2 = np.arange(count), 0.1

    def gradient(kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
        logits = features.astype(np.float64) @ kernel + bias
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        shares[np.arange(count), labels] -= 1
        return (features.T @ shares + l2 * kernel) / count

    first = np.abs(gradient(np.zeros((width, count)), np.zeros(count))).max()
    assert 1e-5 < first < 3e-4
    fitted = logistic_regression.fit(features, labels, count, l2)
    assert np.abs(gradient(fitted["kernel"], fitted["bias"])).max() < 2e-3 * first


def test_one_device_equals_eight() -> None:
    features, labels = problem(count=61)  # Padded to 64.
    fitted = [
        logistic_regression.fit(
            features, labels, 4, 1.0,
            mesh=jax.make_mesh((count,), ("data",), axis_types=(AxisType.Auto,),
                               devices=jax.devices()[:count]),
        )
        for count in (1, 8)
    ]  # fmt: skip
    np.testing.assert_allclose(fitted[0]["kernel"], fitted[1]["kernel"], atol=1e-3)


def test_a_good_start_is_kept() -> None:
    features, labels = problem()
    first = logistic_regression.fit(features, labels, 4, 1.0)
    again = logistic_regression.fit(features, labels, 4, 1.0, start=first)
    np.testing.assert_allclose(first["kernel"], again["kernel"], atol=1e-3)


@pytest.mark.parametrize(
    ("features", "labels", "classes", "message"),
    [
        (np.zeros((3, 2)), np.array([0, 1]), 2, "do not fit"),
        (np.zeros((0, 2)), np.array([], int), 2, "do not fit"),
        (np.full((2, 2), np.nan), np.array([0, 1]), 2, "not finite"),
        (np.zeros((2, 2)), np.array([0, 2]), 2, "labels from 0 to 2 for 2 classes"),
        (np.zeros((2, 2)), np.array([-1, 1]), 2, "labels from -1 to 1"),
        (np.zeros((2, 2)), np.array([0, 0]), 1, "of two classes or more"),
    ],
)
def test_what_is_no_problem_is_refused(
    features: np.ndarray, labels: np.ndarray, classes: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        logistic_regression.fit(features, labels, classes, 1.0)
