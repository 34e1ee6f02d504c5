"""Masking against BERT's shares, over a hundred thousand tokens, and by property."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otter_jax.data import masking

MASK_ID = 103
ORDINARY_IDS = np.arange(200, 1200)
LENGTH = 32
CRITICAL = {
    1: 10.83,
    2: 13.82,
    3: 16.27,
    31: 61.10,
}  # quantiles 0.999 of chi-square, by degrees of freedom


def generators(count: int, seed: int = 0) -> list[np.random.Generator]:
    return [np.random.default_rng((seed, number)) for number in range(count)]


def captions(count: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).choice(ORDINARY_IDS, (count, LENGTH)).astype(np.int32)


def mask(tokens: np.ndarray, maskable: np.ndarray | None = None, seed: int = 0) -> dict:
    return masking.mask_tokens(
        tokens,
        np.ones(tokens.shape, bool) if maskable is None else maskable,
        generators(len(tokens), seed),
        mask_id=MASK_ID,
        ordinary_ids=ORDINARY_IDS,
    )


def chi_square(observed: np.ndarray, shares: np.ndarray) -> float:
    expected = observed.sum() * shares
    return float(((observed - expected) ** 2 / expected).sum())


def tail(count: int, more_than: int) -> float:
    """The probability that more than so many of `count` tokens are chosen."""
    return sum(
        math.comb(count, chosen) * 0.15**chosen * 0.85 ** (count - chosen)
        for chosen in range(more_than + 1, count + 1)
    )


@pytest.mark.parametrize("length", [1, 3, 6, 32, 60, 77, 128, 512])
def test_slots_are_the_fewest_that_nearly_always_suffice(length: int) -> None:
    slots = masking.num_masked_slots(length)
    assert tail(length, slots) < 0.01 <= tail(length, slots - 1)


def test_shares_of_chosen_hidden_random_and_kept_tokens() -> None:
    tokens = captions(3200)  # 102,400 tokens
    masked = mask(tokens)
    used = masked["masked_labels"] != masking.IGNORED
    chosen = used.sum()
    assert (
        chi_square(np.array([chosen, tokens.size - chosen]), np.array([0.15, 0.85])) < CRITICAL[1]
    )

    shown = np.take_along_axis(masked["masked_tokens"], masked["masked_positions"], 1)[used]
    hidden, kept = shown == MASK_ID, shown == masked["masked_labels"][used]
    counts = np.array([hidden.sum(), (~hidden & ~kept).sum(), kept.sum()])
    same = 0.1 / len(ORDINARY_IDS)  # A random token may be the one that was there.
    assert chi_square(counts, np.array([0.8, 0.1 - same, 0.1 + same])) < CRITICAL[2]

    random = shown[~hidden & ~kept]
    quarters = np.bincount((random - 200) // 250, minlength=4)
    assert chi_square(quarters, np.full(4, 0.25)) < CRITICAL[3]
    assert np.isin(random, ORDINARY_IDS).all()


def test_every_place_is_chosen_equally_often() -> None:
    masked = mask(captions(3200))
    used = masked["masked_labels"] != masking.IGNORED
    counts = np.bincount(masked["masked_positions"][used], minlength=LENGTH)
    assert chi_square(counts, np.full(LENGTH, 1 / LENGTH)) < CRITICAL[31]


class ChoosesAll:
    """A generator whose draws are all low enough to choose a token, and to hide it."""

    def __init__(self, seed: int):
        """Draw what NumPy draws, scaled."""
        self.rng = np.random.default_rng(seed)

    def random(self, shape: tuple[int, int]) -> np.ndarray:
        return masking.CHOSEN_SHARE * self.rng.random(shape)


def test_surplus_stays_as_it_is() -> None:
    tokens = captions(500)
    masked = masking.mask_tokens(
        tokens,
        np.ones(tokens.shape, bool),
        [ChoosesAll(seed) for seed in range(500)],
        mask_id=MASK_ID,
        ordinary_ids=ORDINARY_IDS,
    )
    slots = masked["masked_positions"].shape[1]
    assert slots < LENGTH
    np.testing.assert_array_equal((masked["masked_tokens"] != tokens).sum(1), slots)
    counts = np.bincount(masked["masked_positions"].ravel(), minlength=LENGTH)
    assert chi_square(counts, np.full(LENGTH, 1 / LENGTH)) < CRITICAL[31]  # No place is preferred.


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(0, 5), st.integers(1, 40)),
    share=st.sampled_from([0.0, 0.3, 1.0]),
    seed=st.integers(0, 999),
)
def test_labels_restore_the_caption(shape: tuple[int, int], share: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    tokens = rng.choice(ORDINARY_IDS, shape).astype(np.int32)
    maskable = rng.random(shape) < share
    original = tokens.copy()
    masked = mask(tokens, maskable, seed)
    slots = masking.num_masked_slots(shape[1])
    shapes = {name: (values.shape, values.dtype) for name, values in masked.items()}
    assert shapes == {
        "masked_tokens": (shape, np.int32),
        "masked_positions": ((shape[0], slots), np.int32),
        "masked_labels": ((shape[0], slots), np.int32),
    }
    np.testing.assert_array_equal(tokens, original)
    restored = masked["masked_tokens"].copy()
    for row, positions, labels in zip(
        range(shape[0]), masked["masked_positions"], masked["masked_labels"], strict=True
    ):
        used = labels != masking.IGNORED
        assert len(set(positions[used])) == used.sum() and maskable[row, positions[used]].all()
        assert (positions[~used] == 0).all() and not (~used[:-1] & used[1:]).any()
        restored[row, positions[used]] = labels[used]
    np.testing.assert_array_equal(restored, tokens)


def test_a_caption_is_masked_alone_as_in_a_batch() -> None:
    tokens = captions(4)
    together = mask(tokens)
    for row, generator in enumerate(generators(4)):
        alone = masking.mask_tokens(
            tokens[row : row + 1],
            np.ones((1, LENGTH), bool),
            [generator],
            mask_id=MASK_ID,
            ordinary_ids=ORDINARY_IDS,
        )
        for name, values in alone.items():
            np.testing.assert_array_equal(values[0], together[name][row])


def test_every_caption_needs_a_generator() -> None:
    with pytest.raises(ValueError, match="2 generators for 3 captions; one for each"):
        masking.mask_tokens(
            captions(3),
            np.ones((3, LENGTH), bool),
            generators(2),
            mask_id=MASK_ID,
            ordinary_ids=ORDINARY_IDS,
        )
