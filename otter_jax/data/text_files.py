"""Text files that people write: lists of classes, templates, official lists, captions.

Editors put a byte-order mark in front, spreadsheets write another encoding, and some characters
inside a line look like its end to `str.splitlines`.
"""

import codecs
import csv
import io
from collections.abc import Iterator
from pathlib import Path


def split_lines(text: str) -> list[str]:
    """Return the lines of a text, which end at newlines and not, as `splitlines`, at U+2028."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def read_text(path: Path) -> str:
    """Return the contents of a file in UTF-8, without a byte-order mark and NULs.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is in another encoding, naming the first line that shows it.
    """
    data = path.read_bytes()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError(f"{path} is in UTF-16; write it in UTF-8: iconv -f UTF-16 -t UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}: line {line} is not UTF-8; write the file in UTF-8: iconv -f LATIN1 -t UTF-8"
        ) from None
    return text.replace("\0", "")


def read_lines(path: Path) -> list[str]:
    """Return the lines of a file; errors are those of `read_text`."""
    return split_lines(read_text(path))


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines that are not blank, with their numbers from 1; errors as of `read_text`."""
    lines = enumerate(read_lines(path), start=1)
    return ((number, line) for number, line in lines if line.strip())


def read_csv(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows of a file of comma-separated values that are not blank, and where each ends.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not UTF-8, or if csv can make nothing of a row.
    """
    reader = csv.reader(io.StringIO(read_text(path), newline=""))
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise ValueError(
                f"{path}: line {reader.line_num} is no row of a csv ({error})"
            ) from None
        if row is None:
            return
        if row:
            yield reader.line_num, row
