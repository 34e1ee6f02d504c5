"""Pair trust, estimated again: by maps between images and captions that other pairs have taught.

The first estimate (trust.py) asks how well a pair agrees with its neighbours, from towers that know
nothing of each other. What it finds is enough to teach them something: a ridge regression from
image features to caption features, and one back, in which each pair weighs by its trust. How well a
caption fits what is predicted from its image, and the image what is predicted from its caption, are
two more parts of the pair's statistic. They give a better estimate, that one better maps, and so
on.

No pair is judged by maps that it has taught: the pairs are divided into folds, and those of a fold
are judged by the maps of all others (cross-fitting). So are the images with the captions of others
from which the null distribution is known: both are of one fold. What remains is that the others'
weights were estimated with this pair among their neighbours.

The maps are linear and in closed form: nothing is drawn, nothing is tuned, and a round costs about
as much as the products of all features with themselves.
"""

from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from otter_jax.embedding import trust
from otter_jax.embedding.trust import Side, Trust, row_blocks, unit_rows

FOLDS = 5
RIDGE = 0.1  # Penalty, in mean eigenvalues of the features' weighted second moments.
LEAST_WEIGHT = 1e-3  # So that there is a map where no pair is trusted.


class Maps(NamedTuple):
    """What each fold is judged by: linear maps between centred unit features."""

    to_text: np.ndarray  # float32 [folds, d, e].
    to_image: np.ndarray  # float32 [folds, e, d].


def estimate_in_rounds(
    image_features: np.ndarray,
    text_features: np.ndarray,
    *,
    rounds: int = 2,
    folds: int = FOLDS,
    neighbors: int = trust.NEIGHBORS,
    best_share: float = 1 / 3,
    reference: int = 100_000,
    seed: int = 0,
    mesh: Mesh | None = None,
) -> Trust:
    """Estimate for every pair the probability that its caption is right.

    The same pairs get the same trust in whatever order they come, to rounding, and copies of a pair
    are in its fold.

    Args:
        image_features: float [N, d], of any precision and length.
        text_features: float [N, e], of the same pairs.
        rounds: how often it is estimated again; 0 for `trust.estimate`.
        folds: into how many parts the pairs are divided, at least 2.
        neighbors: as in `trust.estimate`, and all that follow.
        best_share: the share of them that has a vote.
        reference: most pairs among which they are looked for.
        seed: of what is drawn at random, the folds among them.
        mesh: devices to split the search for neighbours over; all of them if not given.

    Raises:
        ValueError: for what `trust.estimate` refuses, or too few different pairs for the folds.
    """
    options = {"neighbors": neighbors, "best_share": best_share, "reference": reference}
    features = (image_features, text_features)
    if rounds == 0:
        return trust.estimate(*features, **options, seed=seed, mesh=mesh)
    found = trust.find_neighborhoods(*features, **options, seed=seed, mesh=mesh)
    fold = assign_folds(found.keys, folds)
    images, texts = with_mismatched(found.chosen, fold)
    by_neighbors = found.agreement(images, texts)
    estimated = trust.judge(*np.split(by_neighbors, [len(fold)]))
    for _ in range(rounds):
        maps = fit_maps(found.sides, fold, estimated.alpha)
        by_maps = predicted_agreement(found.sides, maps, fold, images, texts)
        agreement = np.concatenate([by_neighbors, by_maps], axis=1)
        estimated = trust.judge(*np.split(agreement, [len(fold)]))
    return estimated


def refuse_too_few_in_folds(count: int, neighbors: int, rounds: int, folds: int) -> None:
    """Refuse so few different pairs that neighbours or folds are too small (ValueError)."""
    trust.refuse_too_few(count, neighbors)
    least = folds * (trust.NULL_DRAWS + 1)
    if rounds and count < least:
        raise ValueError(
            f"pair trust in {folds} folds needs at least {least} different pairs, found {count}; "
            "set fewer folds, or rounds=0"
        )


def assign_folds(keys: np.ndarray, folds: int) -> np.ndarray:
    """Return the fold of each pair, int [N]; equal pairs are in one, all are equally large.

    Args:
        keys: uint64 [N], random, equal for equal pairs.
        folds: how many, at least 2.

    Raises:
        ValueError: if there are fewer, or too few different pairs.
    """
    if folds < 2:
        raise ValueError(f"pair trust: folds={folds}; there must be at least 2")
    distinct, place = np.unique(keys, return_inverse=True)
    refuse_too_few_in_folds(len(distinct), 0, 1, folds)
    return place % folds


def with_mismatched(chosen: np.ndarray, fold: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return whose image and whose caption to compare: each pair's own, then those of others.

    Args:
        chosen: int [R], distinct pairs in a random order.
        fold: int [N] of every pair.

    Returns:
        Numbers of pairs, int [N + M] each; both are of one fold.
    """
    images = texts = np.arange(len(fold))
    members = [chosen[fold[chosen] == each] for each in range(fold.max() + 1)]
    for shift in range(1, trust.NULL_DRAWS + 1):
        images = np.concatenate([images, *members])
        texts = np.concatenate([texts, *(np.roll(each, shift) for each in members)])
    return images, texts


def fit_maps(sides: tuple[Side, Side], fold: np.ndarray, weights: np.ndarray) -> Maps:
    """Return, for each fold, ridge regressions on all pairs but those of this fold.

    Args:
        sides: images and captions.
        fold: int [N].
        weights: [N], what each pair weighs, in [0, 1].
    """
    image, text = sides
    d, e, folds = len(image.mean), len(text.mean), fold.max() + 1
    images, texts, both = (np.zeros((folds, *shape)) for shape in ((d, d), (e, e), (d, e)))
    for block in row_blocks(len(fold), (image.features, text.features), "maps of pairs"):
        shown, said = image.rows(block), text.rows(block)
        for each in range(folds):
            mine = fold[block] == each
            weight = np.maximum(weights[block][mine], LEAST_WEIGHT).astype(np.float32)[:, None]
            images[each] += (weight * shown[mine]).T @ shown[mine]
            texts[each] += (weight * said[mine]).T @ said[mine]
            both[each] += (weight * shown[mine]).T @ said[mine]
    # Without a fold's own moments, what is left is that of all the others.
    images, texts, both = (each.sum(axis=0) - each for each in (images, texts, both))
    return Maps(
        np.stack([_ridge(*each) for each in zip(images, both, strict=True)]),
        np.stack([_ridge(each, cross.T) for each, cross in zip(texts, both, strict=True)]),
    )


def _ridge(moments: np.ndarray, cross: np.ndarray) -> np.ndarray:
    """Return the map [d, e] that minimises the squared error and its own squared norm."""
    penalty = max(RIDGE * np.trace(moments) / len(moments), 1e-12)
    return np.linalg.solve(moments + penalty * np.eye(len(moments)), cross).astype(np.float32)


def predicted_agreement(
    sides: tuple[Side, Side],
    maps: Maps,
    fold: np.ndarray,
    images: np.ndarray,
    texts: np.ndarray,
) -> np.ndarray:
    """Return how well images and texts fit what is predicted from one another.

    Args:
        sides: images and captions.
        maps: of each fold.
        fold: int [N].
        images: int [n], numbers of pairs.
        texts: int [n], each of the fold of its image.

    Returns:
        float32 [n, 2]: cosines of the text with what the image predicts, and the other way round.
    """
    image, text = sides
    found = np.empty((len(images), 2), np.float32)
    for block in row_blocks(len(images), (image.features, text.features), "maps applied to pairs"):
        shown, said = image.rows(images[block]), text.rows(texts[block])
        folds = fold[images[block]]
        found[block, 0] = _cosines(_apply(maps.to_text, folds, shown), said)
        found[block, 1] = _cosines(_apply(maps.to_image, folds, said), shown)
    return found


def _apply(maps: np.ndarray, folds: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return rows [n, d] under the maps [folds, d, e] of their folds [n]: [n, e]."""
    predicted = np.empty((len(rows), maps.shape[2]), np.float32)
    for each in np.unique(folds):
        mine = folds == each
        predicted[mine] = rows[mine] @ maps[each]
    return predicted


def _cosines(rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    return np.einsum("nd,nd->n", unit_rows(rows), unit_rows(others))
