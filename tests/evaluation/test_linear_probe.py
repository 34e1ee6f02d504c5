"""The search over L2 and the two accuracies, by hand."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, Mesh

from otter_jax.evaluation import linear_probe, logistic_regression


@pytest.fixture
def one_device() -> Mesh:
    """Small fits are fastest on one device."""
    return jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:1])


@settings(max_examples=50, deadline=None)
@given(peak=st.integers(-48, 48))
def test_search_finds_the_peak_of_a_hill_in_few_fits(peak: int) -> None:
    tried: list[int] = []

    def score(step: int) -> float:
        tried.append(step)
        return -abs(step - peak)

    assert linear_probe.search_l2(score) == peak
    assert len(tried) == len(set(tried)) <= 7 + 2 * 4
    assert min(tried) == -48 and max(tried) == 48


def test_the_steps_are_ninety_six_from_1e_minus_6_to_1e6() -> None:
    assert linear_probe.HIGHEST - linear_probe.LOWEST == 96
    strengths = [linear_probe.l2_strength(s) for s in (linear_probe.LOWEST, 0, 1)]
    assert strengths == pytest.approx([1e-6, 1.0, 10 ** (1 / 8)])
    assert linear_probe.l2_strength(linear_probe.HIGHEST) == pytest.approx(1e6)


def test_of_equal_scores_the_middle_is_chosen() -> None:
    assert linear_probe.search_l2(lambda step: 1.0) == 0
    assert 4 <= linear_probe.search_l2(lambda step: float(-16 <= step <= 36)) <= 16


def test_accuracy_of_images_and_of_classes() -> None:
    labels = np.array([0, 0, 0, 0, 2, 2])
    predicted = np.array([0, 0, 0, 1, 2, 1])
    assert linear_probe.accuracy(predicted, labels) == pytest.approx(4 / 6)
    assert linear_probe.accuracy(predicted, labels, per_class=True) == pytest.approx(5 / 8)


def test_every_fifth_image_of_a_class_validates() -> None:
    labels = np.array([0] * 11 + [1] * 3 + [2])
    chosen = np.flatnonzero(linear_probe.validation_split(labels))
    assert chosen.tolist() == [4, 9, 13]


def test_the_final_fit_is_that_of_all_images(one_device: Mesh) -> None:
    rng = np.random.default_rng(0)
    labels = np.tile(np.arange(3), 20)
    features = rng.normal(size=(60, 8)).astype(np.float32)
    features[np.arange(60), labels] += 2.0
    validates = linear_probe.validation_split(labels)
    weights, step = linear_probe.search_and_fit(features, labels, validates, 3, mesh=one_device)
    wanted = logistic_regression.fit(
        features, labels, 3, linear_probe.l2_strength(step), mesh=one_device
    )
    probabilities = [logistic_regression.predict(w, features) for w in (weights, wanted)]
    np.testing.assert_allclose(*probabilities, atol=5e-3)
    assert linear_probe.accuracy(probabilities[0].argmax(axis=1), labels) > 0.8


def test_one_image_a_class_is_fitted_without_a_search() -> None:
    labels = np.arange(3)
    validates = linear_probe.validation_split(labels)
    _, step = linear_probe.search_and_fit(np.eye(3, dtype=np.float32), labels, validates, 3)
    assert not validates.any() and step == 0
