"""Ranks of the best true key against full sorts: ties, duplicates, blocks, devices, many misses."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType

from otter_jax.evaluation import ranks


def unit(*shape: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=shape)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def signs(*shape: int, seed: int = 0) -> np.ndarray:
    """Return unit rows of plus and minus a half: products are exact and mostly tied."""
    return np.random.default_rng(seed).choice([-0.5, 0.5], size=(shape[0], 4)).astype(np.float32)


def full_sort(queries: np.ndarray, keys: np.ndarray, truth: np.ndarray, limit: int) -> list[int]:
    """Sort every query's keys, ties by number; return the place of the first true one."""
    order = np.argsort(-(queries.astype(np.float64) @ keys.T), axis=1, kind="stable")
    places = []
    for row, labels in zip(order.tolist(), truth.tolist(), strict=True):
        true = {label for label in labels if label >= 0}
        place = next((place for place, key in enumerate(row) if key in true), limit)
        places.append(min(place, limit))
    return places


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "QUERY_BLOCK", 16)
    monkeypatch.setattr(ranks, "KEY_BLOCK", 4)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("make", [unit, signs])
def test_ranks_equal_a_full_sort(make) -> None:
    @settings(max_examples=40, deadline=None)
    @given(
        n=st.sampled_from([1, 5, 16, 33]), m=st.sampled_from([1, 4, 7, 22]),
        most=st.integers(1, 3), limit=st.sampled_from([1, 3, 50]), seed=st.integers(0, 10**6),
    )  # fmt: skip
    def check(n: int, m: int, most: int, limit: int, seed: int) -> None:
        queries, keys = make(n, 6, seed=seed), make(m, 6, seed=seed + 1)
        truth = np.random.default_rng(seed).integers(-1, m, size=(n, most))
        found = ranks.best_true_ranks(queries, keys, truth, limit)
        np.testing.assert_array_equal(found, full_sort(queries, keys, truth, limit))

    check()


def test_equal_keys_rank_by_number() -> None:
    keys = unit(9, 4)[[3, 5, 3, 3, 8]]
    truth = np.array([[0], [2], [3]])
    found = ranks.best_true_ranks(keys[[0, 0, 0]], keys, truth, 10)
    np.testing.assert_array_equal(found, [0, 1, 2])


def test_differences_below_float32_are_seen() -> None:
    """0.6 and the next float32 above it, times a query's 1: rounding of a sum must not decide."""
    width = 64
    queries = np.full((1, width), width**-0.5, np.float32)
    keys = np.repeat(queries, 3, axis=0)
    keys[1, 7] = np.nextafter(keys[1, 7], np.float32(1))
    for true, rank in ((0, 1), (1, 0), (2, 2)):
        assert ranks.best_true_ranks(queries, keys, np.array([[true]]), 9) == [rank]


@pytest.mark.usefixtures("small_blocks")
def test_one_device_equals_eight() -> None:
    queries, keys = unit(37, 8), unit(53, 8, seed=1)
    keys[10:20] = keys[:10]
    truth = np.random.default_rng(0).integers(-1, 53, size=(37, 2))
    found = [
        ranks.best_true_ranks(
            queries, keys, truth, 20,
            mesh=jax.make_mesh((count,), ("data",), axis_types=(AxisType.Auto,),
                               devices=jax.devices()[:count]),
        )
        for count in (1, 3, 8)
    ]  # fmt: skip
    assert jax.device_count() == 8
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def test_work_is_split_over_the_devices() -> None:
    from otter_jax import sharding

    queries, best = ranks._place(sharding.make_mesh(), unit(20, 4), np.zeros(20, np.float32))
    assert {shard.data.shape for shard in queries.addressable_shards} == {(16, 4)}
    assert len(best.addressable_shards) == 8


def test_queries_leave_the_sweep_once_they_have_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "KEY_BLOCK", 100)
    swept = []
    count = ranks._count

    def counting(mesh):
        def run(queries, *rest):
            swept.append(len(queries))
            return count(mesh)(queries, *rest)

        return run

    monkeypatch.setattr(ranks, "_count", counting)
    queries, keys = unit(512, 16), unit(1000, 16, seed=1)
    worst = (queries @ keys.T).argmin(axis=1)[:, None]
    ranks.best_true_ranks(queries, keys, worst, 10)
    assert sum(swept) == 512


def test_queries_without_truth_get_the_limit() -> None:
    rows = unit(3, 4)
    found = ranks.best_true_ranks(rows, rows, np.array([[-1, -1], [-1, 1], [2, -1]]), 7)
    np.testing.assert_array_equal(found, [7, 0, 0])


@pytest.mark.parametrize("value", [2.0, np.nan, 0.0])
def test_rows_that_are_not_unit_are_refused(value: float) -> None:
    rows = unit(3, 4)
    rows[1] = value
    with pytest.raises(ValueError, match="queries: row 1 has length"):
        ranks.best_true_ranks(rows, unit(2, 4), np.zeros((3, 1), int), 1)


@pytest.mark.parametrize(
    ("truth", "message"),
    [
        (np.zeros(3, int), r"need labels \[3, L\]"),
        (np.zeros((2, 1), int), "3 queries need labels"),
        (np.array([[0], [1], [2]]), "label 2 of query 2 is out of range: there are 2"),
        (np.array([[0], [-2], [1]]), "label -2 of query 1 is out of range"),
    ],
)
def test_labels_that_do_not_fit_are_refused(truth: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ranks.best_true_ranks(unit(3, 4), unit(2, 4), truth, 1)


def test_widths_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="queries of width 4, keys of width 5"):
        ranks.best_true_ranks(unit(3, 4), unit(2, 5), np.zeros((3, 1), int), 1)
