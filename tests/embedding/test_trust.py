"""Pair trust on a small stored set of features, on generated ones, and against slow twins.

golden/trust/clip_art.npz: features of 600 pairs of the embedded clip art, drawn at random, as the
quickstart's towers give them (EfficientNet-Lite0 and MiniLM): unit rows, projected on their 32
largest singular directions, float16.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import roc_auc_score

from otter_jax.embedding import trust

CLIP_ART = Path(__file__).parents[1] / "golden" / "trust" / "clip_art.npz"


class Features(NamedTuple):
    image: np.ndarray
    text: np.ndarray


@pytest.fixture(scope="module")
def clip_art() -> Iterator[Features]:
    with np.load(CLIP_ART) as stored:
        yield Features(stored["image"], stored["text"])


def clusters(count: int = 400, number: int = 8, noise: float = 0.3, seed: int = 0) -> Features:
    """Return pairs of `number` kinds; two images of a kind are alike, and so are their captions."""
    generator = np.random.default_rng(seed)
    kind = np.arange(count) % number
    return Features(*(
        (generator.normal(size=(number, 16))[kind] + noise * generator.normal(size=(count, 16)))
        for _ in range(2)
    ))  # fmt: skip


def shuffled(count: int, share: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return which caption each image gets, and whether that is a wrong one."""
    order = np.arange(count)
    chosen = np.random.default_rng(seed).choice(count, int(share * count), replace=False)
    order[chosen] = np.roll(chosen, 1)
    return order, order != np.arange(count)


@pytest.mark.parametrize(("share", "least_auc"), [(0.2, 0.84), (0.4, 0.82), (0.6, 0.79)])
def test_permuted_captions_are_found(clip_art: Features, share: float, least_auc: float) -> None:
    order, wrong = shuffled(600, share)
    found = trust.estimate(clip_art.image, clip_art.text[order])
    assert roc_auc_score(~wrong, found.alpha) > least_auc
    assert share - 0.02 < found.share_wrong < share + 0.15
    assert found.alpha[~wrong].mean() > found.alpha[wrong].mean() + 0.2
    assert found.alpha.dtype == found.statistic.dtype == np.float32
    assert found.alpha.mean() == pytest.approx(1 - found.share_wrong, abs=0.05)


def test_without_wrong_pairs_trust_is_near_one_and_without_right_ones_near_zero(
    clip_art: Features,
) -> None:
    right = trust.estimate(*clip_art)
    assert right.share_wrong < 0.07 and right.alpha.mean() > 0.93
    order, _ = shuffled(600, 1.0)
    wrong = trust.estimate(clip_art.image, clip_art.text[order])
    assert wrong.share_wrong > 0.9 and wrong.alpha.mean() < 0.1


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7])
def test_clear_kinds_are_told_apart_almost_without_error(share: float) -> None:
    pairs = clusters()
    order, _ = shuffled(400, share, seed=1)
    wrong = order % 8 != np.arange(400) % 8  # A caption of the same kind is not wrong.
    found = trust.estimate(pairs.image, pairs.text[order])
    assert found.share_wrong == pytest.approx(wrong.mean() * 8 / 7, abs=0.13)
    assert ((found.alpha < 0.5) == wrong).mean() > 0.97


def slow_agreement(pairs: Features) -> np.ndarray:
    """Return how well image i fits text t, by the voters on i and by those on t: [2, n, n]."""
    image, text = (rows / np.linalg.norm(rows, axis=1, keepdims=True)
                   for rows in (each.astype(np.float64) for each in pairs))  # fmt: skip
    found = np.empty((2, len(image), len(image)))
    for direction, (alike, said) in enumerate(((image, text), (text, image))):
        similar = alike @ alike.T
        said = said - said.mean(axis=0)
        agreement = said @ said.T
        for row in range(len(image)):
            others = np.argsort(-np.delete(similar[row], row))[:30]
            nearest = others + (others >= row)
            votes = agreement[nearest].copy()
            votes[np.arange(30), nearest] = -np.inf  # None has a vote on itself.
            found[direction, row] = np.sort(votes, axis=0)[-10:].mean(axis=0)
    found[1] = found[1].T
    return found


def test_the_statistic_is_the_one_that_is_described(clip_art: Features) -> None:
    by_image, by_text = slow_agreement(clip_art)
    wrong = ~np.eye(600, dtype=bool)
    scaled = [each / each[wrong].std() for each in (by_image, by_text)]
    expected = np.mean(scaled, axis=0)
    found = trust.estimate(*clip_art)
    # The scale is measured on few draws; but for two factors the statistic is exact.
    parts = np.stack([by_image.diagonal(), by_text.diagonal()], axis=1)
    factors, *_ = np.linalg.lstsq(parts, found.statistic)
    np.testing.assert_allclose(parts @ factors, found.statistic, atol=2e-5)
    np.testing.assert_allclose(
        factors * [by_image[wrong].std(), by_text[wrong].std()], 0.5, rtol=0.1
    )
    assert found.null.shape == (600 * trust.NULL_DRAWS,)
    for quantile in (0.1, 0.5, 0.9):
        assert np.quantile(found.null, quantile) == pytest.approx(
            np.quantile(expected[wrong], quantile), abs=0.1
        )


def test_trust_goes_with_its_pair_in_any_order(clip_art: Features) -> None:
    captions, _ = shuffled(600, 0.4)
    pairs = Features(clip_art.image, clip_art.text[captions])
    order = np.random.default_rng(3).permutation(600)
    straight = trust.estimate(*pairs, reference=300)
    mixed = trust.estimate(pairs.image[order], pairs.text[order], reference=300)
    assert mixed.share_wrong == straight.share_wrong
    np.testing.assert_allclose(mixed.alpha, straight.alpha[order], atol=1e-5)
    np.testing.assert_allclose(mixed.statistic, straight.statistic[order], atol=1e-5)


def test_same_pairs_same_bits_and_another_seed_other_draws(clip_art: Features) -> None:
    first, again, other = (trust.estimate(*clip_art, seed=seed) for seed in (0, 0, 1))
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, two)
    # Nothing in the statistic is drawn but its scale.
    assert np.corrcoef(first.statistic, other.statistic)[0, 1] > 0.999
    assert (first.null != other.null).mean() > 0.9
    assert np.abs(first.alpha - other.alpha).mean() < 0.05


def test_features_may_lie_in_files_and_be_of_any_length(clip_art: Features, tmp_path: Path) -> None:
    expected = trust.estimate(*clip_art)
    mapped = []
    for name, rows in zip("ab", clip_art, strict=True):
        np.save(tmp_path / name, rows)
        mapped.append(np.load(tmp_path / f"{name}.npy", mmap_mode="r"))
    np.testing.assert_array_equal(trust.estimate(*mapped).alpha, expected.alpha)
    longer = trust.estimate(4.0 * clip_art.image.astype(np.float32), clip_art.text)
    np.testing.assert_allclose(longer.statistic, expected.statistic, atol=1e-5)


def test_neighbours_from_a_random_part(clip_art: Features) -> None:
    order, wrong = shuffled(600, 0.4)
    found = trust.estimate(clip_art.image, clip_art.text[order], reference=200, neighbors=15)
    assert roc_auc_score(~wrong, found.alpha) > 0.72
    assert 0.3 < found.share_wrong < 0.7


def test_blocks_do_not_show(clip_art: Features, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = trust.estimate(*clip_art)
    monkeypatch.setattr(trust, "BLOCK", 96)
    np.testing.assert_allclose(trust.estimate(*clip_art).statistic, whole.statistic, atol=1e-5)


def test_a_wrong_pair_does_not_confirm_itself_by_its_copies() -> None:
    pairs = clusters()
    order, _ = shuffled(400, 0.4, seed=1)
    text = pairs.text[order]
    suspect = int(np.flatnonzero(order % 8 != np.arange(400) % 8)[0])
    alone = trust.estimate(pairs.image, text)
    numbers = np.concatenate([np.arange(400), np.full(25, suspect)])
    copies = numbers == suspect
    often = trust.estimate(pairs.image[numbers], text[numbers])
    assert len(set(often.alpha[copies])) == 1 and often.alpha[suspect] < 0.5
    assert often.statistic[suspect] < alone.statistic[suspect] + 0.01
    # Nor by copies that rounding has made different.
    image = pairs.image[numbers]
    image[copies] *= 1 + 1e-7 * np.arange(copies.sum())[:, None]
    nearly = trust.estimate(image, text[numbers])
    assert nearly.statistic[copies].max() < alone.statistic[suspect] + 0.01


def test_one_caption_for_all_tells_nothing_and_breaks_nothing() -> None:
    pairs = clusters()
    found = trust.estimate(pairs.image, np.ones((400, 5)))
    assert found.share_wrong > 0.9 and found.alpha.mean() < 0.1
    assert np.isfinite(found.alpha).all() and (found.alpha >= 0).all() and (found.alpha <= 1).all()
    few = trust.estimate(pairs.image, pairs.text[np.arange(400) % 3])  # Many ties.
    assert (
        np.isfinite(few.alpha).all() and len(set(few.alpha[few.statistic == few.statistic[0]])) == 1
    )


def test_few_pairs_come_with_a_warning(clip_art: Features) -> None:
    few = trust.estimate(clip_art.image[:200], clip_art.text[:200])
    line = trust.describe_trust(few)
    assert line.startswith(f"estimated share of wrong pairs: {100 * few.share_wrong:.0f} %")
    assert "only 200 pairs" in line
    assert "only" not in trust.describe_trust(few._replace(alpha=np.ones(5000, np.float32)))


def test_fewer_than_31_pairs_are_refused() -> None:
    pairs = clusters(31)
    assert trust.estimate(*pairs).alpha.shape == (31,)
    with pytest.raises(ValueError, match=r"at least 31 different pairs.*found 30$"):
        trust.estimate(*(rows[:30] for rows in pairs))
    numbers = np.arange(90) % 20
    with pytest.raises(ValueError, match=r"at least 31 different pairs.*found 20$"):
        trust.estimate(pairs.image[numbers], pairs.text[numbers])


def test_wrong_input_is_refused() -> None:
    pairs = clusters(50)
    with pytest.raises(ValueError, match=r"\[50, 16\] and \[49, 16\]"):
        trust.estimate(pairs.image, pairs.text[:49])
    for value in (np.nan, np.inf):
        text = pairs.text.copy()
        text[37, 3] = value
        with pytest.raises(ValueError, match="row 37 "):
            trust.estimate(pairs.image, text)
    for name, value in (("neighbors", 0), ("best_share", 0.0), ("best_share", 1.5),
                        ("reference", 30)):  # fmt: skip
        with pytest.raises(ValueError, match=f"{name}={value}"):
            trust.estimate(*pairs, **{name: value})


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_two_groups_of_known_densities(share: float) -> None:
    """Wrong pairs N(0, 1), right ones N(3, 1): the probability has a closed form."""
    generator = np.random.default_rng(5)
    wrong = generator.random(20_000) < share
    statistic = generator.normal(size=20_000) + np.where(wrong, 0.0, 3.0)
    null = generator.normal(size=100_000)
    found = trust.wrong_share(statistic, null)
    assert found == pytest.approx(share, abs=0.03)
    rate = trust.false_discovery_rate(statistic, null, found)
    expected = share / (share + (1 - share) * np.exp(3 * statistic - 4.5))
    assert np.abs(rate - expected).mean() < 0.03
    order = np.argsort(statistic)
    assert (np.diff(rate[order]) <= 0).all() and rate.min() >= 0 and rate.max() <= 1


@settings(max_examples=50, deadline=None)
@given(data=st.data(), count=st.integers(1, 30))
def test_isotonic_regression_is_scikit_learns(data: st.DataObject, count: int) -> None:
    values = data.draw(hnp.arrays(float, count, elements=st.floats(-5, 5)))
    weights = data.draw(hnp.arrays(float, count, elements=st.floats(0.1, 10)))
    expected = IsotonicRegression(increasing=False).fit_transform(
        np.arange(count), values, sample_weight=weights
    )
    np.testing.assert_allclose(trust.non_increasing(values, weights), expected, atol=1e-9)
