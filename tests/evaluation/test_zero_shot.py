"""Ranking against a full sort and scikit-learn, and what is refused."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from otter_jax.evaluation import zero_shot


def unit(*shape: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=shape)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def similarities(features: np.ndarray, bank: np.ndarray) -> np.ndarray:
    """Return all products, in float64 and each for itself: BLAS tells equal rows apart."""
    return np.sum(features.astype(np.float64)[:, None] * bank[None], axis=-1)


def released_hits(ranked: np.ndarray, labels: np.ndarray) -> float:
    """Return the published count: images for which the k nearest and the true classes intersect."""
    truths = [set(row) - {-1} for row in labels.tolist()]
    hits = [bool(truth & set(row)) for truth, row in zip(truths, ranked.tolist(), strict=True)]
    return float(np.mean([hit for hit, truth in zip(hits, truths, strict=True) if truth]))


@settings(max_examples=25, deadline=None)
@given(
    images=st.sampled_from([1, 5, 8, 9]), classes=st.sampled_from([1, 6, 17]),
    seed=st.integers(0, 10**6),
)  # fmt: skip
@example(images=1, classes=6, seed=4043)
def test_hits_equal_a_full_sort(images, classes, seed) -> None:
    features, bank = unit(images, 7, seed=seed), unit(classes, 7, seed=seed + 1)
    bank[classes // 2 :] = bank[: classes - classes // 2]  # Duplicated names.
    labels = np.random.default_rng(seed).integers(-1, classes, size=(images, 3))
    labels[0, 0] = 0
    order = np.argsort(-similarities(features, bank), axis=1, kind="stable")
    found = zero_shot.evaluate(features, bank, labels, (1, 2, 5, 100))
    for k in (1, 2, 5, 100):
        assert found[f"hit@{k}"] == pytest.approx(released_hits(order[:, :k], labels))


def test_hits_equal_those_of_nearest_neighbours_in_scikit_learn() -> None:
    neighbors = pytest.importorskip("sklearn.neighbors", reason="the extra [test] installs it")
    features, bank = unit(300, 32), unit(150, 32, seed=1)
    labels = np.random.default_rng(0).integers(-1, 150, size=(300, 6))
    nearest = neighbors.NearestNeighbors(algorithm="brute").fit(bank)
    found = zero_shot.evaluate(features, bank, labels)
    for k in (1, 2, 5, 10):
        ranked = nearest.kneighbors(features, n_neighbors=k, return_distance=False)
        assert found[f"hit@{k}"] == pytest.approx(released_hits(ranked, labels), abs=1e-12)


@settings(max_examples=20, deadline=None)
@given(
    images=st.sampled_from([1, 65]), classes=st.sampled_from([1, 17]),
    k=st.sampled_from([1, 5, 30]), seed=st.integers(0, 10**6),
)  # fmt: skip
def test_ranked_classes_equal_a_full_sort(images, classes, k, seed) -> None:
    features, bank = unit(images, 7, seed=seed), unit(classes, 7, seed=seed + 1)
    ranked, scores = zero_shot.rank_classes(features, bank, k)
    similarity = similarities(features, bank)
    wanted = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(ranked, wanted)
    np.testing.assert_allclose(scores, np.take_along_axis(similarity, wanted, 1), atol=1e-6)


def test_equal_classes_come_in_their_order() -> None:
    bank = unit(5, 4)[[0, 1, 0, 2, 0]]
    ranked, _ = zero_shot.rank_classes(bank[:1], bank, 3)
    np.testing.assert_array_equal(ranked, [[0, 2, 4]])


def test_perfect_features_hit_always() -> None:
    bank = unit(6, 8)
    found = zero_shot.evaluate(bank, bank, np.arange(6)[:, None])
    assert found == {"hit@1": 1.0, "hit@2": 1.0, "hit@5": 1.0}  # Of 6 the best 10 are all.


def test_images_without_a_label_are_not_counted() -> None:
    bank = unit(6, 8)
    labels = np.array([[0], [-1], [1]])
    assert zero_shot.evaluate(bank[[0, 1, 2]], bank, labels, (1,)) == {"hit@1": 0.5}
    with pytest.raises(ValueError, match="not one image has a label"):
        zero_shot.evaluate(bank[:1], bank, np.array([[-1]]))
