"""Ranking against a full sort, the class bank by hand, and what is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otter_jax.evaluation import zero_shot


def unit(*shape: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=shape)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@settings(max_examples=25, deadline=None)
@given(
    images=st.sampled_from([1, 5, 8, 9]), classes=st.sampled_from([1, 6, 17]),
    k=st.sampled_from([1, 5, 30]), seed=st.integers(0, 10**6),
)  # fmt: skip
def test_ranking_equals_a_full_sort(images, classes, k, seed) -> None:
    features, bank = unit(images, 7, seed=seed), unit(classes, 7, seed=seed + 1)
    ranked, scores = zero_shot.rank_classes(features, bank, k, block=4)
    similarity = features.astype(np.float64) @ bank.T
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
    assert found == {"hit@1": 1.0, "hit@5": 1.0, "hit@10": 1.0}


def test_class_bank_averages_unit_prompts() -> None:
    prompts = {"a cat": unit(1, 3)[0], "the cat": unit(1, 3, seed=1)[0]}
    bank = zero_shot.class_bank(
        lambda texts: np.stack([prompts[text] for text in texts]), ["cat"], ["a {}", "the {}"]
    )
    mean = sum(prompts.values()) / 2
    np.testing.assert_allclose(bank[0], mean / np.linalg.norm(mean), rtol=1e-6)


def test_names_with_braces_are_put_in_as_they_are() -> None:
    seen: list[str] = []
    zero_shot.class_bank(lambda texts: seen.extend(texts) or unit(len(texts), 3), ["{0}"], ["a {}"])
    assert seen == ["a {0}"]


@pytest.mark.parametrize(
    ("names", "template", "message"),
    [([], "a {}", "no class names"), (["a", " "], "a {}", "class 1"), (["a"], "photo", "no {}")],
)
def test_bad_banks_are_refused(names: list, template: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        zero_shot.class_bank(lambda texts: unit(len(texts), 3), names, [template])


@pytest.mark.parametrize("value", [2.0, np.nan, 0.0])
def test_rows_that_are_not_unit_are_refused(value: float) -> None:
    rows = unit(3, 4)
    rows[1] = value
    with pytest.raises(ValueError, match="image features: row 1 has length"):
        zero_shot.rank_classes(rows, unit(2, 4), 1)
