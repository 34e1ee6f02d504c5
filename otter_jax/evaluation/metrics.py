"""Flat hit@k: the share of images among whose k best classes at least one is true.

It is DeViSE's and OTTER's FH@k (the released FAtK): several classes of an image may be true, one of
them is enough, and every image with a label counts the same. Recall@k of retrieval is the same
count. Ranks come from `otter_jax.evaluation.ranks`.
"""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np


def hit_at_k(ranks: np.ndarray, ks: Sequence[int]) -> dict[int, float]:
    """Return the share of ranks below each k.

    Args:
        ranks: int [n], from 0, of each image's best true class; only of images that have one.
        ks: values of k; one beyond the number of classes counts all of them.

    Returns:
        `{k: share}`, shares in [0, 1].

    Raises:
        ValueError: if there are no ranks.
    """
    if not len(ranks):
        raise ValueError("not one image has a label: there is nothing to count")
    return {k: float((ranks < k).mean()) for k in ks}


def telling(ks: Sequence[int], num_ranked: int) -> list[int]:
    """Return the values of k that say something: all below the number of what is ranked, or 1."""
    return [k for k in ks if k < num_ranked] or [1]


def chance_hit_at_k(num_classes: int, labels: np.ndarray, ks: Sequence[int]) -> dict[int, float]:
    """Return the expected flat hit@k of a random order of the classes.

    For an image with m true classes among C it is 1 - binomial(C - m, k) / binomial(C, k).

    Args:
        num_classes: C.
        labels: int [n, L], the true classes, padded with -1. Images without any are not counted.
        ks: values of k.
    """
    counts = [len({label for label in row if label >= 0}) for row in labels.tolist()]
    return chance_by_count(num_classes, counts, ks)


def chance_by_count(num_classes: int, counts: Sequence[int], ks: Sequence[int]) -> dict[int, float]:
    """Return the same of images of which only the number of true classes is known, 0 for none."""
    images = Counter(map(int, counts))
    images.pop(0, None)
    total = images.total()

    def hit(true: int, k: int) -> float:
        k = min(k, num_classes)
        return 1.0 - math.comb(num_classes - true, k) / math.comb(num_classes, k)

    return {
        k: sum(count * hit(true, k) for true, count in images.items()) / total
        if total
        else math.nan
        for k in ks
    }
