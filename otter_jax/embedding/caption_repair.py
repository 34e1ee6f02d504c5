"""What to teach a distrusted pair: the captions of trusted pairs whose images are like its own.

A pair whose caption is likely wrong has a good image all the same, and weighting by trust
(trust.py) leaves it unused. Here its caption gives way, by as much as it is distrusted, to the mean
of what its nearest trusted images are called. That says less than a right caption, so that the pair
also weighs less.
"""

from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from otter_jax import sharding
from otter_jax.embedding.nearest_rows import nearest_rows
from otter_jax.embedding.trust import unit_rows

TRUSTED = 0.5  # Pairs above it may lend their captions.
REPAIRED_WEIGHT = 0.2  # Of a pair that has nothing of its own caption; chosen on validation pairs.


class Repaired(NamedTuple):
    """What N pairs are taught instead."""

    text: np.ndarray  # float32 [N, e], each as long as it was.
    trust: np.ndarray  # float32 [N] in [REPAIRED_WEIGHT, 1].


def repair(
    image_features: np.ndarray,
    text_features: np.ndarray,
    alpha: np.ndarray,
    *,
    captions: int = 5,
    reference: int = 100_000,
    seed: int = 0,
    mesh: Mesh | None = None,
) -> Repaired:
    """Replace captions as far as they are distrusted.

    Args:
        image_features: float [N, d], of any length.
        text_features: float [N, e], of the same pairs.
        alpha: [N] in [0, 1], the probability that each caption is right (trust.Trust).
        captions: of how many trusted neighbours the mean is taken, at least 1.
        reference: most pairs among which neighbours are looked for; of more, that many are drawn.
        seed: of that draw.
        mesh: devices to split the search over; all of them if not given.

    Raises:
        ValueError: if captions is below 1, or there are not enough trusted pairs.
    """
    trusted = np.flatnonzero(alpha >= TRUSTED)
    if captions < 1:
        raise ValueError(f"trust.captions={captions}: it must be at least 1")
    if len(trusted) <= captions:
        raise ValueError(
            f"captions cannot be repaired: {len(trusted)} pairs are trusted by {TRUSTED} or more, "
            f"and {captions + 1} are needed for trust.captions={captions}"
        )
    if len(trusted) > reference:
        drawn = np.random.default_rng(seed).choice(len(trusted), reference, replace=False)
        trusted = trusted[np.sort(drawn)]
    mesh = mesh or sharding.make_mesh()
    images, texts = unit_rows(image_features), unit_rows(text_features)
    keys = sharding.put_state(mesh, images[trusted])
    _, places = nearest_rows(images, keys, captions + 1, mesh)
    neighbors = trusted[places]
    others = neighbors != np.arange(len(alpha))[:, None]  # A pair lends itself nothing.
    kept = np.argsort(~others, axis=1, kind="stable")[:, :captions]
    neighbors = np.take_along_axis(neighbors, kept, axis=1)
    borrowed = unit_rows(texts[neighbors].mean(axis=1))
    alpha = np.asarray(alpha, np.float32)
    mixed = unit_rows(alpha[:, None] * texts + (1.0 - alpha[:, None]) * borrowed)
    lengths = np.linalg.norm(np.asarray(text_features, np.float32), axis=1, keepdims=True)
    return Repaired(lengths * mixed, REPAIRED_WEIGHT + (1.0 - REPAIRED_WEIGHT) * alpha)
