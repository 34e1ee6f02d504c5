"""A share of the pairs held out of training, by seed, whole families of equal pairs at a time.

Pairs whose image files are equal byte for byte, or whose captions are, are a family: with one of
them in training, the others would say what was learned by heart. Where captions are class names,
each of which belongs to many images, only equal images are.
"""

import hashlib
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from otter_jax.data.records import (
    Progress,
    Record,
    RecordError,
    Source,
    first_caption,
    key_of,
    no_progress,
    read_in_order,
    read_records,
)
from otter_jax.data.sources import Mixture, left_out, notes, skipped_files

CLASS_IMAGES = 2.0  # Images a caption, on the average, from which captions are class names.


class Subset:
    """Some records of a source under numbers of their own.

    Attributes:
        source: All records.
        numbers: Which of them, ascending.
        name: As the source's.
        skipped: As the source's.
        left_out: How many records of the source are not among them, by why.
        fingerprint: The source's with the numbers'.
    """

    def __init__(self, source: Source, numbers: np.ndarray, why: str = "not chosen") -> None:
        """Keep the records of these numbers; `why` says what is wrong with the others."""
        self.source, self.numbers = source, np.asarray(numbers, np.int64)
        self.name, self.skipped = source.name, source.skipped
        others = {why: len(source) - len(self.numbers)}
        self.left_out = dict(Counter(left_out(source)) + Counter(others))
        self.skipped_files = skipped_files(source)
        self.notes = notes(source)
        found = hashlib.sha256(f"some of {source.fingerprint}".encode())
        found.update(self.numbers.tobytes())
        self.fingerprint = found.hexdigest()

    @property
    def caption_counts(self) -> np.ndarray | None:
        """How many captions each record has; None if the source does not know."""
        counts = self.source.caption_counts
        return None if counts is None else np.asarray(counts)[self.numbers]

    def __len__(self) -> int:
        """Return the number of records that were kept."""
        return len(self.numbers)

    def __getitem__(self, i: int) -> Record:
        """Return record `i`; errors are those of the source."""
        return self.source[int(self.numbers[i])]

    def key(self, i: int) -> str:
        """Return what record `i` is called; see `records.key_of`."""
        return key_of(self.source, int(self.numbers[i]))

    def first_caption(self, i: int) -> str:
        """Return the first caption of record `i`; see `records.first_caption`."""
        return first_caption(self.source, int(self.numbers[i]))

    def read_many(self, numbers: Sequence[int]) -> list[Record | RecordError]:
        """Read some records together; see `records.read_records`."""
        return read_records(self.source, [int(self.numbers[number]) for number in numbers])


class Split(NamedTuple):
    """The pairs of a source on two sides.

    Attributes:
        train: Those to train on.
        held_out: The others.
        class_names: What captions of both are, where they are names of classes; else empty.
    """

    train: Source
    held_out: Source
    class_names: tuple[str, ...]


def hold_out(source: Source, share: float, seed: int, progress: Progress = no_progress) -> Split:
    """Divide pairs into those to train on and those held out, about a `share` of all.

    Every record is read once. Of a `Mixture` the parts stay parts.

    Args:
        source: All pairs.
        share: In (0, 1), of the pairs to hold out.
        seed: Another one holds out others.
        progress: Shows how far reading is.

    Raises:
        ValueError: If either side would be left without any pair.
    """
    families, class_names = families_of(source, progress)
    held = choose_families(families, share, seed)
    if not held.any() or held.all():
        raise ValueError(
            f"config.data.held_out={share}: of the {len(held)} pairs of {source.name} it leaves "
            f"{'none' if held.all() else 'all'} to train on, as pairs of equal images or captions "
            "stay together; hold out another share, or name a set of its own in evaluate.sets"
        )
    train = restrict(source, ~held, "held out")
    return Split(train, restrict(source, held, "trained on"), class_names)


def restrict(source: Source, kept: np.ndarray, why: str) -> Source:
    """Return the records of a source for which `kept`, bool [n], is true.

    Of a `Mixture` the parts stay parts. `why` says what is wrong with the others.
    """
    if not isinstance(source, Mixture):
        return Subset(source, np.flatnonzero(kept), why)
    ends = np.cumsum(source.lengths)
    parts = zip(source.sources, np.split(kept, ends[:-1]), strict=True)
    return Mixture([Subset(part, np.flatnonzero(own), why) for part, own in parts], source.name)


def are_class_names(captions: Sequence[str]) -> bool:
    """Return whether captions, one a pair, repeat so often that they are names of classes."""
    return len(captions) >= CLASS_IMAGES * max(1, len(set(captions)))


def families_of(
    source: Source, progress: Progress = no_progress
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the number of each record's family, int [n], and the classes' names if it has such.

    Records that cannot be read are alone.
    """
    total = len(source)
    images: list[Hashable] = []
    captions: list[tuple[str, ...]] = []
    for number, record in progress(read_in_order(source, range(total)), total, "equal pairs"):
        unread = isinstance(record, RecordError)
        images.append(number if unread else hashlib.sha256(record.image).digest())
        every = () if unread else (record.captions or (record.caption,))
        captions.append(tuple(caption.strip() for caption in every))
    firsts, class_names = [own[0] for own in captions if own], ()
    if are_class_names(firsts):
        captions, class_names = [()] * total, tuple(sorted(set(firsts)))
    marks = ((image, *own) for image, own in zip(images, captions, strict=True))
    return join_families(marks), class_names


def join_families(marks: Iterable[Sequence[Hashable]]) -> np.ndarray:
    """Return a number for each record, the same for those that are joined by marks they share."""
    parents: list[int] = []
    first: dict[Hashable, int] = {}

    def root(number: int) -> int:
        while parents[number] != number:
            parents[number] = number = parents[parents[number]]
        return number

    for number, own in enumerate(marks):
        parents.append(number)
        for mark in own:
            parents[root(number)] = root(first.setdefault(mark, number))
    return np.array([root(number) for number in range(len(parents))], np.int64)


def choose_families(families: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Return which records to hold out, bool [n]: families at random, no more than the share.

    Args:
        families: [n] numbers, equal within a family.
        share: Of the records.
        seed: Of the order in which families are drawn; one that is too large is passed over.
    """
    names, members, sizes = np.unique(families, return_inverse=True, return_counts=True)
    chosen = np.zeros(len(names), bool)
    left = round(share * len(families))
    for family in np.random.default_rng(seed).permutation(len(names)):
        if sizes[family] <= left:
            chosen[family] = True
            left -= sizes[family]
    return chosen[members]
