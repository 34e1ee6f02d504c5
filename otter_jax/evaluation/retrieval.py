"""Retrieval among pairs: does an image find its caption, and a caption its image?"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from otter_jax.evaluation.zero_shot import check_unit_rows, padded_blocks

KS = (1, 5, 10)


def recalls(
    image_features: np.ndarray,
    text_features: np.ndarray,
    ks: Sequence[int] = KS,
    *,
    block: int = 1024,
) -> dict[str, float]:
    """Recall@k in both directions; row i of both is one pair.

    A pair's rank is the number of candidates that are more similar, plus equally similar ones with
    a lower number.

    Args:
      image_features: float [n, d], unit rows.
      text_features: float [n, d], unit rows.
      ks: values of k.
      block: queries a matrix product, so that n x n similarities never exist at once.

    Returns:
      `{"i2t_recall@1": share, ..., "t2i_recall@10": share}`.

    Raises:
      ValueError: if rows are not unit rows, or the numbers or widths differ.
    """
    check_unit_rows("image features", image_features)
    check_unit_rows("text features", text_features)
    if image_features.shape != text_features.shape:
        raise ValueError(f"images {image_features.shape} and texts {text_features.shape} differ")
    results = {}
    for name, queries, keys in (
        ("i2t", image_features, text_features),
        ("t2i", text_features, image_features),
    ):
        ranks = pair_ranks(queries, keys, block)
        results |= {f"{name}_recall@{k}": float((ranks < k).mean()) for k in ks}
    return results


def pair_ranks(queries: np.ndarray, keys: np.ndarray, block: int = 1024) -> np.ndarray:
    """The rank, from 0, of key i for query i, int [n]; arguments as in `recalls`."""
    block = min(block, len(queries))
    keys_on_device = jnp.asarray(keys, jnp.float32)
    ranks = [
        np.asarray(_ranks(rows, keys_on_device, start * block))[:count]
        for start, (rows, count) in enumerate(padded_blocks(np.asarray(queries, np.float32), block))
    ]
    return np.concatenate(ranks)


@jax.jit
def _ranks(rows: jax.Array, keys: jax.Array, start: int) -> jax.Array:
    similarity = jnp.matmul(rows, keys.T, precision="highest")
    # Padded rows of the last block point beyond the keys; what they give is cut off.
    own = jnp.minimum(start + jnp.arange(len(rows)), len(keys) - 1)[:, None]
    own_similarity = jnp.take_along_axis(similarity, own, axis=1)
    better = similarity > own_similarity
    equal_and_lower = (similarity == own_similarity) & (jnp.arange(len(keys))[None] < own)
    return (better | equal_and_lower).sum(axis=1)


def chance_recalls(num_pairs: int, ks: Sequence[int] = KS) -> dict[str, float]:
    """Expected recalls of a random order: k / n."""
    return {f"{name}_recall@{k}": min(k / num_pairs, 1.0) for name in ("i2t", "t2i") for k in ks}
