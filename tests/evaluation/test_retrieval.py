"""Recalls against loops over float64 similarities, several captions an image and ties included."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otter_jax.evaluation import retrieval


def unit(*shape: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=shape)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def by_loops(image: np.ndarray, text: np.ndarray, owner: np.ndarray, k: int) -> tuple:
    """Return the recall of images and of texts, from all similarities, sorted."""
    similarity = image.astype(np.float64) @ text.T
    best_texts = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    best_images = np.argsort(-similarity.T, axis=1, kind="stable")[:, :k]
    i2t = [
        bool(set(best) & set(np.flatnonzero(owner == number)))
        for number, best in enumerate(best_texts)
        if (owner == number).any()
    ]
    return np.mean(i2t), np.mean([o in best for o, best in zip(owner, best_images, strict=True)])


@settings(max_examples=25, deadline=None)
@given(images=st.sampled_from([1, 4, 9]), texts=st.sampled_from([1, 16]), seed=st.integers(0, 999))
def test_recalls_equal_loops(images, texts, seed) -> None:
    owner = np.random.default_rng(seed).integers(0, images, size=texts)
    image, text = unit(images, 6, seed=seed), unit(texts, 6, seed=seed + 1)
    found = retrieval.recalls(image, text, owner, ks=(1, 3))
    for k in (1, 3):
        i2t, t2i = by_loops(image, text, owner, k)
        assert found[f"i2t_recall@{k}"] == pytest.approx(i2t)
        assert found[f"t2i_recall@{k}"] == pytest.approx(t2i)


def test_equal_captions_rank_in_their_order() -> None:
    rows = np.eye(4, dtype=np.float32)[[0, 0, 0, 3]]
    found = retrieval.recalls(rows, rows, ks=(1, 2, 3))
    assert list(found.values()) == [0.5, 0.75, 1.0] * 2


def test_recalls_of_perfect_and_shifted_pairs() -> None:
    rows = np.eye(20, dtype=np.float32)
    assert set(retrieval.recalls(rows, rows).values()) == {1.0}
    shifted = retrieval.recalls(rows, np.roll(rows, 1, axis=0), ks=(1,))
    assert shifted == {"i2t_recall@1": 0.0, "t2i_recall@1": 0.0}


def test_what_does_not_fit_is_refused() -> None:
    rows = np.eye(4, dtype=np.float32)
    with pytest.raises(ValueError, match="4 images and 3 texts differ"):
        retrieval.recalls(rows, rows[:3])
    with pytest.raises(ValueError, match="text 1 belongs to image 4: there are 4"):
        retrieval.recalls(rows, rows[:2], np.array([0, 4]))


def test_texts_of_images() -> None:
    found = retrieval.texts_of_images(np.array([2, 0, 2, 2]), 4)
    np.testing.assert_array_equal(found, [[1, -1, -1], [-1, -1, -1], [0, 2, 3], [-1, -1, -1]])


def test_chance() -> None:
    pairs = retrieval.chance_recalls(np.arange(20), 20)
    assert pairs["t2i_recall@5"] == 0.25 and pairs["i2t_recall@5"] == pytest.approx(0.25)
    assert retrieval.chance_recalls(np.arange(4), 4)["i2t_recall@10"] == 1.0
    five = retrieval.chance_recalls(np.repeat(np.arange(4), 5), 4)
    assert five["i2t_recall@1"] == pytest.approx(0.25) == five["t2i_recall@1"]
