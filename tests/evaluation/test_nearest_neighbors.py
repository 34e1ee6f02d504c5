"""Neighbours against a full sort over blocks, and votes by hand."""

import numpy as np
import pytest

from otter_jax.evaluation import nearest_neighbors


def unit(*shape: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=shape)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


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
