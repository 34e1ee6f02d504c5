"""Flat hit@k: the share of images among whose k best classes at least one is true."""

import math
from collections.abc import Sequence

import numpy as np


def hit_at_k(ranked: np.ndarray, labels: np.ndarray, ks: Sequence[int]) -> dict[int, float]:
    """Flat hit@k with several true classes an image (OTTER's FH@k; the released FAtK).

    Args:
      ranked: int [n, K], the best classes of every image, best first.
      labels: int [n, L], the true classes, padded with -1. Images without any are not counted.
      ks: values of k; one beyond K counts all K.

    Returns:
      `{k: share}`, shares in [0, 1]; NaN where no image has a label.

    Raises:
      ValueError: if the numbers of images differ.
    """
    if len(ranked) != len(labels):
        raise ValueError(f"{len(ranked)} rankings for {len(labels)} images with labels")
    labelled = (labels >= 0).any(axis=1)
    if not labelled.any():
        return {k: math.nan for k in ks}
    ranked, labels = ranked[labelled], labels[labelled]
    equal = ranked[:, :, None] == labels[:, None, :]
    true = (equal & (labels >= 0)[:, None, :]).any(axis=2)
    return {k: float(true[:, :k].any(axis=1).mean()) for k in ks}


def chance_hit_at_k(num_classes: int, labels: np.ndarray, ks: Sequence[int]) -> dict[int, float]:
    """Expected flat hit@k of a random order of the classes.

    For an image with m true classes among C it is 1 - binomial(C - m, k) / binomial(C, k).
    """
    counts = [len({label for label in row if label >= 0}) for row in labels.tolist()]
    counts = [count for count in counts if count]
    if not counts:
        return {k: math.nan for k in ks}

    def hit(true: int, k: int) -> float:
        k = min(k, num_classes)
        return 1.0 - math.comb(num_classes - true, k) / math.comb(num_classes, k)

    return {k: float(np.mean([hit(true, k) for true in counts])) for k in ks}
