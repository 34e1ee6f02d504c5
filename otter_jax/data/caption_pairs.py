"""Every caption of every image as a pair of its own, where an epoch is to show all of them."""

import hashlib
from collections.abc import Sequence

import numpy as np

from otter_jax.data.records import (
    Record,
    RecordError,
    Source,
    first_caption,
    key_of,
    read_records,
)


class CaptionPairs:
    """The (image, caption) pairs of a source: all captions of its first record, then the next's.

    The captions are not kept: how many each record has is known from when the source was opened or
    indexed, and eight bytes a record say where its pairs begin. Which pair a number stands for
    depends on the source alone, and so whatever holds for its numbers holds for these.

    Attributes:
        source: The records.
        name: As the source's.
        skipped: How many records of the source were left out, by reason.
        fingerprint: Another than the source's, as the same number stands for another pair.
    """

    def __init__(self, source: Source) -> None:
        """Give every caption a number.

        Raises:
            ValueError: If the source does not know how many captions its records have.
        """
        if source.caption_counts is None:
            raise ValueError(
                f"{source.name}: config.data.captions='all' needs to know how many captions each "
                "record has, which a list of them in TFDS does not tell before every image is "
                "read; use 'one', or the tar shards, table or folder it was made from"
            )
        self.source = source
        self.name = source.name
        self.skipped = source.skipped
        self.fingerprint = hashlib.sha256(f"captions {source.fingerprint}".encode()).hexdigest()
        self._ends = np.array(source.caption_counts, np.int64)
        np.cumsum(self._ends, out=self._ends)

    @property
    def caption_counts(self) -> np.ndarray:
        """One of every pair."""
        return np.ones(len(self), np.uint32)

    def __len__(self) -> int:
        """Return the number of pairs."""
        return int(self._ends[-1])

    def __getitem__(self, i: int) -> Record:
        """Read pair `i`; its only caption is its own. Errors are those of the source.

        Raises:
            RecordError: If the record has another number of captions than it had.
        """
        number = range(len(self))[i]
        found = self._pair(number, self.source[self._place(number)])
        if isinstance(found, RecordError):
            raise found
        return found

    def read_many(self, numbers: Sequence[int]) -> list[Record | RecordError]:
        """Read some pairs, of each record once; see `records.read_records`."""
        numbers = [range(len(self))[number] for number in numbers]
        places = [self._place(number) for number in numbers]
        wanted = list(dict.fromkeys(places))
        records = dict(zip(wanted, read_records(self.source, wanted), strict=True))
        return [self._pair(n, records[place]) for n, place in zip(numbers, places, strict=True)]

    def key(self, i: int) -> str:
        """Return what the record that pair `i` is of is called; see `records.key_of`."""
        return key_of(self.source, self._place(i))

    def first_caption(self, i: int) -> str:
        """Return the first caption of the record that pair `i` is of; `records.first_caption`."""
        return first_caption(self.source, self._place(i))

    def _place(self, number: int) -> int:
        """Return the record that a pair is of."""
        return int(np.searchsorted(self._ends, number, side="right"))

    def _pair(self, number: int, record: Record | RecordError) -> Record | RecordError:
        """Return the pair of a record that a number stands for."""
        if isinstance(record, RecordError):
            return record
        place = self._place(number)
        end, start = int(self._ends[place]), int(self._ends[place - 1]) if place else 0
        if len(record.captions) != end - start:
            return RecordError("captions have changed")
        caption = record.captions[number - start]
        return record._replace(caption=caption, captions=(caption,))
