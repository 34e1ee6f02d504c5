"""What a model answers for some images: the material of the picture of hits and misses."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from otter_jax.embedding.encoder import Encoder
from otter_jax.embedding.image_collections import ImageCollection
from otter_jax.evaluation.ranks import best_true_ranks
from otter_jax.evaluation.zero_shot import rank_classes

LOOKED_AT = 2000  # Images among which hits and misses are looked for.
NAMES_SHOWN = 5


class Answers(NamedTuple):
    """Some images and what a model ranks first for them."""

    images: np.ndarray  # uint8 [n, S, S, 3]
    names: Sequence[str]  # All that is ranked.
    truth: list[str]  # [n], several separated by " | ".
    ranked: np.ndarray  # int [n, 5], best first; fewer where fewer are ranked.
    scores: np.ndarray  # float [n, 5]


def choose(ranks: np.ndarray, count: int) -> np.ndarray:
    """Choose the images to show: hits first, then misses, half of each if there are enough.

    >>> choose(np.array([0, 3, 0, 1, 0]), 4).tolist()
    [0, 4, 1, 3]

    Args:
        ranks: int [n], of each image's best true name.
        count: how many images are wanted.

    Returns:
        int [min(count, n)].
    """
    hits, misses = np.flatnonzero(ranks == 0), np.flatnonzero(ranks > 0)
    num_misses = min(len(misses), max(count // 2, count - len(hits)))
    num_hits = min(len(hits), count - num_misses)
    return np.concatenate([spread(hits, num_hits), spread(misses, num_misses)])


def spread(items: np.ndarray, count: int) -> np.ndarray:
    """Return at most `count` items, evenly spread."""
    return items[np.linspace(0, len(items) - 1, min(count, len(items))).astype(int)]


def answer(
    collection: ImageCollection,
    encoder: Encoder,
    image_features: np.ndarray,
    name_features: np.ndarray,
    names: Sequence[str],
    truth: np.ndarray,
    count: int,
) -> Answers:
    """Return the names that rank best for some images, half hits and half misses.

    Args:
        collection: the images.
        encoder: for their transform.
        image_features: float [n, d] of all images, unit rows; row i belongs to image i.
        name_features: float [m, d], unit rows.
        names: [m], what is shown for each.
        truth: int [n, L], the true names of every image, padded with -1.
        count: images wanted.
    """
    candidates = spread(np.flatnonzero((truth >= 0).any(axis=1)), LOOKED_AT)
    ranks = best_true_ranks(image_features[candidates], name_features, truth[candidates], 1)
    chosen = candidates[choose(ranks, count)]
    ranked, scores = rank_classes(image_features[chosen], name_features, NAMES_SHOWN)
    return Answers(
        images=np.stack([collection.load(int(number), encoder) for number in chosen]),
        names=names,
        truth=[" | ".join(names[true] for true in truth[n] if true >= 0) for n in chosen],
        ranked=ranked,
        scores=scores,
    )
