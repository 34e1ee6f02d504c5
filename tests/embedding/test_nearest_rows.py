"""Neighbours against a full sort over blocks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otter_jax import sharding
from otter_jax.embedding import nearest_rows as nearest_rows_module
from otter_jax.embedding.nearest_rows import nearest_rows


def unit(*shape: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=shape)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest_rows_module, "QUERY_BLOCK", 8)
    monkeypatch.setattr(nearest_rows_module, "KEY_BLOCK", 5)


@pytest.mark.usefixtures("small_blocks")
def test_nearest_rows_equal_a_full_sort() -> None:
    @settings(max_examples=20, deadline=None)
    @given(
        n=st.sampled_from([1, 9]), m=st.sampled_from([7, 12]), k=st.sampled_from([1, 3, 7]),
        seed=st.integers(0, 10**6),
    )  # fmt: skip
    def check(n: int, m: int, k: int, seed: int) -> None:
        queries, keys = unit(n, 6, seed=seed), unit(m, 6, seed=seed + 1)
        keys[m // 2] = keys[0]  # A tie: the lower number is nearer.
        mesh = sharding.make_mesh()
        similar, numbers = nearest_rows(queries, keys, k, mesh)
        wanted = queries.astype(np.float64) @ keys.T
        order = np.argsort(-wanted, axis=1, kind="stable")[:, :k]
        np.testing.assert_array_equal(numbers, order)
        np.testing.assert_allclose(similar, np.take_along_axis(wanted, order, 1), atol=1e-6)

    check()
