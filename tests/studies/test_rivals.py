"""Rivals against slow twins and scikit-learn."""

import numpy as np
import pytest
from sklearn.mixture import GaussianMixture

from studies import rivals


def test_lemon_is_the_sum_that_is_written_down() -> None:
    rng = np.random.default_rng(0)
    image, text = rng.normal(size=(40, 6)), rng.normal(size=(40, 5))
    distance = rng.uniform(0, 2, 40)
    found = rivals.lemon_score(image, text, distance, neighbors=4)
    x, y = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (image, text))
    for i in range(40):
        score = distance[i]
        for a, b in ((x, y), (y, x)):
            near = sorted((j for j in range(40) if j != i), key=lambda j: 1 - a[i] @ a[j])[:4]
            score += 5 * np.mean([
                (1 - b[i] @ b[j]) * np.exp(-0.1 * (1 - a[i] @ a[j])) * np.exp(-5 * distance[j])
                for j in near
            ])  # fmt: skip
        assert found[i] == pytest.approx(score, rel=1e-5)


def test_small_losses_are_told_apart_as_by_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    losses = np.concatenate([rng.normal(2, 0.4, 300), rng.normal(5, 0.8, 200)])
    found = rivals.clean_probability(losses)
    scaled = ((losses - losses.min()) / np.ptp(losses))[:, None]
    twin = GaussianMixture(2, random_state=0, tol=1e-8, max_iter=500).fit(scaled)
    expected = twin.predict_proba(scaled)[:, twin.means_[:, 0].argmin()]
    np.testing.assert_allclose(found, expected, atol=2e-3)
    assert found[:300].mean() > 0.95 and found[300:].mean() < 0.05


def test_equal_losses_tell_nothing_and_break_nothing() -> None:
    assert np.isfinite(rivals.clean_probability(np.ones(10))).all()
