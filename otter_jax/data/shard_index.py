"""Where every record of a set of shards lies: one compact file, mapped into memory.

A process that reads ten million records holds no object per record, and all processes of a machine
share one copy of the pages they touch. The file is a sequence of segments, one a shard, so that a
shard that has changed is scanned again and the segments of the others are copied:

    magic | segment, segment, ... | table as json | its length, 8 bytes | crc32 of all, 4 bytes

A segment of n records holds n rows of byte offsets and sizes, n numbers of captions (none, where
all are 1, or as many bytes each as the largest needs), n uint32 ends of keys, and the keys.
"""

import bisect
import contextlib
import hashlib
import io
import json
import logging
import mmap
import os
import struct
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from otter_jax.data import storage

ROW = np.dtype([("offset", "<i8", 3), ("size", "<i8", 3)])  # In bytes; size 0: no such member.

_MAGIC = b"otterix5"
_END = struct.Struct("<QI")  # Length of the table, crc32 of all before.
_CHUNK = 1 << 20
_FOLDER = ".otter_jax"  # Beside the shards.
_WORTH_KEEPING = 64 << 20  # Bytes of shards; fewer are scanned within about a second.

_log = logging.getLogger(__name__)


class Scan(NamedTuple):
    """What is known of one shard.

    Attributes:
        rows: `ROW` [n], its records.
        keys: Their names, n of them.
        caption_counts: uint32 [n], how many captions each has.
        skipped: What was left out, by reason.
        digest: Hexadecimal, of what the records hold.
    """

    rows: np.ndarray
    keys: list[bytes]
    caption_counts: np.ndarray
    skipped: dict[str, int]
    digest: str


class Entry(NamedTuple):
    """One record: which shard, its key, and [(offset, size)] of its members, in bytes."""

    shard: int
    key: bytes
    spans: list[storage.Span]


class _Packed(NamedTuple):
    """A segment on its way into a file."""

    data: bytes
    state: storage.State
    records: int
    skipped: dict[str, int]
    digest: str
    count_size: int


class Segment(NamedTuple):
    """One shard: where its part of the file lies, and what is known of it.

    Attributes:
        path: The shard.
        state: What it was when it was scanned.
        start: Where its part begins, in bytes.
        length: Of its part, in bytes.
        records: How many it has.
        skipped: What was left out, by reason.
        digest: Hexadecimal, of what the records hold.
        count_size: Bytes that a number of captions takes; 0 where every record has one.
    """

    path: str
    state: storage.State
    start: int
    length: int
    records: int
    skipped: dict[str, int]
    digest: str
    count_size: int

    def caption_counts(self, data: bytes | mmap.mmap) -> np.ndarray:
        """Return how many captions each record has, uint32 [n]."""
        if not self.count_size:
            return np.ones(self.records, np.uint32)
        start = self.start + self.records * ROW.itemsize
        counts = np.frombuffer(data, f"<u{self.count_size}", self.records, start)
        return counts.astype(np.uint32)


class ShardIndex:
    """The records of some shards by number; pickled as the name of its file, if it has one."""

    def __init__(self, data: bytes | mmap.mmap, file: Path | None = None) -> None:
        """Take an index whose checksum is known to be right, in memory or mapped from `file`."""
        self._data = data
        self._file = file
        end = len(data) - _END.size
        length, _ = _END.unpack(data[end:])
        table = json.loads(data[end - length : end])
        self.fingerprint: str = table["fingerprint"]
        self.segments = [
            Segment(path, (size, version), *rest)
            for path, (size, version), *rest in table["segments"]
        ]
        self._starts = [0]
        for segment in self.segments:
            self._starts.append(self._starts[-1] + segment.records)

    @property
    def paths(self) -> list[str]:
        """The shards."""
        return [segment.path for segment in self.segments]

    @property
    def caption_counts(self) -> np.ndarray:
        """How many captions each record has, uint32 [n]."""
        return np.concatenate([each.caption_counts(self._data) for each in self.segments])

    def __len__(self) -> int:
        """Return the number of records."""
        return self._starts[-1]

    def __getitem__(self, i: int) -> Entry:
        """Look up record `i`; IndexError where there is none."""
        number = i + len(self) if i < 0 else i
        if not 0 <= number < len(self):
            raise IndexError(f"record {i} of {len(self)}")
        shard = bisect.bisect_right(self._starts, number) - 1
        segment, local = self.segments[shard], number - self._starts[shard]
        row = np.frombuffer(self._data, ROW, 1, segment.start + local * ROW.itemsize)[0]
        ends = segment.start + segment.records * (ROW.itemsize + segment.count_size)
        keys = ends + 4 * segment.records
        first = np.frombuffer(self._data, "<u4", 1, ends + 4 * local - 4)[0] if local else 0
        last = np.frombuffer(self._data, "<u4", 1, ends + 4 * local)[0]
        spans = list(zip(row["offset"].tolist(), row["size"].tolist(), strict=True))
        return Entry(shard, bytes(self._data[keys + int(first) : keys + int(last)]), spans)

    def covers(self, paths: Sequence[str], states: Sequence[storage.State]) -> bool:
        """Return whether this is the index of exactly these shards, as they are now."""
        known = [(segment.path, segment.state) for segment in self.segments]
        return known == list(zip(paths, states, strict=True))

    def places(self) -> dict[tuple[str, storage.State], int]:
        """Return where in the table a shard is, by path and state."""
        return {(segment.path, segment.state): i for i, segment in enumerate(self.segments)}

    def segment_bytes(self, shard: int) -> bytes:
        """Return a segment as it is stored."""
        segment = self.segments[shard]
        return self._data[segment.start : segment.start + segment.length]

    def __reduce__(self) -> tuple[Callable[..., "ShardIndex"], tuple[Any, ...]]:
        """Pickle the name of the file, so that processes share its pages."""
        if self._file is None:
            return ShardIndex, (self._data,)
        return _reopen, (self._file, self.fingerprint)


def open_index(file: Path) -> ShardIndex | None:
    """Map an index into memory; None if there is none, or (which is logged) none that is whole."""
    try:
        with file.open("rb") as opened:
            _refuse_damage(opened)
            return ShardIndex(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ), file)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, struct.error) as error:
        _log.warning("%s: damaged index, which is built again (%s)", file, error)
        return None


def _refuse_damage(file: BinaryIO) -> None:
    """Read the file once, past the memory map: pages of the map count as the process's own."""
    remaining = os.fstat(file.fileno()).st_size - 4
    if remaining < len(_MAGIC) + _END.size - 4 or file.read(len(_MAGIC)) != _MAGIC:
        raise ValueError("no index of this version")
    checksum, remaining = zlib.crc32(_MAGIC), remaining - len(_MAGIC)
    while remaining > 0:
        chunk = file.read(min(_CHUNK, remaining))
        checksum, remaining = zlib.crc32(chunk, checksum), remaining - len(chunk)
    if checksum != int.from_bytes(file.read(4), "little"):
        raise ValueError("wrong checksum")


def _reopen(file: Path, fingerprint: str) -> ShardIndex:
    index = open_index(file)
    if index is None or index.fingerprint != fingerprint:
        raise ValueError(f"{file}: no longer the index the run began with; restart the run")
    return index


def load_index(
    paths: Sequence[str], scan: Callable[[list[str]], Iterator[Scan]], file: Path | None = None
) -> ShardIndex:
    """Open the index of some shards, scanning those that are new or have changed.

    Args:
        paths: The shards, in the order in which their records are to be numbered.
        scan: Scans some of them, in order.
        file: Where the index is kept; None: in this process's memory alone.

    Raises:
        FileNotFoundError: If a shard does not exist.
    """
    states = [storage.state_of(path) for path in paths]
    previous = open_index(file) if file else None
    if previous and previous.covers(paths, states):
        return previous
    scanned = _scan_changed(paths, states, previous, scan)
    if file is None or not os.access(file.parent, os.W_OK):
        buffer = io.BytesIO()
        _write(buffer, paths, scanned)
        return ShardIndex(buffer.getvalue())
    temporary = file.with_suffix(f".{uuid.uuid4().hex}.tmp")  # Other machines may write here too.
    try:
        with temporary.open("w+b") as opened:
            _write(opened, paths, scanned)
        temporary.replace(file)  # Whole or not at all, also where several processes write it.
    finally:
        temporary.unlink(missing_ok=True)
    written = open_index(file)
    if written is None:
        raise OSError(f"{file}: cannot be read although it was just written")
    return written


def _scan_changed(
    paths: Sequence[str],
    states: Sequence[storage.State],
    previous: ShardIndex | None,
    scan: Callable[[list[str]], Iterator[Scan]],
) -> Iterator[_Packed]:
    """Yield the segments of all shards in order; what the previous index knows is copied."""
    known = {} if previous is None else previous.places()
    fresh = scan([p for p, s in zip(paths, states, strict=True) if (p, s) not in known])
    for path, state in zip(paths, states, strict=True):
        place = known.get((path, state))
        if place is None or previous is None:
            yield _pack(next(fresh), state)
        else:
            segment = previous.segments[place]
            data = previous.segment_bytes(place)
            yield _Packed(
                data, state, segment.records, segment.skipped, segment.digest, segment.count_size
            )


def _pack(scan: Scan, state: storage.State) -> _Packed:
    ends = np.cumsum([len(key) for key in scan.keys], dtype="<u4")
    most = int(scan.caption_counts.max(initial=1))
    count_size = 0 if (scan.caption_counts == 1).all() else np.min_scalar_type(most).itemsize
    counts = scan.caption_counts.astype(f"<u{count_size}").tobytes() if count_size else b""
    data = scan.rows.tobytes() + counts + ends.tobytes() + b"".join(scan.keys)
    return _Packed(data, state, len(scan.rows), scan.skipped, scan.digest, count_size)


def _write(file: BinaryIO, paths: Sequence[str], packed: Iterable[_Packed]) -> None:
    """Write a whole index, one segment in memory at a time."""
    segments, checksum = [], zlib.crc32(_MAGIC)
    file.write(_MAGIC)
    for path, (data, state, *known) in zip(paths, packed, strict=True):
        segments.append(Segment(path, state, file.tell(), len(data), *known))
        checksum = zlib.crc32(data, checksum)
        file.write(data)
    digests = [segment.digest for segment in segments if segment.records]
    fingerprint = hashlib.sha256(repr(digests).encode()).hexdigest()
    table = json.dumps({"fingerprint": fingerprint, "segments": segments}).encode()
    tail = table + struct.pack("<Q", len(table))
    file.write(tail + struct.pack("<I", zlib.crc32(tail, checksum)))


def choose_file(paths: Sequence[str], name: str, folder: Path | None = None) -> Path | None:
    """Say where the index of some shards is to be kept.

    Args:
        paths: The shards.
        name: Tells indexes in one folder apart.
        folder: Where to keep it if it cannot lie beside the first shard.

    Returns:
        The index that is there, or a file that can be written; None if there is no such place, and
        for shards so small that they are scanned within a second.
    """
    try:
        if sum(storage.state_of(path)[0] for path in paths) < _WORTH_KEEPING:
            return None
    except FileNotFoundError:
        return None  # The scan will say which shard is missing.
    beside = [] if storage.is_remote(paths[0]) else [Path(paths[0]).absolute().parent]
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()
    for place in [*beside, *([folder] if folder else [])]:
        file = place / _FOLDER / f"{digest[:16]}.index"
        with contextlib.suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            if file.exists() or os.access(file.parent, os.W_OK):
                return file
    return None
