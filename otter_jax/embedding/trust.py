"""Pair trust: the probability that each pair's caption is right, without labels, before training.

The idea: images that look alike have captions that say alike. The captions of the images nearest to
image i are compared with caption i, and the images of the captions nearest to caption i with image
i; how well the best of them agree, above what they have in common with everything else, is the
pair's statistic. What a wrong caption would get is measured on images with the captions of others.
The observed statistics are a mixture of that null distribution and of one that is not known, that
of right pairs; by how much the null exceeds its share of them follows from both (the two-groups
model and its local false discovery rate: Efron, Large-Scale Inference, 2010, chapter 5).

Only image-image and text-text similarities enter, so towers that know nothing of each other will
do. A wrong caption that fits the neighbours too (drawn from pictures of the same kind) is not
found, and a right one that no other pair is like is not trusted.
"""

import dataclasses
import hashlib
import mmap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from otter_jax import sharding
from otter_jax.embedding.nearest_rows import nearest_rows
from otter_jax.terminal import progress

FILE = "trust.npz"  # In a workdir.
TRUST_FORMAT = 1  # Of the estimate: what another one has found is not read.
NEIGHBORS = 30
BLOCK = 1024  # Pairs at a time; their neighbours' features are the most that memory must hold.
SPARE = 16  # Neighbours more than are asked, since some may be the pair itself or its copies.
COPY = 1e-6  # Rows whose cosine differs from 1 by less are the same but for rounding.
LOWEST = 0.3  # Share of the null by which the wrong pairs are counted.
FEW = 1000  # Pairs, below which right ones without any like them are a large share.
NULL_DRAWS = 5  # Captions of others that each image is tried with.
MOST_BINS = 1000


class Trust(NamedTuple):
    """What is known of N pairs."""

    alpha: np.ndarray  # float32 [N] in [0, 1]: the probability that pair i is right.
    share_wrong: float  # In [0, 1]: how many of them are wrong.
    statistic: np.ndarray  # float32 [N]: the larger, the better image and caption i fit.
    null: np.ndarray  # float32 [M]: the same of images with the captions of others.


def estimate(
    image_features: np.ndarray,
    text_features: np.ndarray,
    *,
    neighbors: int = NEIGHBORS,
    best_share: float = 1 / 3,
    reference: int = 100_000,
    seed: int = 0,
    mesh: Mesh | None = None,
) -> Trust:
    """Estimate for every pair the probability that its caption is right.

    Every distinct pair votes once: a pair that repeats both image and caption of another is no
    evidence for it. The same pairs get the same trust in whatever order they come, to rounding:
    what is drawn at random depends on the pairs' features alone.

    Time grows with N * min(N, reference). Features may be memory-mapped, since they are read in
    blocks: 3 million pairs then take about 1.1 GB, and the reference 8 bytes a number.

    Args:
        image_features: float [N, d], of any precision and length.
        text_features: float [N, e], of the same pairs.
        neighbors: how many pairs vote on an image, and as many on a caption.
        best_share: the share of them, those that agree best, of which the mean is taken; in (0, 1].
        reference: most pairs among which neighbours are looked for; of more, that many are drawn.
        seed: of what is drawn at random.
        mesh: devices to split the work over; all of them if not given.

    Raises:
        ValueError: if the rows are not one for each pair, not finite, or too few of them differ; or
            for a number out of its range.
    """
    found = find_neighborhoods(
        image_features,
        text_features,
        neighbors=neighbors,
        best_share=best_share,
        reference=reference,
        seed=seed,
        mesh=mesh,
    )
    # The order of `chosen` is random: captions of others are those of the next ones.
    everyone, shifts = np.arange(len(found.keys)), range(1, NULL_DRAWS + 1)
    agreement = found.agreement(
        np.concatenate([everyone, *(found.chosen for _ in shifts)]),
        np.concatenate([everyone, *(np.roll(found.chosen, shift) for shift in shifts)]),
    )
    return judge(*np.split(agreement, [len(everyone)]))


def judge(agreement: np.ndarray, null: np.ndarray) -> Trust:
    """Return the trust of pairs, given how well images and captions fit each other.

    Args:
        agreement: float [N, parts], the larger, the better; each in a unit of its own.
        null: float [M, parts], the same of images with the captions of others.
    """
    scale = np.maximum(null.std(axis=0), 1e-12)
    statistic, null = ((each / scale).mean(axis=1) for each in (agreement, null))
    share_wrong = wrong_share(statistic, null)
    alpha = 1.0 - false_discovery_rate(statistic, null, share_wrong)
    return Trust(alpha.astype(np.float32), share_wrong, statistic, null)


def describe_trust(found: Trust) -> str:
    """Return one line: the share of wrong pairs, and whether there are too few pairs to know it."""
    line = f"estimated share of wrong pairs: {100 * found.share_wrong:.0f} %"
    if len(found.alpha) < FEW:
        line += (
            f"; of only {len(found.alpha)} pairs, many have none that is like them, and some right "
            "ones are taken for wrong"
        )
    return line


def wrong_share(statistic: np.ndarray, null: np.ndarray) -> float:
    """Estimate the share of wrong pairs from the lowest 30 % of the null, where few right ones are.

    Right pairs that no other pair is like are there too, and with few pairs they are many: of 300
    right ones of the embedded clip art it takes 11 % for wrong, of 900 it takes 3 %. The lower half
    would take 15 % and 7 %, a smaller part would be less certain.

    Args:
        statistic: [N] of the pairs.
        null: [M] of wrong pairs.
    """
    edge = np.quantile(null, LOWEST)
    observed, expected = (np.mean(x < edge) + np.mean(x == edge) / 2 for x in (statistic, null))
    return float(min(1.0, observed / expected))


def false_discovery_rate(statistic: np.ndarray, null: np.ndarray, share_wrong: float) -> np.ndarray:
    """Return the probability that a pair is wrong, never larger for a larger statistic.

    Bins hold equally many pairs, about as many as there are bins.

    Args:
        statistic: [N] of the pairs.
        null: [M] of wrong pairs.
        share_wrong: the share of wrong pairs, in [0, 1].

    Returns:
        float64 [N] in [0, 1].
    """
    bins = int(np.clip(np.sqrt(len(statistic)), 10, MOST_BINS))
    edges = np.unique(np.quantile(statistic, np.linspace(0, 1, bins + 1)[1:-1]))
    place = np.searchsorted(edges, statistic, side="right")
    observed = np.bincount(place, minlength=len(edges) + 1)
    expected = np.bincount(np.searchsorted(edges, null, side="right"), minlength=len(observed))
    centers = np.bincount(place, statistic, len(observed))
    filled = observed > 0
    observed, expected, centers = observed[filled], expected[filled], centers[filled]
    density_ratio = (expected / len(null)) / (observed / len(statistic))
    rate = np.clip(non_increasing(share_wrong * density_ratio, observed), 0.0, 1.0)
    return np.interp(statistic, centers / observed, rate)


def non_increasing(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the closest non-increasing sequence by weighted least squares (isotonic regression).

    It is given by means of stretches: at i the least, over where a stretch that holds i begins, of
    the greatest mean, over where it ends (Barlow et al. 1972, the min-max formulas).

    Args:
        values: [n].
        weights: positive [n].
    """
    mass, total = (np.concatenate([[0.0], np.cumsum(x)]) for x in (weights, weights * values))
    before = np.tri(len(values), k=-1, dtype=bool)  # Of a stretch that would end before it begins.
    length = np.where(before, 1.0, mass[None, 1:] - mass[:-1, None])
    means = np.where(before, -np.inf, (total[None, 1:] - total[:-1, None]) / length)
    greatest = np.maximum.accumulate(means[:, ::-1], axis=1)[:, ::-1]
    return np.where(before, np.inf, greatest).min(axis=0)


def write(path: Path, key: str, found: Trust, records: np.ndarray) -> None:
    """Keep an estimate; a reader finds a whole file or none.

    Args:
        path: an .npz file.
        key: a hash of all that it depends on.
        found: of n pairs.
        records: int [n], their numbers in the source.
    """
    if jax.process_index() != 0:
        return
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as file:
        np.savez(file, key=np.array(key), records=records, **found._asdict())
    partial.replace(path)


def read(path: Path, key: str) -> tuple[Trust, np.ndarray]:
    """Return what `write` has kept: the estimate, and the numbers of its records.

    Raises:
        ValueError: if it depends on something else.
    """
    with np.load(path) as stored:
        arrays = dict(stored)
    if arrays.pop("key") != key:
        raise ValueError(
            f"{path} was estimated with other towers, data or options: remove it if the run has "
            "not begun, else choose another workdir"
        )
    records, share_wrong = arrays.pop("records"), float(arrays.pop("share_wrong"))
    return Trust(**arrays, share_wrong=share_wrong), records


def refuse_too_few(count: int, neighbors: int) -> None:
    """Refuse so few different pairs that they have not enough neighbours (ValueError)."""
    if count <= neighbors:
        raise ValueError(
            f"pair trust needs at least {neighbors + 1} different pairs, as it asks the "
            f"{neighbors} nearest to each; found {count}"
        )


def _check(
    images: np.ndarray, texts: np.ndarray, neighbors: int, best_share: float, reference: int
) -> None:
    if images.ndim != 2 or texts.ndim != 2 or len(images) != len(texts):
        raise ValueError(
            f"pair trust needs features [N, d] and [N, e] of the same pairs, found "
            f"{list(images.shape)} and {list(texts.shape)}"
        )
    if neighbors < 1 or not 0 < best_share <= 1:
        raise ValueError(
            f"pair trust: neighbors={neighbors} must be at least 1, and best_share={best_share} "
            "lie in (0, 1]"
        )
    if reference <= neighbors:
        raise ValueError(
            f"pair trust: reference={reference}; it must be more than neighbors={neighbors}"
        )
    refuse_too_few(len(images), neighbors)


def _scan(
    images: np.ndarray, texts: np.ndarray, seed: int
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Return a random key of each pair, uint64 [N], and the mean unit rows of images and of texts.

    Keys are hashes of the pair's features: equal pairs have equal ones, and the order of the pairs
    does not matter.
    """
    keys = np.empty(len(images), np.uint64)
    totals = np.zeros(images.shape[1]), np.zeros(texts.shape[1])
    seed_bytes = str(seed).encode()
    for block in row_blocks(len(images), (images, texts)):
        rows = [np.asarray(features[block], np.float32) for features in (images, texts)]
        bad = ~np.logical_and(*(np.isfinite(each).all(axis=1) for each in rows))
        if bad.any():
            row = block.start + int(bad.argmax())
            raise ValueError(f"pair trust: the features of row {row} are not all finite numbers")
        rows = [unit_rows(each) for each in rows]
        pairs = np.concatenate(rows, axis=1)
        digests = (hashlib.blake2b(pair, digest_size=8, key=seed_bytes).digest() for pair in pairs)
        keys[block] = np.frombuffer(b"".join(digests), np.uint64)
        for total, each in zip(totals, rows, strict=True):
            total += each.sum(axis=0, dtype=np.float64)
    return keys, tuple((total / len(images)).astype(np.float32) for total in totals)


def _distinct(keys: np.ndarray, neighbors: int) -> np.ndarray:
    """Return the numbers of distinct pairs, in a random order that depends on the pairs alone."""
    _, first = np.unique(keys, return_index=True)  # Sorted by keys.
    refuse_too_few(len(first), neighbors)
    return first


@dataclasses.dataclass
class Side:
    """The images of all pairs, or their captions: unit rows less their mean.

    Without its mean a row agrees with others by what it does not share with all of them.
    """

    features: np.ndarray  # [N, d] as given.
    mean: np.ndarray  # float32 [d] of their unit rows.
    chosen: np.ndarray  # int [R]: the pairs among which neighbours are looked for.

    def __post_init__(self) -> None:
        """Keep the rows that may vote in memory."""
        self.reference = self.rows(self.chosen)

    def rows(self, numbers: np.ndarray | slice) -> np.ndarray:
        """Return float32 [n, d]."""
        return unit_rows(self.features[numbers]) - self.mean


@dataclasses.dataclass
class Neighborhoods:
    """Which pairs are like each image and like each caption, and so vote on it."""

    sides: tuple[Side, Side]  # Images, captions.
    keys: np.ndarray  # uint64 [N]: random, equal for equal pairs.
    chosen: np.ndarray  # int [R]: the distinct pairs that may vote, in a random order.
    voters: tuple[np.ndarray, np.ndarray]  # int32 [N, k] each, places in `chosen`; -1 for none.
    count: int  # Of the votes, those that agree best, of which the mean is taken.

    def agreement(self, images: np.ndarray, texts: np.ndarray) -> np.ndarray:
        """Return how well images and texts, by the numbers of their pairs [n], fit each other.

        Returns:
            float32 [n, 2]: what is said by the voters on the image that agree best with the text,
            then what is shown by those on the text.
        """
        image, text = self.sides
        place = np.full(len(image.features), -1)
        place[self.chosen] = np.arange(len(self.chosen))
        found = np.empty((len(images), 2), np.float32)
        for block in row_blocks(len(images), (image.features, text.features), "agreement of pairs"):
            i, t = images[block], texts[block]
            found[block, 0] = _consensus(text, t, self.voters[0][i], place[t], self.count)
            found[block, 1] = _consensus(image, i, self.voters[1][t], place[i], self.count)
        return found


def find_neighborhoods(
    image_features: np.ndarray,
    text_features: np.ndarray,
    *,
    neighbors: int = NEIGHBORS,
    best_share: float = 1 / 3,
    reference: int = 100_000,
    seed: int = 0,
    mesh: Mesh | None = None,
) -> Neighborhoods:
    """Find who votes on each pair; arguments and errors as of `estimate`."""
    _check(image_features, text_features, neighbors, best_share, reference)
    keys, means = _scan(image_features, text_features, seed)
    chosen = _distinct(keys, neighbors)[:reference]
    features = (image_features, text_features)
    sides = tuple(Side(each, mean, chosen) for each, mean in zip(features, means, strict=True))
    voters = _find_voters(sides, neighbors, mesh or sharding.make_mesh())
    count = max(1, round(neighbors * best_share))
    return Neighborhoods(sides, keys, chosen, voters, count)


def _find_voters(
    sides: tuple[Side, Side], neighbors: int, mesh: Mesh
) -> tuple[np.ndarray, np.ndarray]:
    """Return which pairs vote on each image, since theirs is similar, and which on each caption.

    Returns:
        Two of int32 [N, neighbors]: places in the reference, -1 where there are not so many that
        are no copies of the pair.
    """
    keys = [sharding.put_state(mesh, side.reference + side.mean) for side in sides]
    candidates = min(neighbors + SPARE, len(keys[0]))
    count = len(sides[0].features)
    voters = tuple(np.empty((count, neighbors), np.int32) for _ in sides)
    for block in row_blocks(count, [side.features for side in sides], "neighbours of pairs"):
        rows = [side.rows(block) for side in sides]
        for this, other in ((0, 1), (1, 0)):
            queries = rows[this] + sides[this].mean
            similar, places = nearest_rows(queries, keys[this], candidates, mesh)
            who, which = np.nonzero(similar > 1.0 - COPY)
            apart = rows[other][who] - sides[other].reference[places[who, which]]
            copies = (apart**2).sum(axis=1) < 2 * COPY  # Of unit rows it is 2 (1 - cosine).
            places[who[copies], which[copies]] = -1
            kept = np.argsort(places < 0, axis=1, kind="stable")[:, :neighbors]
            voters[this][block] = np.take_along_axis(places, kept, axis=1)
    return voters


def _consensus(
    side: Side, numbers: np.ndarray, voters: np.ndarray, own: np.ndarray, count: int
) -> np.ndarray:
    """Return the mean agreement of rows with their `count` best voters; 0 where there are none.

    Args:
        side: what is compared.
        numbers: [n], the rows.
        voters: [n, k] places in the reference, -1 for none.
        own: [n] the rows' own places, which have no vote; -1 for none.
        count: at least 1.
    """
    agreement = np.matmul(side.reference[voters], side.rows(numbers)[:, :, None])[:, :, 0]
    votes = (voters >= 0) & (voters != own[:, None])
    ranked = -np.sort(np.where(votes, -agreement, np.inf), axis=1)[:, :count]
    usable = np.isfinite(ranked)
    return np.where(usable, ranked, 0.0).sum(axis=1) / np.maximum(usable.sum(axis=1), 1)


def row_blocks(
    count: int, features: Sequence[np.ndarray], label: str | None = None
) -> Iterator[slice]:
    """Yield slices of `count` rows, and let go of what each has read of mapped features."""
    starts = range(0, count, BLOCK)
    if label is not None:
        starts = progress(starts, len(starts), f"{label}, {BLOCK} at a time")
    for start in starts:
        yield slice(start, min(start + BLOCK, count))
        for each in features:
            # "c" is a mapping of which a process may have changed pages of its own.
            if isinstance(each, np.memmap) and each.mode != "c":
                each._mmap.madvise(mmap.MADV_DONTNEED)


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """Return rows [n, d] as float32 of length 1; a zero row stays zero."""
    rows = np.asarray(rows, np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
