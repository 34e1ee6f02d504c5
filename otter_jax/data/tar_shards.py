"""Image-text pairs in the webdataset layout that img2dataset writes.

Uncompressed tar shards, in which `KEY.jpg`, `KEY.txt` and `KEY.json` belong together
(https://github.com/rom1504/img2dataset).
"""

import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from otter_jax.data import storage
from otter_jax.data.records import (
    MAX_CAPTION_BYTES,
    Progress,
    Record,
    clean_caption,
    clean_captions,
    is_unsafe,
    no_progress,
    parse_metadata,
)
from otter_jax.data.scan_pool import scan_in_order
from otter_jax.data.shard_index import ROW, Scan, load_index

_IMAGE, _CAPTION, _METADATA = range(3)
_SLOT_OF_EXTENSION = {
    "jpg": _IMAGE,
    "jpeg": _IMAGE,
    "png": _IMAGE,
    "webp": _IMAGE,
    "txt": _CAPTION,
    "json": _METADATA,
}
# What tarfile raises on damaged headers; a file that cannot be opened has been noticed before.
_DAMAGE = (tarfile.TarError, ValueError, OverflowError, RecursionError, MemoryError, OSError)
_Spans = list[tuple[int, int]]  # (offset, size) in bytes, by slot; size 0: no such member.


class TarShards:
    """The pairs of some tar shards, indexed once, then read at their byte offsets.

    Building the index reads every header and every caption, but no image; shard_index.py says how
    it is kept. A shard is opened for the length of one read, so an instance can be pickled, forked
    and used from any number of threads, and there may be more shards than open files are allowed.

    Pairs are numbered in the order of `paths`, then in the order in which their keys first appear.
    Left out, and counted in `skipped` by reason, are pairs without an image, with an empty
    caption, with a caption that is not UTF-8, with an absolute or ".." name, every further image,
    text or json under one key, and whatever follows the cut in a truncated tar. A link stands for
    no file.
    """

    def __init__(
        self,
        paths: Sequence[Path | str],
        name: str = "webdataset",
        *,
        index_file: Path | None = None,
        progress: Progress = no_progress,
    ) -> None:
        """Index the shards.

        Args:
            paths: The shards, in the order in which their pairs are to be numbered; on disks, or
                in stores that fsspec can reach.
            name: What to call them in logs.
            index_file: Where the index is kept from run to run; None: it is built every time.
            progress: Shows how many shards are indexed.

        Raises:
            FileNotFoundError: If a shard does not exist.
            ValueError: If a shard is no uncompressed tar, or if there is not one usable pair.
        """
        self.name = name

        def scan(shards: list[str]) -> Iterator[Scan]:
            found = scan_in_order(scan_shard, shards)
            return (
                iter(progress(found, len(shards), f"{name}: shards indexed")) if shards else found
            )

        try:
            self._index = load_index([str(path) for path in paths], scan, index_file)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{error.filename or error}: no such tar shard; config.data.train=webdataset:PATH "
                "says where the pairs lie"
            ) from None
        self.paths = tuple(self._index.paths)
        self.skipped = self._index.skipped
        self.fingerprint = self._index.fingerprint
        if not len(self._index):
            raise ValueError(
                f"{name}: no image-text pair in {len(self.paths)} shard(s), {self.skipped}"
            )

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self._index)

    def __getitem__(self, i: int) -> Record:
        """Read pair `i`; IndexError where there is none, ValueError if its shard has changed."""
        entry = self._index[i]
        with storage.open_reader(self.paths[entry.shard]) as shard:
            members = [shard.read(*span) for span in entry.spans]
        metadata = parse_metadata(members[_METADATA])
        captions = _choose_captions(members[_CAPTION], metadata)
        key = entry.key.decode("utf-8", "surrogateescape")
        return Record(key, members[_IMAGE], captions[0], metadata, captions)


def scan_shard(path: str) -> Scan:
    """Find the usable pairs of one shard.

    Raises:
        FileNotFoundError: If it does not exist.
        ValueError: If it is no uncompressed tar.
    """
    skipped: Counter[str] = Counter()
    with storage.local_copy(path) as copy, storage.open_reader(copy) as file:
        groups, complete = _group_members(copy, path, skipped)
        if not complete:
            skipped["truncated tar"] += 1
        last = next(reversed(groups), None)
        keys, rows = [], []
        for key, spans in groups.items():
            reason = _why_unusable(key, spans, file)
            if reason is None:
                keys.append(key.encode("utf-8", "surrogateescape"))
                rows.append(tuple(zip(*spans, strict=True)))
            elif complete or key != last:  # A pair the cut goes through is counted as the cut.
                skipped[reason] += 1
    return Scan(np.array(rows, dtype=ROW), keys, dict(skipped))


def _group_members(copy: str, path: str, skipped: Counter[str]) -> tuple[dict[str, _Spans], bool]:
    """Return where the members of each key lie, and whether the tar reaches its end mark."""
    groups: dict[str, _Spans] = {}
    try:
        with tarfile.open(copy, "r:") as archive:
            file_size = Path(copy).stat().st_size
            for member in _headers(archive):
                key, slot = _key_and_slot(member)
                if slot is None or member.offset_data + member.size > file_size:
                    continue
                spans = groups.setdefault(key, [(0, 0)] * 3)
                if not member.isreg():
                    continue
                if spans[slot] == (0, 0):  # Of two images under one key the first counts.
                    spans[slot] = (member.offset_data, member.size)
                else:
                    skipped["second member of its kind under one key"] += 1
            archive.fileobj.seek(archive.offset)
            return groups, archive.fileobj.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)
    except _DAMAGE as error:
        raise ValueError(f"{path}: not an uncompressed tar ({error})") from None


def _headers(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the members up to the end of the archive or to the first header that is broken."""
    while True:
        try:
            member = archive.next()
        except _DAMAGE:
            return
        if member is None or member.size < 0:  # A negative size would send tarfile backwards.
            return
        archive.members.clear()  # Tarfile would hold on to every header it has read.
        yield member


def _key_and_slot(member: tarfile.TarInfo) -> tuple[str, int | None]:
    """Split a member's name as webdataset does, at the first dot of its last component."""
    folder, _, file_name = member.name.removeprefix("./").rpartition("/")
    stem, _, extension = file_name.partition(".")
    if not stem or not (member.isreg() or member.islnk() or member.issym()) or member.issparse():
        return "", None
    key = f"{folder}/{stem}" if folder or member.name.startswith("/") else stem
    return key, _SLOT_OF_EXTENSION.get(extension.lower())


def _why_unusable(key: str, spans: _Spans, file: storage.Reader) -> str | None:
    """Return why a pair is to be skipped, None if it is usable."""
    if is_unsafe(key):
        return "unsafe name"
    if not spans[_IMAGE][1]:
        return "no image"
    offset, size = spans[_CAPTION]
    try:
        if clean_caption(file.read(offset, min(size, MAX_CAPTION_BYTES))):
            return None
    except UnicodeDecodeError:
        return "caption not UTF-8"
    metadata = parse_metadata(file.read(*spans[_METADATA]))
    return None if _choose_captions(b"", metadata) else "empty caption"


def _choose_captions(text: bytes, metadata: dict[str, Any]) -> tuple[str, ...]:
    """Return the txt member's caption and those that the metadata list, each once.

    A lone `caption` of the metadata is what the txt member was made from; it only stands in for it.
    """
    own, lone = clean_caption(text), metadata.get("caption")
    listed = clean_captions(metadata.get("captions"))
    if isinstance(lone, list) or not own:
        listed = clean_captions(lone) + listed
    return tuple(dict.fromkeys((own, *listed) if own else listed))
