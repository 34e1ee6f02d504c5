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


def test_memory_entries_are_the_nearest_clean_pairs() -> None:
    rng = np.random.default_rng(0)
    image, text = rng.normal(size=(30, 4)), rng.normal(size=(30, 3))
    clean = np.array([2, 5, 11, 29])
    found = rivals.memory_entries(image, text, clean)
    for column, rows in enumerate((image, text)):
        for i in range(30):
            cosines = {
                j: rows[i] @ rows[j] / np.linalg.norm(rows[i]) / np.linalg.norm(rows[j])
                for j in clean.tolist()
            }
            assert found[i, column] == max(cosines, key=cosines.get)
    assert found[5].tolist() == [5, 5]


def test_a_memory_bank_holds_what_is_sure_or_else_a_tenth() -> None:
    probability = np.array([0.95, 0.2, 0.91, 0.89, *np.linspace(0.1, 0.3, 17)])
    assert rivals.memory_bank(probability).tolist() == [0, 2, 3]
    assert rivals.memory_bank(np.full(30, 0.95)).tolist() == list(range(30))


def test_confidence_is_one_unless_the_memory_suffers() -> None:
    before = np.array([[1.0, 2.0], [1.0, 1.0], [0.5, 0.5]])
    after = np.array([[2.0, 1.0], [2.0, 4.0], [0.0, 0.5]])  # Ratios: 1.25, 0.375, without bound.
    np.testing.assert_allclose(rivals.confidence(before, after), [1.0, np.tanh(0.375), 1.0])


def test_weights_count_how_often_a_pair_is_met() -> None:
    weight, entries = np.array([0.8, 1.0, 0.5, 0.7]), np.array([[1, 1], [1, 1], [1, 2], [2, 1]])
    met = list(weight)
    for row in entries:
        for entry in row:
            met[entry] += 1
    found = rivals.weigh_with_memory(weight, entries)
    np.testing.assert_allclose(found, np.array(met) / max(met))


def test_hard_targets_give_way_along_half_a_cosine() -> None:
    found = rivals.progressive_alpha((11, 20), 1.0, 0.2)
    assert found.shape == (11, 20) and set(found.ravel()) == {0.0, 1.0}
    for step, row in enumerate(found):
        share = 0.2 + 0.8 * (1 + np.cos(np.pi * step / 10)) / 2
        assert row.sum() == round(20 * share)
    assert found[0].all() and found[-1].sum() == 4
    assert rivals.progressive_alpha((1, 4), 0.5, 0.2).tolist() == [[1.0, 1.0, 0.0, 0.0]]
