"""Retrieval: does an image find one of its captions, and a caption its image?"""

from collections.abc import Sequence

import numpy as np
from jax.sharding import Mesh

from otter_jax.evaluation import metrics
from otter_jax.evaluation.ranks import MISSING, best_true_ranks

KS = (1, 5, 10)


def recalls(
    image_features: np.ndarray,
    text_features: np.ndarray,
    image_of_text: np.ndarray | None = None,
    ks: Sequence[int] = KS,
    *,
    mesh: Mesh | None = None,
) -> dict[str, float]:
    """Return recall@k in both directions, in blocks: never all similarities at once.

    Image to text counts an image as found if any of its captions is among the k best texts, as is
    customary for COCO and Flickr30k; text to image counts every caption. Of equally similar
    candidates the one with the lower number comes first.

    Args:
        image_features: float [n, d], unit rows.
        text_features: float [m, d], unit rows.
        image_of_text: int [m], the image that each text belongs to; text i to image i if not given.
        ks: values of k.
        mesh: devices to work on; all of them if not given.

    Returns:
        `{"i2t_recall@1": share, ..., "t2i_recall@10": share}`. Images without a text are not
        counted.

    Raises:
        ValueError: for rows that are not unit rows, or numbers or widths that do not fit.
    """
    if image_of_text is None:
        if len(image_features) != len(text_features):
            raise ValueError(
                f"{len(image_features)} images and {len(text_features)} texts differ: "
                "image_of_text should say what belongs to what"
            )
        image_of_text = np.arange(len(text_features))
    texts = texts_of_images(image_of_text, len(image_features))
    results = {}
    for name, queries, keys, truth in (
        ("i2t", image_features, text_features, texts),
        ("t2i", text_features, image_features, image_of_text[:, None]),
    ):
        ranks = best_true_ranks(queries, keys, truth, max(ks), mesh=mesh)
        found = metrics.hit_at_k(ranks[(truth >= 0).any(axis=1)], ks)
        results |= {f"{name}_recall@{k}": share for k, share in found.items()}
    return results


def texts_of_images(image_of_text: np.ndarray, num_images: int) -> np.ndarray:
    """Return the texts of every image, int [num_images, most], padded with -1.

    >>> texts_of_images(np.array([0, 0, 1]), 2).tolist()
    [[0, 1], [2, -1]]

    Raises:
        ValueError: for an image outside of [0, num_images).
    """
    wrong = (image_of_text < 0) | (image_of_text >= num_images)
    if wrong.any():
        text = int(np.flatnonzero(wrong)[0])
        raise ValueError(
            f"text {text} belongs to image {image_of_text[text]}: there are {num_images}"
        )
    order = np.argsort(image_of_text, kind="stable")
    counts = np.bincount(image_of_text, minlength=num_images)
    column = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    texts = np.full((num_images, counts.max(initial=1)), MISSING, np.int64)
    texts[image_of_text[order], column] = order
    return texts


def chance_recalls(image_of_text: np.ndarray, num_images: int) -> dict[str, float]:
    """Return the expected recalls of a random order."""
    texts = texts_of_images(image_of_text, num_images)
    i2t = metrics.chance_hit_at_k(len(image_of_text), texts, KS)
    t2i = {k: min(k / num_images, 1.0) for k in KS}
    return {
        f"{name}_recall@{k}": share
        for name, shares in (("i2t", i2t), ("t2i", t2i))
        for k, share in shares.items()
    }
