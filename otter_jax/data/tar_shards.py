"""Image-text pairs in the webdataset layout that img2dataset writes.

Uncompressed tar shards, in which `KEY.jpg`, `KEY.txt` and `KEY.json` belong together
(https://github.com/rom1504/img2dataset).
"""

import functools
import hashlib
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from otter_jax.data import storage
from otter_jax.data.records import (
    IMAGE_SUFFIXES,
    MAX_CAPTION_BYTES,
    CaptionRule,
    Progress,
    Record,
    RecordError,
    choose_captions,
    clean_caption,
    in_words,
    is_unsafe,
    no_progress,
    parse_metadata,
)
from otter_jax.data.scan_pool import scan_in_order
from otter_jax.data.shard_index import ROW, Scan, Segment, load_index

TRUNCATED = "truncated tar"
_IMAGE, _CAPTION, _METADATA = range(3)
_SLOT_OF_EXTENSION = {
    **{suffix.removeprefix("."): _IMAGE for suffix in IMAGE_SUFFIXES},
    "txt": _CAPTION,
    "json": _METADATA,
}
# What tarfile raises on damaged headers; a file that cannot be opened has been noticed before.
_DAMAGE = (tarfile.TarError, ValueError, OverflowError, RecursionError, MemoryError, OSError)
_Spans = list[storage.Span]  # By slot; size 0: no such member.


class TarShards:
    """The pairs of some tar shards, indexed once, then read at their byte offsets.

    Building the index reads every header, text and json, and of each image a few bytes;
    shard_index.py says how it is kept. A shard is opened for the length of one read, so an instance
    can be pickled, forked and used from any number of threads, and there may be more shards than
    open files are allowed. The fingerprint is that of keys, texts, metadata and the bytes seen of
    the images: a copy of the shards has the same, a rewritten caption or image another.

    Pairs are numbered in the order of `paths`, then in the order in which their keys first appear.
    A key ends at the first dot of the file's name, as in webdataset: `a.b.jpg` is no image of `a`.
    Left out, and counted in `skipped` by reason, are pairs without an image, with an empty
    caption, with a caption that is not UTF-8, with an absolute or ".." name, every further image,
    text or json under one key, and whatever follows the cut in a truncated tar. A link stands for
    no file.

    Attributes:
        skipped: How many pairs were left out, by reason. How many a truncated tar has lost nobody
            knows: it is taken to have been as long as the whole ones on average (where there are
            none, as the longest), and to have lost one pair at least.
        skipped_files: What is wrong with the shards that are truncated, by path.
    """

    def __init__(
        self,
        paths: Sequence[Path | str],
        name: str = "webdataset",
        *,
        index_file: Path | None = None,
        captions: CaptionRule = choose_captions,
        progress: Progress = no_progress,
    ) -> None:
        """Index the shards.

        Args:
            paths: The shards, in the order in which their pairs are to be numbered; on disks, or
                in stores that fsspec can reach.
            name: What to call them in logs.
            index_file: Where the index is kept from run to run; None: it is built every time.
            captions: How captions are made of a text member and metadata; a function of a module.
            progress: Shows how many shards are indexed.

        Raises:
            FileNotFoundError: If a shard does not exist.
            ValueError: If a shard is no uncompressed tar, or if there is not one usable pair.
        """
        self.name = name
        self._captions = captions

        def scan(shards: list[str]) -> Iterator[Scan]:
            found = scan_in_order(functools.partial(scan_shard, captions=captions), shards)
            return (
                iter(progress(found, len(shards), f"{name}: shards indexed")) if shards else found
            )

        try:
            self._index = load_index([str(path) for path in paths], scan, index_file)
        except FileNotFoundError:
            raise FileNotFoundError(_describe_missing([str(path) for path in paths])) from None
        self.paths = tuple(self._index.paths)
        self.skipped, self.skipped_files = _count_skipped(self._index.segments)
        self.fingerprint = self._index.fingerprint
        if not len(self._index):
            raise ValueError(
                f"{name}: no image-text pair in {len(self.paths)} shard(s) "
                f"({in_words(self.skipped)})"
            )

    @property
    def caption_counts(self) -> np.ndarray:
        """How many captions each pair's image has, uint32 [n]."""
        return self._index.caption_counts

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self._index)

    def __getitem__(self, i: int) -> Record:
        """Read pair `i`; IndexError where there is none, ValueError if its shard has changed."""
        entry = self._index[i]
        segment = self._index.segments[entry.shard]
        with storage.open_reader(segment.path, segment.state) as shard:
            members = shard.read_all(entry.spans)
        metadata = parse_metadata(members[_METADATA])
        captions = self._captions(clean_caption(members[_CAPTION]), metadata)
        key = entry.key.decode("utf-8", "surrogateescape")
        return Record(key, members[_IMAGE], captions[0], metadata, captions)


def scan_shard(path: str, captions: CaptionRule = choose_captions) -> Scan:
    """Find the usable pairs of one shard.

    Args:
        path: The shard.
        captions: How captions are made; where it makes none, the pair is of no use.

    Raises:
        FileNotFoundError: If it does not exist.
        ValueError: If it is no uncompressed tar.
    """
    skipped: Counter[str] = Counter()
    digest = hashlib.sha256()
    with storage.local_copy(path) as copy, storage.open_reader(copy) as file:
        groups, complete = _group_members(copy, path, skipped)
        if not complete:
            skipped[TRUNCATED] += 1
        last = next(reversed(groups), None)
        keys, rows, counts = [], [], []
        for key, spans in groups.items():
            try:
                count, *contents = _read_usable(key, spans, file, captions)
            except RecordError as error:
                if complete or key != last:  # A pair the cut goes through is counted as the cut.
                    skipped[str(error)] += 1
                continue
            keys.append(key.encode("utf-8", "surrogateescape"))
            rows.append(tuple(zip(*spans, strict=True)))
            counts.append(count)
            digest.update(repr((keys[-1], spans[_IMAGE][1], tuple(contents))).encode())
    found = np.array(rows, dtype=ROW), keys, np.array(counts, np.uint32)
    return Scan(*found, dict(skipped), digest.hexdigest())


def _describe_missing(paths: Sequence[str]) -> str:
    """Say which of the shards, one at least, are not there."""
    missing = [path for path in paths if not storage.exists(path)] or paths  # Or it is back again.
    if len(paths) > 1:
        return f"{len(missing)} of {len(paths)} shards are missing, first {missing[0]}"
    kind = "tar shard" if missing[0].endswith(".tar") else "folder, nor such a tar shard"
    return f"{missing[0]}: no such {kind}"


def _count_skipped(segments: Sequence[Segment]) -> tuple[dict[str, int], dict[str, str]]:
    """Return `TarShards.skipped` and `TarShards.skipped_files`."""
    total: Counter[str] = Counter()
    files: dict[str, str] = {}
    whole = [_pairs_seen(each) for each in segments if TRUNCATED not in each.skipped]
    usual = round(np.mean(whole)) if whole else max(map(_pairs_seen, segments), default=0)
    for segment in segments:
        counts = dict(segment.skipped)
        if TRUNCATED in counts:
            lost = counts[TRUNCATED] = max(1, usual - _pairs_seen(segment))
            files[segment.path] = f"{TRUNCATED}: {segment.records} pairs read, about {lost} lost"
        total.update(counts)
    return dict(sorted(total.items())), files


def _pairs_seen(segment: Segment) -> int:
    """Return how many pairs a shard shows, those included that are of no use."""
    return segment.records + sum(segment.skipped.values()) - segment.skipped.get(TRUNCATED, 0)


def _group_members(copy: str, path: str, skipped: Counter[str]) -> tuple[dict[str, _Spans], bool]:
    """Return where the members of each key lie, and whether the tar reaches its end mark."""
    groups: dict[str, _Spans] = {}
    try:
        with tarfile.open(copy, "r:") as archive:
            file_size = Path(copy).stat().st_size
            for member in _headers(archive):
                key, slot = _key_and_slot(member)
                if not key or member.offset_data + member.size > file_size:
                    continue
                spans = groups.setdefault(key, [(0, 0)] * 3)
                if slot is None or not member.isreg():
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
    """Split a member's name as webdataset does, at the first dot of its last component.

    The key is "" for what belongs to no pair; the slot is None for what we have no use for.
    """
    folder, _, file_name = member.name.removeprefix("./").rpartition("/")
    stem, dot, extension = file_name.partition(".")
    is_file = member.isreg() or member.islnk() or member.issym()
    if not (stem and dot and is_file) or member.issparse():
        return "", None
    key = f"{folder}/{stem}" if folder or member.name.startswith("/") else stem
    return key, _SLOT_OF_EXTENSION.get(extension.lower())


def _read_usable(
    key: str, spans: _Spans, file: storage.Reader, choose: CaptionRule
) -> tuple[int, bytes, bytes, bytes]:
    """Return the number of captions, texts, and a sample of the image; RecordError if unusable."""
    if is_unsafe(key):
        raise RecordError("unsafe name")
    if not spans[_IMAGE][1]:
        raise RecordError("no image")
    offset, size = spans[_CAPTION]
    text, metadata = file.read_all([(offset, min(size, MAX_CAPTION_BYTES)), spans[_METADATA]])
    try:
        caption = clean_caption(text)
    except UnicodeDecodeError:
        raise RecordError("caption not UTF-8") from None
    count = len(choose(caption, parse_metadata(metadata)))
    if not count:
        raise RecordError("empty caption")
    return count, text, metadata, storage.sample(file, *spans[_IMAGE])
