"""Image-text pairs in the webdataset layout that img2dataset writes.

Uncompressed tar shards, in which `KEY.jpg`, `KEY.txt` and `KEY.json` belong together
(https://github.com/rom1504/img2dataset).
"""

import dataclasses
import functools
import hashlib
import os
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from otter_jax.data import storage
from otter_jax.data.columns import CAPTION_NAMES
from otter_jax.data.records import (
    FIRST_IMAGE_SUFFIXES,
    IMAGE_SUFFIXES,
    MAX_CAPTION_BYTES,
    OTHER_IMAGE_SUFFIXES,
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
BEHIND_THE_END = "behind the end of the tar"  # Where tars were joined by cat.
# Of the members of a key; what is in _LATER_IMAGE is only used where there is no other image.
_IMAGE, _CAPTION, _METADATA, _LATER_IMAGE = range(4)
_SLOT_OF_EXTENSION = {
    **{suffix.removeprefix("."): _LATER_IMAGE for suffix in IMAGE_SUFFIXES},
    **{suffix.removeprefix("."): _IMAGE for suffix in FIRST_IMAGE_SUFFIXES},
    "txt": _CAPTION,
    "json": _METADATA,
}
_CAPTION_LIKE = ("text", "caption", "captions", "cap", "cls", "txt.gz")  # Other people's.
# What tarfile raises on damaged headers; a file that cannot be opened has been noticed before.
_DAMAGE = (tarfile.TarError, ValueError, OverflowError, RecursionError, MemoryError, OSError)
_MODE_FIELD = slice(100, 108)  # Of a header; octal digits.
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, zstd
_READ_BEHIND = 1 << 20  # Bytes at a time, behind the end mark.
_NOTHING: storage.Span = (0, 0)


@dataclasses.dataclass
class _Members:
    """What lies under one key: the spans of its members by slot, and how others are called."""

    spans: list[storage.Span] = dataclasses.field(default_factory=lambda: [_NOTHING] * 4)
    others: list[str] = dataclasses.field(default_factory=list)  # Extensions.

    def chosen(self) -> list[storage.Span]:
        """Return the spans of image, caption and metadata."""
        image = self.spans[_IMAGE] if self.spans[_IMAGE] != _NOTHING else self.spans[_LATER_IMAGE]
        return [image, *self.spans[_CAPTION:_LATER_IMAGE]]


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
    text or json under one key, and whatever follows the cut in a truncated tar or the end mark of
    a whole one. A link stands for no file.

    Attributes:
        skipped: How many pairs were left out, by reason. How many a truncated tar has lost nobody
            knows: it is taken to have been as long as the whole ones on average (where there are
            none, as the longest), and to have lost one pair at least.
        skipped_files: What is wrong with the shards that are truncated, or go on behind their end,
            by path.
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
        return Record(_name(entry.key), members[_IMAGE], captions[0], metadata, captions)

    def key(self, i: int) -> str:
        """Return what pair `i` is called, from the index alone."""
        return _name(self._index[i].key)


def _name(key: bytes) -> str:
    return key.decode("utf-8", "surrogateescape")


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
        for key, members in groups.items():
            spans = members.chosen()
            try:
                count, *contents = _read_usable(key, members, file, captions)
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
        elif BEHIND_THE_END in counts:
            lost = counts[BEHIND_THE_END]
            files[segment.path] = f"{lost} pairs lie {BEHIND_THE_END}: write it anew as one"
        total.update(counts)
    return dict(sorted(total.items())), files


def _pairs_seen(segment: Segment) -> int:
    """Return how many pairs a shard shows, those included that are of no use."""
    return segment.records + sum(segment.skipped.values()) - segment.skipped.get(TRUNCATED, 0)


def _group_members(copy: str, path: str, skipped: Counter[str]) -> tuple[dict[str, _Members], bool]:
    """Return what lies under each key, and whether the tar reaches its end mark."""
    groups: dict[str, _Members] = {}
    file_size = os.stat(copy).st_size
    if file_size < tarfile.BLOCKSIZE:  # Not even one header.
        _refuse_no_start_of_a_tar(copy, path)
        return groups, False
    try:
        with tarfile.open(copy, "r:") as archive:
            for member in _headers(archive):
                key, extension = _key_and_extension(member)
                if not key or member.offset_data + member.size > file_size:
                    continue
                members = groups.setdefault(key, _Members())
                slot = _SLOT_OF_EXTENSION.get(extension)
                if slot is None or not member.isreg():
                    members.others.append(extension)
                elif members.spans[slot] == _NOTHING:  # Of two images the first counts.
                    members.spans[slot] = (member.offset_data, member.size)
                else:
                    skipped["second member of its kind under one key"] += 1
            archive.fileobj.seek(archive.offset)
            complete = archive.fileobj.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)
            if complete and (behind := _count_behind(copy, archive.offset, file_size)):
                skipped[BEHIND_THE_END] += behind
            return groups, complete
    except _DAMAGE as error:
        raise ValueError(f"{path}: not an uncompressed tar ({error})") from None


def _refuse_no_start_of_a_tar(copy: str, path: str) -> None:
    """Refuse (ValueError) what is shorter than a header, and is not how a header begins."""
    start = Path(copy).read_bytes()
    mode = start[_MODE_FIELD].strip(b"\0 ")
    if start.startswith(_COMPRESSED) or not all(digit in b"01234567" for digit in mode):
        raise ValueError(f"{path}: not an uncompressed tar ({len(start)} bytes of something else)")


def _count_behind(copy: str, end: int, file_size: int) -> int:
    """Return how many keys there are behind the end mark, one at least if it is not all zeros."""
    with open(copy, "rb") as file:
        file.seek(end)
        while (block := file.read(_READ_BEHIND)) and not block.strip(b"\0"):
            pass
        if not block:
            return 0
        start = file.tell() - len(block.lstrip(b"\0"))
        file.seek(start - start % tarfile.BLOCKSIZE)
        keys: set[str] = set()
        try:
            with tarfile.open(fileobj=file, mode="r:", ignore_zeros=True) as archive:
                keys.update(_key_and_extension(member)[0] for member in _headers(archive))
        except _DAMAGE:
            pass
    return max(1, len(keys - {""}))


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


def _key_and_extension(member: tarfile.TarInfo) -> tuple[str, str]:
    """Split a member's name as webdataset does, at the first dot of its last component.

    The key is "" for what belongs to no pair; the extension is in lower case.
    """
    folder, _, file_name = member.name.removeprefix("./").rpartition("/")
    stem, dot, extension = file_name.partition(".")
    is_file = member.isreg() or member.islnk() or member.issym()
    if not (stem and dot and is_file) or member.issparse():
        return "", ""
    key = f"{folder}/{stem}" if folder or member.name.startswith("/") else stem
    return key, extension.lower()


def _read_usable(
    key: str, members: _Members, file: storage.Reader, choose: CaptionRule
) -> tuple[int, bytes, bytes, bytes]:
    """Return the number of captions, texts, and a sample of the image; RecordError if unusable."""
    image, text_span, metadata_span = members.chosen()
    if is_unsafe(key):
        raise RecordError("unsafe name")
    if not image[1]:
        raise RecordError(_why_no_image(members.others))
    offset, size = text_span
    text, metadata = file.read_all([(offset, min(size, MAX_CAPTION_BYTES)), metadata_span])
    try:
        caption = clean_caption(text)
    except UnicodeDecodeError:
        raise RecordError("caption not UTF-8") from None
    parsed = parse_metadata(metadata)
    count = len(choose(caption, parsed))
    if not count:
        raise RecordError(_why_no_caption(members, parsed))
    return count, text, metadata, storage.sample(file, *image)


def _why_no_image(extensions: Sequence[str]) -> str:
    """Return why there is no image among members of these extensions, in words to count by."""
    for extension in extensions:
        suffix = f".{extension.rpartition('.')[2]}"
        if suffix in IMAGE_SUFFIXES and "." in extension:
            return f"no image (a key ends at the first dot: KEY.*{suffix} is none)"
        if suffix in OTHER_IMAGE_SUFFIXES:
            return f"image format that is not read ({suffix})"
    return "no image"


def _why_no_caption(members: _Members, metadata: Mapping[str, Any]) -> str:
    """Return why there is no caption, in words to count by."""
    if members.spans[_CAPTION] == _NOTHING:
        for extension in members.others:
            if extension in _CAPTION_LIKE or extension.endswith(".txt"):
                shown = extension if extension in _CAPTION_LIKE else "*.txt"
                return f"empty caption (it is read from KEY.txt, not KEY.{shown})"
        for name in CAPTION_NAMES:
            if name not in ("caption", "captions") and isinstance(metadata.get(name), str):
                return f"empty caption (json has {name!r}, and no 'caption')"
    return "empty caption"
