"""Flat hit@k from ranks, and chance against counting and sampling."""

import math

import numpy as np
import pytest

from otter_jax.evaluation import metrics


def test_hits_are_ranks_below_k() -> None:
    assert metrics.hit_at_k(np.array([0, 1, 4, 10]), (1, 2, 5, 100)) == {
        1: 0.25, 2: 0.5, 5: 0.75, 100: 1.0,
    }  # fmt: skip


def test_no_label_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="not one image has a label"):
        metrics.hit_at_k(np.array([], int), (1,))


def test_chance_with_one_label_is_k_over_classes() -> None:
    found = metrics.chance_hit_at_k(50, np.array([[3], [4]]), (1, 10, 60))
    assert found == pytest.approx({1: 0.02, 10: 0.2, 60: 1.0})


def test_chance_with_several_labels_agrees_with_sampling() -> None:
    labels = np.array([[0, 1, 2], [5, -1, -1], [-1, -1, -1]])
    wanted = metrics.chance_hit_at_k(10, labels, (3,))[3]
    rng = np.random.default_rng(0)
    best = [
        [set(rng.permutation(10)[:3]) & set(row) != set() for _ in range(20_000)]
        for row in labels[:2].tolist()
    ]
    assert np.mean(best) == pytest.approx(wanted, abs=0.01)


def test_repeated_labels_count_once_and_none_gives_nan() -> None:
    assert metrics.chance_hit_at_k(10, np.array([[3, 3, -1]]), (1,)) == {1: pytest.approx(0.1)}
    assert math.isnan(metrics.chance_hit_at_k(10, np.array([[-1]]), (1,))[1])
