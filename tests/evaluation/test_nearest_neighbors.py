"""Neighbours against a full sort over blocks, and votes by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otter_jax import sharding
from otter_jax.evaluation import nearest_neighbors


def unit(*shape: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=shape)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest_neighbors, "QUERY_BLOCK", 8)
    monkeypatch.setattr(nearest_neighbors, "KEY_BLOCK", 5)


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
        similar, numbers = nearest_neighbors.nearest_rows(queries, keys, k, mesh)
        wanted = queries.astype(np.float64) @ keys.T
        order = np.argsort(-wanted, axis=1, kind="stable")[:, :k]
        np.testing.assert_array_equal(numbers, order)
        np.testing.assert_allclose(similar, np.take_along_axis(wanted, order, 1), atol=1e-6)

    check()


def test_votes_weigh_by_similarity() -> None:
    angles = np.array([0.1, 0.5, 0.5, 2.0])
    train = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    test = np.array([[5.0, 0.0]])
    weight = np.exp(np.cos(angles) / 0.07)
    assert weight[0] > weight[1] + weight[2]
    assert nearest_neighbors.classify(train, np.array([0, 1, 1, 1]), test, 2, k=4) == [0]
    closer = np.array([[np.cos(0.45), np.sin(0.45)]])
    assert nearest_neighbors.classify(train, np.array([0, 1, 1, 1]), closer, 2, k=4) == [1]


def test_accuracy_equals_scikit_learns() -> None:
    neighbors = pytest.importorskip("sklearn.neighbors", reason="[test] installs it")
    rng = np.random.default_rng(0)
    labels, test_labels = rng.integers(0, 5, size=150), rng.integers(0, 5, size=60)
    centres = rng.normal(size=(5, 16))
    train = centres[labels] + rng.normal(size=(150, 16))
    test = centres[test_labels] + rng.normal(size=(60, 16))
    theirs = neighbors.KNeighborsClassifier(
        n_neighbors=10, metric="cosine", weights=lambda distance: np.exp(-distance / 0.07)
    ).fit(train, labels)
    found = nearest_neighbors.classify(train, labels, test, 5, k=10)
    np.testing.assert_array_equal(found, theirs.predict(test))
