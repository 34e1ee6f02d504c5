"""Flat hit@k against a loop, and chance against counting and sampling."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otter_jax.evaluation import metrics


@settings(max_examples=60, deadline=None)
@given(
    images=st.integers(1, 12), classes=st.integers(1, 9), most=st.integers(1, 4),
    seed=st.integers(0, 10**6),
)  # fmt: skip
def test_hits_equal_a_loop(images, classes, most, seed) -> None:
    rng = np.random.default_rng(seed)
    ranked = np.stack([rng.permutation(classes) for _ in range(images)])
    labels = rng.integers(-1, classes, size=(images, most))
    truths = [{label for label in row if label >= 0} for row in labels.tolist()]
    found = metrics.hit_at_k(ranked, labels, (1, 2, 5, 100))
    for k, value in found.items():
        hits = [
            bool(truth & set(row[:k]))
            for truth, row in zip(truths, ranked.tolist(), strict=True)
            if truth
        ]
        assert value == pytest.approx(np.mean(hits)) if hits else math.isnan(value)


def test_images_without_labels_are_not_counted() -> None:
    ranked = np.array([[0, 1], [1, 0], [0, 1]])
    labels = np.array([[0, -1], [-1, -1], [1, -1]])
    assert metrics.hit_at_k(ranked, labels, (1, 2)) == {1: 0.5, 2: 1.0}


def test_padding_never_hits() -> None:
    ranked = np.array([[-1, 3]])  # As an index that was never filled would be.
    assert metrics.hit_at_k(ranked, np.array([[2, -1]]), (2,)) == {2: 0.0}


def test_different_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="2 rankings for 3 images"):
        metrics.hit_at_k(np.zeros((2, 1), int), np.zeros((3, 1), int), (1,))


def test_chance_with_one_label_is_k_over_classes() -> None:
    found = metrics.chance_hit_at_k(50, np.array([[3], [4]]), (1, 10, 60))
    assert found == pytest.approx({1: 0.02, 10: 0.2, 60: 1.0})


def test_chance_with_several_labels_agrees_with_sampling() -> None:
    labels = np.array([[0, 1, 2], [5, -1, -1]])
    wanted = metrics.chance_hit_at_k(10, labels, (3,))[3]
    rng = np.random.default_rng(0)
    orders = np.stack([rng.permutation(10) for _ in range(40_000)])
    sampled = [metrics.hit_at_k(orders, np.tile(row, (len(orders), 1)), (3,))[3] for row in labels]
    assert np.mean(sampled) == pytest.approx(wanted, abs=0.01)
