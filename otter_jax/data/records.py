"""What a data source gives, what it is asked for, and how a caption is cleaned."""

import codecs
import itertools
import json
import math
import os
import stat
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from otter_jax.data.text_files import split_lines

MAX_CAPTION_CHARACTERS = 10_000
MAX_CAPTION_BYTES = 4 * MAX_CAPTION_CHARACTERS  # UTF-8 needs at most four bytes a character.
FIRST_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
IMAGE_SUFFIXES = (*FIRST_IMAGE_SUFFIXES, ".jfif", ".jpe", ".ppm", ".pgm", ".pbm", ".pnm", ".apng",
                  ".avif", ".heic", ".heif", ".jxl")  # fmt: skip
# Of images that are not read, which are counted where they are found.
OTHER_IMAGE_SUFFIXES = (".svg", ".svgz", ".eps", ".psd", ".ai", ".ico", ".tga", ".dds", ".exr",
                        ".hdr", ".jp2", ".j2k", ".jpx", ".dng", ".cr2", ".cr3", ".nef", ".arw",
                        ".raw", ".dcm", ".xcf", ".qoi")  # fmt: skip
READ_AT_A_TIME = 64  # Records, whose images are in memory together.


class Record(NamedTuple):
    """One pair as it is stored: the image still encoded, the caption cleaned of nothing but NULs.

    Attributes:
        key: What the pair is called; for tar shards the name its members share.
        image: The encoded image file.
        caption: Never empty, at most `MAX_CAPTION_CHARACTERS` long.
        metadata: What else is known of the pair, or `{}`.
        captions: All captions of the image, `caption` first.
    """

    key: str
    image: bytes
    caption: str
    metadata: dict[str, Any]
    captions: tuple[str, ...] = ()


# (text member, cleaned; metadata) -> captions, cleaned; none where the record has none.
CaptionRule = Callable[[str, Mapping[str, Any]], tuple[str, ...]]


class RecordError(ValueError):
    """A record that turned out unusable when it was read; the message is the reason, one line."""


class Source(Protocol):
    """What the input pipeline asks of a data set: a fixed, numbered list of pairs.

    Attributes:
        name: What to call the data in logs.
        skipped: How many records were left out, by reason; of a truncated tar it is an estimate.
        fingerprint: A hexadecimal sha256 that changes when the list of records changes.
        caption_counts: How many captions each record has, unsigned integers [n]; None where that
            is not known before every record is read.
    """

    name: str
    skipped: dict[str, int]
    fingerprint: str
    caption_counts: np.ndarray | array | None

    def __len__(self) -> int:
        """Return the number of records."""
        ...

    def __getitem__(self, i: int) -> Record:
        """Return record `i`.

        Raises:
            IndexError: Where there is none.
            RecordError: If this one cannot be used, which its source could not know earlier.
            ValueError: If the data have changed since they were opened.
        """
        ...


def read_records(source: Source, numbers: Sequence[int]) -> list[Record | RecordError]:
    """Return some records by their numbers, or why one cannot be used.

    A source that reads many records for little more than the price of one has a method
    `read_many` that does the same.
    """
    read_many = getattr(source, "read_many", None)
    if read_many is not None:
        return read_many(numbers)
    return [_read_one(source, number) for number in numbers]


def _read_one(source: Source, number: int) -> Record | RecordError:
    try:
        return source[number]
    except RecordError as error:
        return error


def first_caption(source: Source, number: int) -> str:
    """Return a record's first caption; RecordError if it cannot be used.

    A source that has its captions without reading images, of which a group may be hundreds of
    megabytes in Parquet, has a method `first_caption` that does the same.
    """
    own = getattr(source, "first_caption", None)
    return source[number].caption if own is None else own(number)


def single_captions(source: Source) -> list[str] | None:
    """Return every record's caption, "" where it cannot be used; None if a record has several.

    Of a source that knows how many it has, no more is read than `first_caption` reads.
    """
    numbers = range(len(source))
    if source.caption_counts is not None:
        if np.max(source.caption_counts, initial=0) > 1:
            return None
        return [_usable_caption(source, number) for number in numbers]
    captions = []
    for _, record in read_in_order(source, numbers):
        if isinstance(record, Record) and len(record.captions) > 1:
            return None
        captions.append(record.caption if isinstance(record, Record) else "")
    return captions


def _usable_caption(source: Source, number: int) -> str:
    try:
        return first_caption(source, number)
    except RecordError:
        return ""


def key_of(source: Source, number: int) -> str:
    """Return what a record is called; RecordError if it cannot be used.

    A source that knows it without reading an image has a method `key` that does the same.
    """
    own = getattr(source, "key", None)
    return source[number].key if own is None else own(number)


def read_in_order(
    source: Source, numbers: Iterable[int]
) -> Iterator[tuple[int, Record | RecordError]]:
    """Yield the numbers of records with what `read_records` gives, some of them read at a time."""
    numbers = iter(numbers)
    while part := list(itertools.islice(numbers, READ_AT_A_TIME)):
        yield from zip(part, read_records(source, part), strict=True)


class Progress(Protocol):
    """Passes items on and shows how far it is, as `otter_jax.terminal.progress` does."""

    def __call__(self, items: Iterable[Any], total: int, label: str) -> Iterable[Any]:
        """Yield the items, `total` in number."""
        ...


def no_progress(items: Iterable[Any], total: int, label: str) -> Iterable[Any]:
    """Pass items on and show nothing."""
    del total, label
    return items


def clean_caption(data: bytes) -> str:
    """Decode a caption, cut to its limit; NULs and a byte-order mark go, as tokenizers choke.

    Raises:
        UnicodeDecodeError: If the bytes are not UTF-8.
    """
    whole = len(data) < MAX_CAPTION_BYTES
    text, _ = codecs.utf_8_decode(data[:MAX_CAPTION_BYTES], "strict", whole)
    return text.removeprefix("\ufeff").replace("\0", "")[:MAX_CAPTION_CHARACTERS].strip()


def clean_captions(texts: object) -> tuple[str, ...]:
    """Return the usable captions in a string or a list, cleaned, each once, in order."""
    listed = texts if isinstance(texts, list | tuple) else [texts]
    cleaned = (
        clean_caption(text.encode("utf-8", "replace")) for text in listed if isinstance(text, str)
    )
    return tuple(dict.fromkeys(caption for caption in cleaned if caption))


def choose_captions(text: str, metadata: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the text member's caption and those that the metadata list, each once.

    A lone `caption` of the metadata is what the text was made from; it only stands in for it.
    """
    lone = metadata.get("caption")
    listed = clean_captions(metadata.get("captions"))
    if isinstance(lone, list) or not text:
        listed = clean_captions(lone) + listed
    return tuple(dict.fromkeys((text, *listed) if text else listed))


def caption_lines(text: str, metadata: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the lines of the text member as captions, and those that the metadata list."""
    lines = clean_captions(split_lines(text))
    listed = choose_captions(lines[0] if lines else "", metadata)
    return tuple(dict.fromkeys((*lines, *listed)))


def parse_metadata(data: bytes) -> dict[str, Any]:
    """Return the json object in `data`, or `{}` if it is none: a pair can do without metadata."""
    try:
        metadata = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return metadata if isinstance(metadata, dict) else {}


def is_unsafe(name: str) -> bool:
    """Return whether a name leads out of its folder."""
    return name.startswith("/") or ".." in name.split("/")


def size_of_image(path: Path) -> int:
    """Return the size of an image file in bytes, from the file system alone.

    Raises:
        RecordError: If there is no such file, or if it is empty.
    """
    try:
        status = path.stat()
    except (OSError, ValueError):  # ValueError: a name with a NUL.
        raise RecordError("missing image") from None
    if not stat.S_ISREG(status.st_mode):  # Opening a pipe would wait for ever.
        raise RecordError("missing image")
    if not status.st_size:
        raise RecordError("empty image")
    return status.st_size


def read_image(path: Path) -> bytes:
    """Return the contents of an image file; RecordError if it cannot be read."""
    size_of_image(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise RecordError(f"unreadable image ({error.strerror})") from None


def is_image_name(name: str) -> bool:
    """Return whether a file is an image by its name; hidden files are not."""
    base = os.path.basename(name)
    return base.lower().endswith(IMAGE_SUFFIXES) and not base.startswith(".")


def other_image_suffix(name: str) -> str:
    """Return the suffix of a file that is an image by its name but of no format that is read."""
    base = os.path.basename(name).lower()
    suffix = os.path.splitext(base)[1]
    return suffix if suffix in OTHER_IMAGE_SUFFIXES and not base.startswith(".") else ""


def name_record(number: int, key: str = "") -> str:
    """Return what reports call a record: a name of its own, which its key need not be."""
    return f"{key} (record {number})" if key else f"record {number}"


def count_reasons(messages: Iterable[str]) -> dict[str, int]:
    """Count errors by what stands before the first colon of each, the most frequent first.

    Messages of `RecordError` and `images.ImageError` begin with their reason.
    """
    reasons = sorted(message.partition(": ")[0] for message in messages)
    return dict(Counter(reasons).most_common())


def in_words(counts: Mapping[str, int]) -> str:
    """Return counts by reason as a message has them, the most frequent first."""
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    return "; ".join(f"{reason}: {count:,}" for reason, count in ordered) or "nothing left out"


def refuse_too_many_bad(counts: Mapping[str, int], total: int, share: float) -> None:
    """Stop where more of the data is bad than can be an accident.

    Args:
        counts: Bad records by reason.
        total: All records, the bad ones included.
        share: The largest share of bad records, in [0, 1], that is let through.

    Raises:
        ValueError: With the reasons, the most frequent first.
    """
    bad = sum(counts.values())
    if bad <= share * total:
        return
    enough = math.ceil(100 * bad / total) / 100
    raise ValueError(
        f"{bad:,} of {total:,} records ({bad / total:.1%}) cannot be used, more than "
        f"config.data.max_bad_share={share} allows: {in_words(counts)}. Look at data.json, or run "
        "otter-jax inspect; to go on nevertheless: "
        f"--config.data.max_bad_share={enough}"
    )
