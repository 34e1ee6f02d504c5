"""Random access to image-text pairs.

A source is a fixed, numbered list of pairs: `source[i]` is the same record in every process and in
every run, which is what makes a batch a pure function of the seed and the step. The one storage
format is the webdataset layout that img2dataset writes: uncompressed tar shards in which
`KEY.jpg`, `KEY.txt` and `KEY.json` belong together (https://github.com/rom1504/img2dataset).
"""

import codecs
import glob
import hashlib
import importlib.resources
import itertools
import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

MAX_CAPTION_CHARACTERS = 10_000
_MAX_CAPTION_BYTES = 4 * MAX_CAPTION_CHARACTERS  # UTF-8 needs at most four bytes a character

_IMAGE, _CAPTION, _METADATA = range(3)
_SLOT_OF_EXTENSION = {
    "jpg": _IMAGE,
    "jpeg": _IMAGE,
    "png": _IMAGE,
    "webp": _IMAGE,
    "txt": _CAPTION,
    "json": _METADATA,
}
_SPEC_FORMS = "open_clipart, webdataset:PATH (a tar, a folder of tars, a glob, or {00000..00331})"
_SPLITS = ("train", "heldout")

# One row per pair. Offset and size are in bytes, by slot; size 0 stands for "no such member".
_INDEX = np.dtype([("shard", np.int32), ("offset", np.int64, 3), ("size", np.int64, 3)])


class Record(NamedTuple):
    """One pair as it is stored: the image still encoded, the caption cleaned of nothing but NULs.

    Attributes:
        key: The name the members share, folder included and extension excluded.
        image: The encoded image file.
        caption: Never empty, at most `MAX_CAPTION_CHARACTERS` long.
        metadata: The pair's json member, or `{}` where there is none that can be read.
    """

    key: str
    image: bytes
    caption: str
    metadata: dict[str, Any]


class Source(Protocol):
    """What the input pipeline asks of a data set.

    Attributes:
        name: What to call the data in logs.
        skipped: How many records (for "truncated tar": shards) were left out, by reason.
        fingerprint: A hexadecimal sha256 that changes when the list of records changes.
    """

    name: str
    skipped: dict[str, int]
    fingerprint: str

    def __len__(self) -> int:
        """Return the number of records."""
        ...

    def __getitem__(self, i: int) -> Record:
        """Return record `i`; IndexError where there is none."""
        ...


def open_source(spec: str, split: str = "train") -> Source:
    """Open the data set that `spec` names.

    Args:
        spec: `open_clipart`, the collection that comes with the package, or `webdataset:PATH`
            where PATH is one tar, a folder of `*.tar`, a glob, or has brace ranges.
        split: "train" or "heldout". Only built-in collections are divided; a path is read whole.

    Raises:
        ValueError: For a spec or split that means nothing, and for data that hold no pair.
        FileNotFoundError: For a path at which there is nothing.
    """
    if spec == "open_clipart":
        return TarShards(_embedded_shards(spec, split), name=f"{spec}/{split}")
    scheme, separator, pattern = spec.partition(":")
    if scheme == "webdataset" and separator and pattern:
        return TarShards(_find_shards(pattern), name=spec)
    raise ValueError(f"unknown data source {spec!r}; valid forms: {_SPEC_FORMS}")


class TarShards:
    """The pairs of some tar shards, indexed once, then read at their byte offsets.

    Building the index reads every header and every caption, but no image. What is kept are two
    arrays, about 60 bytes a pair and no Python object. A shard is opened for the length of one
    read, so an instance can be pickled, forked and used from any number of threads, and there may
    be more shards than open files are allowed. The index depends on the shards alone: it could be
    cached beside them should scanning ever take too long.

    Pairs are numbered in the order of `paths`, then in the order in which their keys first appear.
    Left out, and counted in `skipped` by reason, are pairs without an image, with an empty
    caption, with a caption that is not UTF-8, with an absolute or ".." name, and whatever follows
    the cut in a truncated tar.
    """

    def __init__(self, paths: Sequence[Path | str], name: str = "webdataset") -> None:
        """Index the shards.

        Args:
            paths: The shards, in the order in which their pairs are to be numbered.
            name: What to call them in logs.

        Raises:
            FileNotFoundError: If a shard does not exist.
            ValueError: If a shard is no uncompressed tar, or if there is not one usable pair.
        """
        self.name = name
        self.paths = tuple(os.fspath(path) for path in paths)
        skipped: Counter[str] = Counter()
        scans = [_scan_shard(path, shard, skipped) for shard, path in enumerate(self.paths)]
        self.skipped = dict(sorted(skipped.items()))
        if not any(len(keys) for keys, _ in scans):
            raise ValueError(f"{name}: no image-text pair in {len(scans)} shard(s), {self.skipped}")
        self._keys = np.concatenate([keys for keys, _ in scans])
        self._index = np.concatenate([index for _, index in scans])
        self.fingerprint = _fingerprint(self._keys, self._index)

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self._index)

    def __getitem__(self, i: int) -> Record:
        """Read pair `i`; IndexError where there is none, ValueError if its shard has changed."""
        row = self._index[i]
        with _Shard(self.paths[row["shard"]]) as shard:
            members = [shard.read(*span) for span in zip(row["offset"], row["size"], strict=True)]
        metadata = _parse_metadata(members[_METADATA])
        return Record(
            key=self._keys[i].decode("utf-8", "surrogateescape"),
            image=members[_IMAGE],
            caption=_choose_caption(members[_CAPTION], metadata),
            metadata=metadata,
        )


class _Shard:
    """A file open for reads that leave no position behind."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> "_Shard":
        self._descriptor = os.open(self._path, os.O_RDONLY)
        return self

    def __exit__(self, *unused: object) -> None:
        os.close(self._descriptor)

    def read(self, offset: int, size: int) -> bytes:
        """Return exactly `size` bytes from `offset` on."""
        data = os.pread(self._descriptor, size, offset) if size else b""
        if len(data) != size:
            raise ValueError(f"{self._path}: shorter than when it was indexed; restart the run")
        return data


def _scan_shard(path: str, shard: int, skipped: Counter[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the keys (bytes) and the index rows of one shard's usable pairs."""
    groups, complete = _group_members(path)
    if not complete:
        skipped["truncated tar"] += 1
    last = next(reversed(groups), None)
    keys, rows = [], []
    with _Shard(path) as file:
        for key, spans in groups.items():
            reason = _why_unusable(key, spans, file)
            if reason is None:
                keys.append(key.encode("utf-8", "surrogateescape"))
                rows.append((shard, *zip(*spans, strict=True)))
            elif complete or key != last:  # a pair the cut goes through is counted as the cut
                skipped[reason] += 1
    return np.array(keys, dtype=np.bytes_), np.array(rows, dtype=_INDEX)


_Spans = list[tuple[int, int]]  # (offset, size) in bytes, by slot


def _group_members(path: str) -> tuple[dict[str, _Spans], bool]:
    """Return where the members of each key lie, and whether the tar reaches its end mark."""
    groups: dict[str, _Spans] = {}
    try:
        with tarfile.open(path, "r:") as archive:
            file_size = os.stat(path).st_size
            for member in _headers(archive):
                key, slot = _key_and_slot(member)
                if slot is None or member.offset_data + member.size > file_size:
                    continue
                spans = groups.setdefault(key, [(0, 0)] * 3)
                if spans[slot] == (0, 0):  # of two images under one key the first counts
                    spans[slot] = (member.offset_data, member.size)
            archive.fileobj.seek(archive.offset)
            return groups, archive.fileobj.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path}: no such tar shard; config.data.train=webdataset:PATH says where the pairs lie"
        ) from None
    except (tarfile.TarError, IsADirectoryError) as error:
        raise ValueError(f"{path}: not an uncompressed tar ({error})") from None


def _headers(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the members up to the end of the archive or to the first header that is broken."""
    while True:
        try:
            member = archive.next()
        except (tarfile.TarError, ValueError):
            return
        if member is None or member.size < 0:  # a negative size would send tarfile backwards
            return
        archive.members.clear()  # tarfile would hold on to every header it has read
        yield member


def _key_and_slot(member: tarfile.TarInfo) -> tuple[str, int | None]:
    """Split a member's name as webdataset does, at the first dot of its last component."""
    folder, _, file_name = member.name.removeprefix("./").rpartition("/")
    stem, _, extension = file_name.partition(".")
    if not stem or not member.isreg() or member.issparse():
        return "", None
    key = f"{folder}/{stem}" if folder or member.name.startswith("/") else stem
    return key, _SLOT_OF_EXTENSION.get(extension.lower())


def _why_unusable(key: str, spans: _Spans, file: _Shard) -> str | None:
    """Return why a pair is to be skipped, None if it is usable."""
    if key.startswith("/") or ".." in key.split("/"):
        return "unsafe name"
    if not spans[_IMAGE][1]:
        return "no image"
    offset, size = spans[_CAPTION]
    try:
        if _clean_caption(file.read(offset, min(size, _MAX_CAPTION_BYTES))):
            return None
    except UnicodeDecodeError:
        return "caption not UTF-8"
    metadata = _parse_metadata(file.read(*spans[_METADATA]))
    return None if _choose_caption(b"", metadata) else "empty caption"


def _choose_caption(text: bytes, metadata: dict[str, Any]) -> str:
    """Return the txt member's caption, or else the one the metadata carry, or else nothing."""
    fallback = metadata.get("caption")
    return _clean_caption(text) or _clean_caption(
        fallback.encode("utf-8", "replace") if isinstance(fallback, str) else b""
    )


def _clean_caption(data: bytes) -> str:
    """Decode a caption, cut to its limit; NULs and a byte-order mark go, as tokenizers choke."""
    whole = len(data) < _MAX_CAPTION_BYTES
    text, _ = codecs.utf_8_decode(data[:_MAX_CAPTION_BYTES], "strict", whole)
    return text.removeprefix("\ufeff").replace("\0", "")[:MAX_CAPTION_CHARACTERS].strip()


def _parse_metadata(data: bytes) -> dict[str, Any]:
    """Return the json object in `data`, or `{}` if it is none: a pair can do without metadata."""
    try:
        metadata = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return metadata if isinstance(metadata, dict) else {}


def _fingerprint(keys: np.ndarray, index: np.ndarray) -> str:
    digest = hashlib.sha256(index["size"].astype("<i8").tobytes())
    digest.update(keys.tobytes())
    return digest.hexdigest()


def _embedded_shards(name: str, split: str) -> list[Path]:
    if split not in _SPLITS:
        raise ValueError(f"{name} has no split {split!r}; valid splits: {', '.join(_SPLITS)}")
    folder = Path(str(importlib.resources.files("otter_jax.data").joinpath(name)))
    return _match(str(folder / f"{split}-*.tar"))


def _find_shards(pattern: str) -> list[Path]:
    """Return the shards a pattern stands for, braces first, then folders and globs."""
    return [
        path
        for expanded in _expand_braces(os.path.expanduser(pattern))
        for path in _match(os.path.join(expanded, "*.tar") if os.path.isdir(expanded) else expanded)
    ]


def _match(pattern: str) -> list[Path]:
    """Return the files a glob matches, sorted; a name without wildcards stands for itself."""
    if not glob.has_magic(pattern) or os.path.exists(pattern):
        return [Path(pattern)]
    matches = sorted(glob.glob(pattern))
    if not matches:
        raise FileNotFoundError(f"{pattern}: no tar shard matches")
    return [Path(match) for match in matches]


def _expand_braces(pattern: str) -> list[str]:
    """Expand `{000..331}` and `{a,b}` the way a shell does, leading zeros kept."""
    pieces = re.split(r"\{([^{}]*)\}", pattern)  # literal, choice, literal, choice, ..., literal
    choices = [[p] if i % 2 == 0 else _brace_choices(p) for i, p in enumerate(pieces)]
    return ["".join(combination) for combination in itertools.product(*choices)]


def _brace_choices(text: str) -> list[str]:
    limits = re.fullmatch(r"(\d+)\.\.(\d+)", text)
    if limits is None:
        return text.split(",")
    first, last = limits.groups()
    if int(first) > int(last):
        raise ValueError(f"shard range {{{text}}} runs backwards; write {{{last}..{first}}}")
    return [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
