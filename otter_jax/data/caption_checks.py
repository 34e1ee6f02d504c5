"""Whether captions read like captions: who trains on file names or row numbers should be told.

Nothing is refused here. What looks wrong in a sample is put into one line each, with an example.
"""

import contextlib
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from otter_jax.data.records import Record, RecordError, Source, first_caption, read_in_order

SAMPLED = 100  # Records that are looked at when a source is opened.
SHOWN = 10  # Captions that are shown of them.

_SUSPICIOUS = 0.2  # Share of the captions, from which on something is said.
_FEWEST = 3  # Captions of which something is said at all.
_MOSTLY = 0.5  # Share of a caption's letters and digits that are digits.
_LANGUAGE = 0.8  # Share of texts that must read like language.

_FILE_NAME = re.compile(
    r"(\w+://\S+|\S*\.(jpe?g|jpe|jfif|png|webp|gif|bmp|tiff?|pp?m|avif|heic|npy|txt|json|tar))",
    re.IGNORECASE,
)
_IDENTIFIER = re.compile(r"\S*[\d_/\\]\S*")  # One "word" with a digit, an underscore or a slash.
_LIST = re.compile(r"\[.*\]|array\(\[.*\)|\{.*\}|\(['\"].*\)", re.DOTALL)
_HTML = re.compile(r"</?[a-zA-Z][^<>]*>|&(#\d+|[a-zA-Z]{2,8});")


class _Doubt(NamedTuple):
    """One way in which a text is no caption."""

    what: str
    holds: Callable[[str], object]


def _is_mostly_digits(text: str) -> bool:
    letters = sum(map(str.isalpha, text))
    digits = sum(map(str.isdigit, text))
    return digits > 0 and digits >= _MOSTLY * (letters + digits)


_DOUBTS = (
    _Doubt("are mostly digits", _is_mostly_digits),
    _Doubt("are names of files or addresses", _FILE_NAME.fullmatch),
    _Doubt("are bracketed lists", _LIST.fullmatch),
    _Doubt("hold HTML", _HTML.search),
    _Doubt("have several lines", lambda text: "\n" in text),
)


def doubts(captions: Sequence[str]) -> list[str]:
    """Say what makes captions look like no captions, each in one line with an example.

    Args:
        captions: Some captions, one a pair.

    Returns:
        Nothing where they read like captions.
    """
    found = []
    for doubt in _DOUBTS:
        such = [caption for caption in captions if doubt.holds(caption)]
        if _is_suspicious(len(such), len(captions)):
            found.append(
                f"{_percent(such, captions)} of the captions {doubt.what}: {such[0]!r:.80}"
            )
    (commonest, count), *_ = Counter(captions).most_common(1) or [("", 0)]
    if _is_suspicious(count, len(captions)) and len(commonest.split()) == 1:
        share = _percent([commonest] * count, captions)
        found.append(f"{share} of the captions are one word: {commonest!r:.80}")
    return found


def _is_suspicious(count: int, total: int) -> bool:
    return count >= _FEWEST and count > _SUSPICIOUS * total


def _percent(part: Sequence[str], whole: Sequence[str]) -> str:
    return f"{len(part) / len(whole):.0%}"


def reads_like_language(texts: Sequence[str]) -> bool:
    """Return whether texts vary, and most of them are words rather than names of files or numbers.

    Args:
        texts: Those of some records; one alone cannot vary.
    """
    texts = [text for text in texts if text]
    worded = [text for text in texts if not (_IDENTIFIER.fullmatch(text) or _is_mostly_digits(text)
                                             or _FILE_NAME.fullmatch(text))]  # fmt: skip
    varies = len(set(texts)) > 1 or len(texts) == 1
    return bool(texts) and varies and len(worded) >= _LANGUAGE * len(texts)


def sample_captions(source: Source, count: int = SAMPLED) -> list[str]:
    """Return the captions of some records, evenly spread; of those that can be read.

    Args:
        source: The pairs.
        count: How many records to look at.
    """
    captions = []
    for number in _spread(source, count):
        with contextlib.suppress(RecordError):
            captions.append(first_caption(source, number))
    return captions


def sample_records(source: Source, count: int = SAMPLED) -> list[Record]:
    """Return some records, evenly spread; those that can be read."""
    read = read_in_order(source, _spread(source, count))
    return [record for _, record in read if not isinstance(record, RecordError)]


def _spread(source: Source, count: int) -> list[int]:
    """Return the numbers of some records, evenly spread."""
    return np.unique(np.linspace(0, len(source) - 1, min(count, len(source))).astype(int)).tolist()


def are_lists_of_lines(records: Sequence[Record]) -> bool:
    """Return whether captions are the lines of a text, as in clip-benchmark's shards.

    Args:
        records: Some of them. There every text has several lines, and there are no metadata, which
            a download would have.
    """
    several = sum("\n" in record.caption for record in records)
    return 2 * several > len(records) and not any(record.metadata for record in records)
