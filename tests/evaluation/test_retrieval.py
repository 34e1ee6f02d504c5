"""Recalls against a loop over float64 similarities, ties and blocks included."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otter_jax.evaluation import retrieval


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def brute_force(queries: np.ndarray, keys: np.ndarray) -> list[int]:
    ranks = []
    for number, query in enumerate(queries.astype(np.float64)):
        scores = [float(query @ key) for key in keys.astype(np.float64)]
        before = sum(score > scores[number] for score in scores)
        ranks.append(before + sum(score == scores[number] for score in scores[:number]))
    return ranks


@settings(max_examples=25, deadline=None)
@given(pairs=st.sampled_from([1, 4, 9, 16]), seed=st.integers(0, 10**6))
def test_ranks_equal_a_loop(pairs, seed) -> None:
    rng = np.random.default_rng(seed)
    image, text = unit(rng.normal(size=(pairs, 6))), unit(rng.normal(size=(pairs, 6)))
    np.testing.assert_array_equal(
        retrieval.pair_ranks(image, text, block=4), brute_force(image, text)
    )


def test_equal_captions_rank_in_their_order() -> None:
    text = np.eye(4, dtype=np.float32)[[0, 0, 0, 3]]
    np.testing.assert_array_equal(retrieval.pair_ranks(text, text, block=3), [0, 1, 2, 0])


def test_recalls_of_perfect_and_shifted_pairs() -> None:
    rows = np.eye(20, dtype=np.float32)
    assert set(retrieval.recalls(rows, rows).values()) == {1.0}
    shifted = retrieval.recalls(rows, np.roll(rows, 1, axis=0), ks=(1,))
    assert shifted == {"i2t_recall@1": 0.0, "t2i_recall@1": 0.0}


def test_shapes_that_differ_are_refused() -> None:
    rows = np.eye(4, dtype=np.float32)
    with pytest.raises(ValueError, match="differ"):
        retrieval.recalls(rows, rows[:3])


def test_chance() -> None:
    assert retrieval.chance_recalls(20)["t2i_recall@5"] == 0.25
    assert retrieval.chance_recalls(4)["i2t_recall@10"] == 1.0
