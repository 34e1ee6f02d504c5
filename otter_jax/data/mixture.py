"""Several sources as one: behind each other, or mixed by weight."""

import bisect
import hashlib
import itertools
from collections import Counter
from collections.abc import Sequence

import numpy as np

from otter_jax.data.records import Record, Source


class Mixture:
    """The records of several sources under one numbering: those of the first come first.

    The numbering alone does not mix: `batches.record_order` draws from the parts, given their
    lengths and weights. Keys get the number of their source in front, as sources may share keys.

    Attributes:
        sources: The parts.
        lengths: How many records each has.
    """

    def __init__(self, sources: Sequence[Source], name: str) -> None:
        """Join the sources, one at least."""
        self.name = name
        self.sources = tuple(sources)
        self.lengths = tuple(map(len, self.sources))
        self._starts = [0, *itertools.accumulate(self.lengths)]
        skipped: Counter[str] = Counter()
        for source in self.sources:
            skipped.update(source.skipped)
        self.skipped = dict(sorted(skipped.items()))
        parts = [(source.fingerprint, len(source)) for source in self.sources]
        self.fingerprint = hashlib.sha256(repr(parts).encode()).hexdigest()

    def __len__(self) -> int:
        """Return the number of records of all sources."""
        return self._starts[-1]

    def __getitem__(self, i: int) -> Record:
        """Return record `i`; errors are those of its source."""
        number = range(len(self))[i]
        part = bisect.bisect_right(self._starts, number) - 1
        record = self.sources[part][number - self._starts[part]]
        return record._replace(key=f"{part}:{record.key}")


def count_by_source(source: Source, records: np.ndarray) -> tuple[int, ...]:
    """Return how many of some records, by their numbers in ascending order, each part holds.

    A source that is no mixture is its own only part.
    """
    lengths = source.lengths if isinstance(source, Mixture) else (len(source),)
    ends = np.searchsorted(records, np.cumsum(lengths))
    return tuple(np.diff(ends, prepend=0).tolist())
