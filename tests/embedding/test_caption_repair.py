"""Captions of trusted neighbours, against a slow twin."""

import numpy as np
import pytest
from embedding.test_trust import clusters

from otter_jax.embedding import caption_repair


def slow_repair(
    image: np.ndarray, text: np.ndarray, alpha: np.ndarray, captions: int
) -> np.ndarray:
    """Return the same, pair by pair."""

    def unit(row: np.ndarray) -> np.ndarray:
        return row / np.linalg.norm(row)

    repaired = []
    for number, own in enumerate(text):
        others = [n for n in range(len(text)) if n != number and alpha[n] >= 0.5]
        others.sort(key=lambda n: -unit(image[n]) @ unit(image[number]))
        borrowed = unit(sum(unit(text[n]) for n in others[:captions]))
        mixed = alpha[number] * unit(own) + (1 - alpha[number]) * borrowed
        repaired.append(np.linalg.norm(own) * unit(mixed))
    return np.array(repaired)


def test_captions_are_mixed_with_those_of_trusted_neighbours() -> None:
    pairs = clusters(60)
    alpha = np.random.default_rng(0).random(60).astype(np.float32)
    alpha[:2] = 1.0, 0.0
    found = caption_repair.repair(*pairs, alpha, captions=3)
    np.testing.assert_allclose(found.text, slow_repair(*pairs, alpha, 3), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.text[0], pairs.text[0], rtol=1e-5, atol=1e-5)
    least = caption_repair.REPAIRED_WEIGHT
    np.testing.assert_allclose(found.trust, least + (1 - least) * alpha, rtol=1e-6)
    assert found.text.dtype == found.trust.dtype == np.float32


def test_a_wrong_caption_turns_into_what_its_image_is_called() -> None:
    pairs, kind = clusters(80, noise=0.1), np.arange(80) % 8
    text, alpha = pairs.text.copy(), np.ones(80, np.float32)
    text[5], alpha[5] = pairs.text[6], 0.0  # That of another kind.
    found = caption_repair.repair(pairs.image, text, alpha).text[5]
    likeness = pairs.text @ found / np.linalg.norm(pairs.text, axis=1)
    assert likeness[kind == 5].min() > likeness[kind != 5].max()


def test_the_reference_is_drawn_from_trusted_pairs() -> None:
    pairs, alpha = clusters(60), np.ones(60, np.float32)
    alpha[:20] = 0.1
    first, again, other = (
        caption_repair.repair(*pairs, alpha, captions=2, reference=10, seed=seed).text
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)


def test_too_few_trusted_pairs_are_refused() -> None:
    pairs, alpha = clusters(60), np.zeros(60, np.float32)
    alpha[:5] = 1.0
    with pytest.raises(ValueError, match=r"5 pairs are trusted by 0\.5 or more, and 6 are needed"):
        caption_repair.repair(*pairs, alpha)
    with pytest.raises(ValueError, match=r"trust\.captions=0: it must be at least 1"):
        caption_repair.repair(*pairs, alpha, captions=0)
