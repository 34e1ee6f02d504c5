"""The study's statistics against closed forms."""

import numpy as np
import pytest

from studies import report, runs


def test_found_agrees_with_the_scores_of_the_runs() -> None:
    rng = np.random.default_rng(0)
    ranks = runs.Ranks(*(rng.integers(0, 11, count) for count in (30, 30, 20)))
    found = report.found(np.concatenate(ranks)[None], num_images=20)
    for metric, score in ranks.scores().items():
        assert found[metric].mean() == pytest.approx(score)
        assert found[metric].shape == (1, 30 if metric.startswith("recall") else 20)


def test_bootstrap_knows_the_error_of_a_mean() -> None:
    rng = np.random.default_rng(0)
    # Queries vary, seeds do not: the error is that of a mean over queries.
    queries = rng.normal(1.0, 2.0, 400)
    found = report.bootstrap([np.tile(queries, (10, 1))] * 2, rng)
    # Two splits are drawn anew independently.
    assert found.error == pytest.approx(queries.std() / np.sqrt(2 * 400), rel=0.1)
    assert found.mean == pytest.approx(queries.mean())
    assert found.low == pytest.approx(found.mean - 1.96 * found.error, abs=0.02)
    # Seeds vary, queries do not.
    seeds = rng.normal(0.0, 3.0, 10)
    found = report.bootstrap([np.tile(seeds[:, None], (1, 50))], rng)
    assert found.error == pytest.approx(seeds.std() / np.sqrt(10), rel=0.1)


def test_p_value_is_that_of_a_normal_distribution() -> None:
    assert report.Difference(1.96, 1.0, 0.0, 0.0).p_value == pytest.approx(0.05, abs=1e-4)
    assert report.Difference(0.0, 0.0, 0.0, 0.0).p_value == 1.0


def test_holm_is_stricter_than_each_alone_and_less_than_bonferroni() -> None:
    assert report.holm([0.01, 0.04, 0.03, 0.005]) == [True, False, False, True]
    assert report.holm([0.01, 0.02, 0.03, 0.04, 0.05]) == [True, False, False, False, False]
    assert report.holm([0.04]) == [True]
