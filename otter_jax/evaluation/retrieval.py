"""Retrieval: does an image find one of its captions, and a caption its image?

Counted in two ways. The customary one, of COCO and Flickr30k, has an image's own captions as the
right ones. But where another pair has the same caption word for word, an image that finds it has
found nothing wrong; so with `EqualItems` whatever is equal to a right answer is right as well.
"""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from otter_jax.evaluation import metrics
from otter_jax.evaluation.ranks import MISSING, best_true_ranks

KS = (1, 5, 10)
EQUAL = "equal_"  # Prefix of the metrics for which equal answers count as well.


class EqualItems(NamedTuple):
    """Which images are equal, and which texts.

    Attributes:
        images: int [n], of each image the first one that is equal to it, mostly itself.
        texts: int [m], the same of texts.
    """

    images: np.ndarray
    texts: np.ndarray

    @property
    def exist(self) -> bool:
        """Whether there are any: without, both ways to count are the same."""
        return any((first != np.arange(len(first))).any() for first in self)


def first_equal(items: Sequence[Hashable]) -> np.ndarray:
    """Return for each item the place of the first one that is equal to it.

    >>> first_equal(["a", "b", "a"]).tolist()
    [0, 1, 0]
    """
    first: dict[Hashable, int] = {}
    return np.array([first.setdefault(each, place) for place, each in enumerate(items)], np.int64)


def recalls(
    image_features: np.ndarray,
    text_features: np.ndarray,
    image_of_text: np.ndarray | None = None,
    ks: Sequence[int] | None = None,
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
        ks: values of k; those of `KS` that say something if not given.
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
    i2t = _ranks(image_features, text_features, texts, ks, mesh)
    t2i = _ranks(text_features, image_features, image_of_text[:, None], ks, mesh)
    return _shares("i2t", i2t[texts[:, 0] >= 0], len(text_features), ks) | _shares(
        "t2i", t2i, len(image_features), ks
    )


def recalls_with_equal(
    image_features: np.ndarray,
    text_features: np.ndarray,
    image_of_text: np.ndarray,
    equal: EqualItems,
    ks: Sequence[int] | None = None,
    *,
    mesh: Mesh | None = None,
) -> dict[str, float]:
    """Return the same as `recalls` where what equals a right answer is right as well.

    A text is right for an image if the image, or one equal to it, has this text, or one equal to
    it. Equal items all count as queries, and all are candidates.

    Args:
        image_features: as in `recalls`; of equal images the first one's count.
        text_features: as in `recalls`; of equal texts the first one's count.
        image_of_text: int [m], the image that each text belongs to.
        equal: which are equal.
        ks: as in `recalls`.
        mesh: as in `recalls`.
    """
    images, texts = image_features[equal.images], text_features[equal.texts]
    pairs = np.stack([equal.images[image_of_text], equal.texts])
    i2t = _ranks_of_first(images, texts, pairs, ks, mesh)
    t2i = _ranks_of_first(texts, images, pairs[::-1], ks, mesh)
    counted = np.unique(image_of_text)
    found = _shares("i2t", i2t[equal.images[counted]], len(texts), ks)
    found |= _shares("t2i", t2i[equal.texts], len(images), ks)
    return {EQUAL + name: share for name, share in found.items()}


def _ranks_of_first(
    queries: np.ndarray,
    keys: np.ndarray,
    pairs: np.ndarray,
    ks: Sequence[int] | None,
    mesh: Mesh | None,
) -> np.ndarray:
    """Return ranks, as `best_true_ranks`, of queries that are the first of their equals.

    Equal keys are equally similar, and the lowest number comes first: the first one's rank is that
    of the best. Queries of about as many answers are asked together, lest one caption of thousands
    of images have all others padded to as many.

    Args:
        queries: float [n, d].
        keys: float [m, d].
        pairs: int [2, p], first query and first key of what belongs together; may repeat.
        ks: as in `recalls`.
        mesh: as in `recalls`.
    """
    asked, answers = np.unique(pairs, axis=1)
    numbers, counts = np.unique(asked, return_counts=True)
    ranks = np.full(len(queries), len(keys))
    size = np.ceil(np.log2(counts)).astype(int)
    for each in np.unique(size):
        chosen = numbers[size == each]
        among = np.isin(asked, chosen)
        truth = padded(np.searchsorted(chosen, asked[among]), answers[among], len(chosen))
        ranks[chosen] = _ranks(queries[chosen], keys, truth, ks, mesh)
    return ranks


def _ranks(
    queries: np.ndarray,
    keys: np.ndarray,
    truth: np.ndarray,
    ks: Sequence[int] | None,
    mesh: Mesh | None,
) -> np.ndarray:
    return best_true_ranks(queries, keys, truth, max(_known(ks, len(keys))), mesh=mesh)


def _shares(
    name: str, ranks: np.ndarray, num_keys: int, ks: Sequence[int] | None
) -> dict[str, float]:
    return _named(name, metrics.hit_at_k(ranks, _known(ks, num_keys)))


def _known(ks: Sequence[int] | None, num_keys: int) -> Sequence[int]:
    return metrics.telling(KS, num_keys) if ks is None else ks


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
    return padded(image_of_text, np.arange(len(image_of_text)), num_images)


def padded(owners: np.ndarray, items: np.ndarray, num_owners: int) -> np.ndarray:
    """Return the items of every owner in their order, int [num_owners, most], padded with -1.

    Args:
        owners: int [n], whose each item is.
        items: int [n].
        num_owners: how many rows there are.
    """
    order = np.argsort(owners, kind="stable")
    counts = np.bincount(owners, minlength=num_owners)
    column = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    lists = np.full((num_owners, counts.max(initial=1)), MISSING, np.int64)
    lists[owners[order], column] = items[order]
    return lists


def chance_recalls(image_of_text: np.ndarray, num_images: int) -> dict[str, float]:
    """Return the expected recalls of a random order."""
    num_texts = len(image_of_text)
    texts = texts_of_images(image_of_text, num_images)
    i2t = metrics.chance_hit_at_k(num_texts, texts, metrics.telling(KS, num_texts))
    t2i = {k: min(k / num_images, 1.0) for k in metrics.telling(KS, num_images)}
    return _named("i2t", i2t) | _named("t2i", t2i)


def chance_recalls_with_equal(image_of_text: np.ndarray, equal: EqualItems) -> dict[str, float]:
    """Return the expected `recalls_with_equal` of a random order."""
    pairs = np.unique(np.stack([equal.images[image_of_text], equal.texts]), axis=1)
    num_images, num_texts = (len(first) for first in equal)
    images, texts = (np.bincount(first, minlength=len(first)) for first in equal)  # As many equal.
    of_image = np.bincount(pairs[0], texts[pairs[1]], num_images)
    of_text = np.bincount(pairs[1], images[pairs[0]], num_texts)
    found = {}
    for name, num_keys, answers in (
        ("i2t", num_texts, of_image[equal.images[np.unique(image_of_text)]]),
        ("t2i", num_images, of_text[equal.texts]),
    ):
        ks = metrics.telling(KS, num_keys)
        found |= _named(f"{EQUAL}{name}", metrics.chance_by_count(num_keys, answers, ks))
    return found


def _named(name: str, shares: dict[int, float]) -> dict[str, float]:
    return {f"{name}_recall@{k}": share for k, share in shares.items()}
