"""What is in a data set of image-text pairs: sizes, lengths, copies, failures, noise.

Only a few numbers are kept of each pair, so that millions can be counted.
"""

import hashlib
from collections import Counter
from typing import Any

import numpy as np

from otter_jax.data import images
from otter_jax.data.records import name_record, read_records
from otter_jax.data.sources import Record, RecordError, Source

QUANTILES = {"min": 0.0, "1 %": 0.01, "10 %": 0.1, "median": 0.5, "90 %": 0.9, "99 %": 0.99,
             "max": 1.0}  # fmt: skip
NAMED = 1000  # Unreadable records, of more of which there is only a count.


class Tally:
    """Counts the records of a source, one by one.

    Attributes:
        readable: Numbers of the records whose images can be read.
        unreadable: Why each of the others cannot be read, by name; of the first 1,000.
        unreadable_by_reason: How many of the others there are.
        formats: How many images there are of a format and mode, such as "JPEG RGB".
        columns: By name, a number for every readable image (width, height, in pixels, upright) or
            for every caption (characters, words).
    """

    def __init__(self) -> None:
        """Start with nothing."""
        self.readable: list[int] = []
        self.unreadable: dict[str, str] = {}
        self.unreadable_by_reason: Counter[str] = Counter()
        self.formats: Counter[str] = Counter()
        self.columns: dict[str, list[int]] = {
            name: [] for name in ("width", "height", "characters", "words")
        }
        self._image_digests: list[int] = []
        self._caption_digests: list[int] = []

    def add(self, source: Source, number: int) -> None:
        """Read and count one record."""
        self.add_record(number, read_records(source, [number])[0])

    def add_record(self, number: int, record: Record | RecordError) -> None:
        """Count a record that was read, or why it cannot be used."""
        name = name_record(number)  # Until the record says what it is called.
        try:
            if isinstance(record, RecordError):
                raise record
            name = name_record(number, record.key)
            self._add_caption(record)
            height, width = images.decode(record.image).shape[:2]
        except (RecordError, images.ImageError) as error:
            self.unreadable_by_reason[str(error).partition(": ")[0]] += 1
            if len(self.unreadable) < NAMED:
                self.unreadable[name] = str(error)
            return
        self.readable.append(number)
        self.formats[images.format_and_mode(record.image)] += 1
        self._image_digests.append(_digest(record.image))
        self.columns["width"].append(width)
        self.columns["height"].append(height)

    def _add_caption(self, record: Record) -> None:
        self._caption_digests.append(_digest(record.caption.encode("utf-8", "surrogatepass")))
        self.columns["characters"].append(len(record.caption))
        self.columns["words"].append(len(record.caption.split()))

    def aspects(self) -> np.ndarray:
        """Return width / height of every readable image."""
        return np.array(self.columns["width"]) / np.maximum(self.columns["height"], 1)

    def summary(self) -> dict[str, Any]:
        """Return all that was counted, as JSON can hold it."""
        return {
            "readable": len(self.readable),
            "unreadable_by_reason": dict(self.unreadable_by_reason.most_common()),
            "unreadable": self.unreadable,
            "formats": dict(self.formats.most_common()),
            **{name: quantiles(values) for name, values in self.columns.items()},
            "width / height": quantiles(self.aspects()),
            "copies of images": copies(self._image_digests),
            "copies of captions": copies(self._caption_digests),
        }


def choose(count: int, limit: int | None, seed: int) -> np.ndarray:
    """Return the numbers of all records, or of `limit` of them drawn at random; ascending.

    Raises:
        ValueError: If `limit` is below 1.
    """
    if limit is None or limit >= count:
        return np.arange(count)
    if limit < 1:
        raise ValueError(f"--limit={limit}; it must be at least 1")
    return np.sort(np.random.default_rng(seed).choice(count, limit, replace=False))


def quantiles(values: Any) -> dict[str, float]:
    """Return values from the smallest to the largest; empty where there are none.

    Each is one that occurs, so that pixels and words stay whole.
    """
    values = np.asarray(values)
    if not values.size:
        return {}
    found = np.quantile(values, list(QUANTILES.values()), method="inverted_cdf")
    return {name: round(float(x), 4) for name, x in zip(QUANTILES, found, strict=True)}


def copies(digests: list[int]) -> dict[str, float]:
    """Return how many items repeat an earlier one, their share, and the most alike there are."""
    if not digests:
        return {"count": 0, "share": 0.0, "largest group": 0}
    _, counts = np.unique(np.array(digests, np.uint64), return_counts=True)
    repeated = int(counts.sum() - len(counts))
    return {
        "count": repeated,
        "share": repeated / len(digests),
        "largest group": int(counts.max()),
    }


def match_probability(
    images: np.ndarray, texts: np.ndarray, scale: float, batch_size: int
) -> dict[str, float]:
    """Return how surely a model finds the text of an image among those of a batch.

    This is the statistic of noise of OTTER (Wu et al. 2022, section 1): the rows of
    softmax(scale * images @ texts.T), averaged over whole batches. Pairs that belong together have
    1 on the diagonal; mass beside it is for texts of other pairs that fit as well or better.

    Args:
        images: Unit embeddings [N, d].
        texts: Unit embeddings [N, d], row by row of the same pairs.
        scale: What similarities are multiplied by; CLIP's is 100.
        batch_size: Pairs among which to choose. With fewer pairs than that, all are one batch.

    Returns:
        "on_diagonal": mean probability of the given text; "off_diagonal": of any one other;
        "off_diagonal_max": of the best other; "batch_size" and "batches" that were used.

    Raises:
        ValueError: If there are fewer than two pairs.
    """
    size = min(batch_size, len(images))
    if size < 2:
        raise ValueError(f"match probabilities need two pairs a batch, found {size}")
    means = []
    for start in range(0, len(images) - size + 1, size):
        rows = slice(start, start + size)
        logits = scale * images[rows].astype(np.float64) @ texts[rows].T
        probability = np.exp(logits - logits.max(axis=1, keepdims=True))
        probability /= probability.sum(axis=1, keepdims=True)
        diagonal = probability.diagonal().copy()
        np.fill_diagonal(probability, 0.0)
        others = probability.sum(axis=1) / (size - 1)
        means.append((diagonal.mean(), others.mean(), probability.max(axis=1).mean()))
    on, off, best = (float(mean) for mean in np.mean(means, axis=0))
    return {
        "on_diagonal": on,
        "off_diagonal": off,
        "off_diagonal_max": best,
        "batch_size": size,
        "batches": len(means),
    }


def _digest(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest())
