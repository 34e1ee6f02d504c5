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


def equal_by_loops(
    image: np.ndarray, text: np.ndarray, owner: np.ndarray, equal: retrieval.EqualItems, k: int
) -> tuple:
    """Return both recalls, right being whatever is equal to a pair."""
    pairs = {(equal.images[o], equal.texts[t]) for t, o in enumerate(owner)}
    right = np.array([[(i, t) in pairs for t in equal.texts] for i in equal.images])
    similarity = image[equal.images].astype(np.float64) @ text[equal.texts].T
    counted = sorted(set(owner))
    best_texts = np.argsort(-similarity, axis=1, kind="stable")[counted, :k]
    best_images = np.argsort(-similarity.T, axis=1, kind="stable")[:, :k]
    return (
        np.mean([right[i, best].any() for i, best in zip(counted, best_texts, strict=True)]),
        np.mean([right[best, t].any() for t, best in enumerate(best_images)]),
    )


@settings(max_examples=25, deadline=None)
@given(images=st.sampled_from([1, 5, 9]), texts=st.sampled_from([1, 20]), seed=st.integers(0, 999))
def test_what_equals_a_right_answer_is_right(images, texts, seed) -> None:
    rng = np.random.default_rng(seed)
    owner = rng.integers(0, images, size=texts)
    equal = retrieval.EqualItems(
        retrieval.first_equal(rng.integers(0, images, size=images).tolist()),
        retrieval.first_equal(rng.integers(0, max(texts // 2, 1), size=texts).tolist()),
    )
    image, text = unit(images, 6, seed=seed), unit(texts, 6, seed=seed + 1)
    found = retrieval.recalls_with_equal(image, text, owner, equal, ks=(1, 3))
    for k in (1, 3):
        i2t, t2i = equal_by_loops(image, text, owner, equal, k)
        assert found[f"equal_i2t_recall@{k}"] == pytest.approx(i2t)
        assert found[f"equal_t2i_recall@{k}"] == pytest.approx(t2i)


def test_without_equal_ones_both_ways_to_count_agree() -> None:
    owner, image, text = np.array([0, 0, 1, 3]), unit(4, 6), unit(4, 6, seed=1)
    equal = retrieval.EqualItems(np.arange(4), np.arange(4))
    assert not equal.exist
    found = retrieval.recalls_with_equal(image, text, owner, equal, ks=(1, 2))
    plain = retrieval.recalls(image, text, owner, ks=(1, 2))
    assert found == {f"equal_{name}": share for name, share in plain.items()}


def test_as_many_as_there_are_says_nothing() -> None:
    rows = np.eye(5, dtype=np.float32)
    assert set(retrieval.recalls(rows, rows)) == {"i2t_recall@1", "t2i_recall@1"}
    few = retrieval.recalls(rows, np.repeat(rows, 3, axis=0), np.repeat(np.arange(5), 3))
    assert set(few) == {"i2t_recall@1", "i2t_recall@5", "i2t_recall@10", "t2i_recall@1"}
    assert set(retrieval.chance_recalls(np.repeat(np.arange(5), 3), 5)) == set(few)


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
    five = retrieval.chance_recalls(np.repeat(np.arange(4), 5), 4)
    assert five["i2t_recall@1"] == pytest.approx(0.25) == five["t2i_recall@1"]
    # Of four images with the captions a, a, b, c the first two have two right ones.
    equal = retrieval.EqualItems(np.arange(4), np.array([0, 0, 2, 3]))
    found = retrieval.chance_recalls_with_equal(np.arange(4), equal)
    assert found["equal_i2t_recall@1"] == found["equal_t2i_recall@1"] == (0.5 + 0.5 + 1 / 2) / 4
