"""Trust in rounds: against regressions of scikit-learn, planted pairs, and known wrong captions."""

from collections.abc import Iterator

import numpy as np
import pytest
from embedding.test_trust import CLIP_ART, Features, clusters, shuffled
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score

from otter_jax.embedding import trust, trust_rounds


@pytest.fixture(scope="module")
def clip_art() -> Iterator[Features]:
    with np.load(CLIP_ART) as stored:
        yield Features(stored["image"], stored["text"])


@pytest.fixture(scope="module")
def noisy(clip_art: Features) -> tuple[Features, np.ndarray]:
    """Return pairs with 60 % of the captions shuffled, and which are wrong."""
    order, wrong = shuffled(600, 0.6)
    return Features(clip_art.image, clip_art.text[order]), wrong


def sides_of(pairs: Features) -> tuple[trust.Side, trust.Side]:
    """Return centred unit rows as the estimate makes them."""
    rows = [trust.unit_rows(each) for each in pairs]
    everyone = np.arange(len(rows[0]))
    return tuple(
        trust.Side(each, unit.mean(axis=0), everyone)
        for each, unit in zip(pairs, rows, strict=True)
    )


def test_no_rounds_are_the_estimate_from_neighbours(noisy: tuple[Features, np.ndarray]) -> None:
    straight = trust.estimate(*noisy[0], seed=3)
    for one, two in zip(
        trust_rounds.estimate_in_rounds(*noisy[0], rounds=0, seed=3), straight, strict=True
    ):
        np.testing.assert_array_equal(one, two)


def test_rounds_find_more_of_what_is_wrong(noisy: tuple[Features, np.ndarray]) -> None:
    pairs, wrong = noisy
    single, double = (trust_rounds.estimate_in_rounds(*pairs, rounds=rounds) for rounds in (0, 2))
    areas = [roc_auc_score(~wrong, found.alpha) for found in (single, double)]
    assert areas[1] > areas[0] + 0.005
    assert abs(double.share_wrong - 0.6) < abs(single.share_wrong - 0.6) + 0.02
    assert double.alpha.dtype == np.float32
    assert double.alpha.min() >= 0 and double.alpha.max() <= 1


def test_maps_are_ridge_regressions_on_all_other_folds() -> None:
    pairs = clusters(90)
    image, text = sides = sides_of(pairs)
    fold, weights = np.arange(90) % 3, np.random.default_rng(1).random(90)
    maps = trust_rounds.fit_maps(sides, fold, weights)
    shown, said = image.rows(np.arange(90)), text.rows(np.arange(90))
    for each in range(3):
        others = fold != each
        for found, rows, goals in ((maps.to_text, shown, said), (maps.to_image, said, shown)):
            weighted = weights[others, None] * rows[others] ** 2
            penalty = trust_rounds.RIDGE * weighted.sum() / rows.shape[1]
            twin = Ridge(penalty, fit_intercept=False)
            twin.fit(rows[others], goals[others], sample_weight=weights[others])
            np.testing.assert_allclose(found[each], twin.coef_.T, atol=1e-4)


def test_no_pair_has_taught_what_it_is_judged_by() -> None:
    """Planted: a caption that only this pair's image goes with would be learnt by heart."""
    pairs = clusters(90)
    fold = np.arange(90) % 3
    planted = Features(pairs.image.copy(), pairs.text.copy())
    planted.image[7], planted.text[7] = 50 * np.eye(16)[3], 50 * np.eye(16)[5]
    # The same centres for both, since a mean is of all images, whatever their captions.
    before = sides_of(pairs)
    after = tuple(
        trust.Side(features, side.mean, np.arange(90))
        for features, side in zip(planted, before, strict=True)
    )
    maps = [trust_rounds.fit_maps(sides, fold, np.ones(90)) for sides in (before, after)]
    for one, two in zip(*maps, strict=True):
        np.testing.assert_allclose(one[1], two[1], atol=1e-6)  # The planted pair's own fold.
        assert np.abs(one[0] - two[0]).max() > 0.01  # It does teach the others.
    own = np.array([7])
    judged = trust_rounds.predicted_agreement(after, maps[1], fold, own, own)
    by_heart = trust_rounds.predicted_agreement(after, maps[1], np.zeros(90, int), own, own)
    assert judged.max() < 0.4 < by_heart.min()


def test_trust_goes_with_its_pair_in_any_order(noisy: tuple[Features, np.ndarray]) -> None:
    pairs, order = noisy[0], np.random.default_rng(3).permutation(600)
    straight = trust_rounds.estimate_in_rounds(*pairs, reference=300)
    mixed = trust_rounds.estimate_in_rounds(pairs.image[order], pairs.text[order], reference=300)
    np.testing.assert_allclose(mixed.statistic, straight.statistic[order], atol=1e-4)
    np.testing.assert_allclose(mixed.alpha, straight.alpha[order], atol=1e-3)


def test_folds_are_equally_large_and_hold_all_copies_of_a_pair() -> None:
    keys = np.random.default_rng(0).permutation(np.arange(103, dtype=np.uint64) % 97)
    fold = trust_rounds.assign_folds(keys, 4)
    assert all(len(set(fold[keys == key])) == 1 for key in keys)
    sizes = np.bincount(trust_rounds.assign_folds(np.unique(keys), 4))
    assert sizes.tolist() == [25, 24, 24, 24]


def test_captions_of_others_are_of_the_same_fold() -> None:
    fold, chosen = np.arange(60) % 3, np.random.default_rng(0).permutation(60)[:50]
    images, texts = trust_rounds.with_mismatched(chosen, fold)
    np.testing.assert_array_equal(images[:60], texts[:60])
    assert len(images) == 60 + 50 * trust.NULL_DRAWS
    assert (images[60:] != texts[60:]).all()
    np.testing.assert_array_equal(fold[images], fold[texts])
    assert np.bincount(texts[60:], minlength=60)[chosen].tolist() == [trust.NULL_DRAWS] * 50


def test_one_caption_for_all_breaks_nothing() -> None:
    found = trust_rounds.estimate_in_rounds(clusters(90).image, np.ones((90, 5)), rounds=1)
    assert np.isfinite(found.alpha).all() and found.alpha.mean() < 0.2


def test_too_few_pairs_for_the_folds_are_refused() -> None:
    pairs = clusters(50)
    assert trust_rounds.estimate_in_rounds(*pairs, rounds=1, folds=8).alpha.shape == (50,)
    with pytest.raises(ValueError, match="in 9 folds needs at least 54 different pairs, found 50"):
        trust_rounds.estimate_in_rounds(*pairs, rounds=1, folds=9)
    with pytest.raises(ValueError, match="folds=1; there must be at least 2"):
        trust_rounds.estimate_in_rounds(*pairs, rounds=1, folds=1)
    with pytest.raises(ValueError, match="at least 31 different pairs"):
        trust_rounds.refuse_too_few_in_folds(30, 30, 0, 5)
    trust_rounds.refuse_too_few_in_folds(31, 30, 0, 99)
