"""Zero-shot classification: rank all class names for every image by cosine similarity."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from otter_jax.evaluation import metrics
from otter_jax.evaluation.ranks import best_true_ranks, check_unit_rows

KS = (1, 2, 5, 10)
RANKED_AT_ONCE = 64


def evaluate(
    image_features: np.ndarray,
    bank: np.ndarray,
    labels: np.ndarray,
    ks: Sequence[int] | None = None,
    *,
    mesh: Mesh | None = None,
) -> dict[str, float]:
    """Return the flat hit@k of images against classes; images without a label are not counted.

    Args:
        image_features: float [n, d], unit rows.
        bank: float [C, d], unit rows.
        labels: int [n, L], the true classes of every image, padded with -1.
        ks: values of k; those of `KS` that say something if not given.
        mesh: devices to work on; all of them if not given.

    Returns:
        `{"hit@1": share, ...}`.

    Raises:
        ValueError: for rows that are not unit rows, labels out of range, or no label at all.
    """
    ks = metrics.telling(KS, len(bank)) if ks is None else ks
    ranks = best_true_ranks(image_features, bank, labels, max(ks), mesh=mesh)
    found = metrics.hit_at_k(ranks[(labels >= 0).any(axis=1)], ks)
    return {f"hit@{k}": share for k, share in found.items()}


def rank_classes(
    image_features: np.ndarray, bank: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the k best classes of every image; of equal ones the lower number comes first.

    This sorts, so it is for looking at some images; scores come from `evaluate`.

    Args:
        image_features: float [n, d], unit rows.
        bank: float [C, d], unit rows.
        k: how many; all C where there are fewer.

    Returns:
        int32 [n, k] and their cosine similarities float32 [n, k], best first.

    Raises:
        ValueError: if rows are not unit rows, or the widths differ.
    """
    check_unit_rows("image features", image_features)
    check_unit_rows("class bank", bank)
    if image_features.shape[1] != bank.shape[1]:
        raise ValueError(f"image features of width {image_features.shape[1]}, bank {bank.shape[1]}")
    classes = jnp.asarray(bank, jnp.float32)
    blocks = (
        jnp.asarray(image_features[start : start + RANKED_AT_ONCE], jnp.float32)
        for start in range(0, len(image_features), RANKED_AT_ONCE)
    )
    parts = [_top(rows, classes, min(k, len(bank))) for rows in blocks]
    scores, ranked = (np.concatenate(part) for part in zip(*parts, strict=True))
    return ranked.astype(np.int32), scores


@functools.partial(jax.jit, static_argnums=2)
def _top(rows: jax.Array, bank: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    return jax.lax.top_k(jnp.matmul(rows, bank.T, precision="highest"), k)
