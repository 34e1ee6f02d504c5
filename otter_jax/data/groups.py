"""Which pairs are known to match each other: those of equal captions, or of one group by name."""

import hashlib
import itertools
from collections.abc import Iterable

import numpy as np

from otter_jax.data.records import Record, RecordError, Source, read_records

LOOKED_AT = 20  # Records: where none of so many has the group's column, it is misspelt.


def group_name(record: Record, caption: str, column: str | None) -> str:
    """Return a pair's group: what `column` of its metadata says, else the caption seen of it.

    A column that is empty says nothing.
    """
    said = record.metadata.get(column)
    return caption.strip() if said in (None, "") else str(said)


def hash_groups(names: Iterable[str]) -> np.ndarray:
    """Return 64 bits of a hash of each group's name, int32 [N, 2]."""
    digests = [
        hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        for name in names
    ]
    return np.frombuffer(b"".join(digests), np.int32).reshape(-1, 2)


def refuse_unknown_column(source: Source, column: str | None) -> None:
    """Refuse a column that none of the first records has (ValueError listing those they have).

    Of a `Mixture` they are the first of each part.
    """
    if column is None:
        return
    lengths = getattr(source, "lengths", (len(source),))[:LOOKED_AT]
    starts = itertools.accumulate(lengths, initial=0)
    each = max(1, LOOKED_AT // len(lengths))
    numbers = [
        start + number
        for start, length in zip(starts, lengths, strict=False)
        for number in range(min(length, each))
    ]
    found = read_records(source, numbers)
    read = [record for record in found if not isinstance(record, RecordError)]
    if any(column in record.metadata for record in read):
        return
    known = sorted({name for record in read for name in record.metadata})
    raise ValueError(
        f"config.data.group={column!r}: none of the first {len(found)} records of {source.name} "
        f"has it; they have {', '.join(known) or 'nothing beside their captions'}"
    )
