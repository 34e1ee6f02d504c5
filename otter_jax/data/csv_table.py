"""Tables as text whose rows name an image file and its captions, read at their byte offsets.

image,caption
photos/1.jpg,a cat on a mat
photos/2.jpg,"[""a dog"", ""a puppy""]"
"""

import codecs
import contextlib
import csv
import hashlib
import json
import os
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from otter_jax.data.columns import choose_columns
from otter_jax.data.records import (
    Record,
    RecordError,
    clean_caption,
    clean_captions,
    in_words,
    read_image,
    size_of_image,
)

_SEPARATORS = {";": "semicolons", "\t": "tabs", ",": "commas", "|": "vertical bars"}


class Row(NamedTuple):
    """What a row of a table says.

    Attributes:
        key: What to call the record.
        image: Where its image lies.
        captions: Its captions, cleaned; at least one.
        columns: All that is known of it.
    """

    key: str
    image: Path
    captions: tuple[str, ...]
    columns: dict[str, str]


class TextTable:
    """The rows of a table, one record a row; twenty bytes a row are kept in memory.

    What cannot be used is left out and counted in `skipped` by reason; after a row that csv cannot
    make sense of, such as one with a quote that is never closed, reading goes on at the next line.
    A kind of table says by `_choose_columns` and `_parse` what its columns mean.
    """

    def __init__(
        self,
        path: Path,
        name: str,
        *,
        delimiter: str,
        quoted: bool = True,
        columns: Sequence[str] = (),
    ) -> None:
        """Read all rows once, and ask the file system for every image.

        Args:
            path: The table.
            name: What to call it in logs.
            delimiter: What separates its columns.
            quoted: Whether fields may stand in quotes; if not, quotes are part of the text.
            columns: Their names; empty where the first line has them.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If a column is not found, or if there is not one usable row.
        """
        self.name = name
        self._path = path
        self._delimiter = delimiter
        self._quoting = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
        try:
            file = path.open("rb")
        except FileNotFoundError:
            raise FileNotFoundError(f"{name}: there is no file {path}") from None
        with file:
            self._state = _state(file)
            self._refuse_no_text(file)
            self._columns = tuple(columns or self._column_names(file))
            self._choose_columns()
            self._find_usable(file)
        if not self._places:
            raise ValueError(f"{name}: no usable row in {path} ({in_words(self.skipped)})")

    def _find_usable(self, file: BinaryIO) -> None:
        self._places = array("Q")  # Row and offset, in turn.
        self.caption_counts = array("I")
        skipped: Counter[str] = Counter()
        digest = hashlib.sha256()
        for number, (offset, fields) in enumerate(self._rows(file)):
            try:
                row = self._parse(number, fields)
                size = size_of_image(row.image)
            except RecordError as error:
                skipped[str(error)] += 1
                continue
            self._places.extend((number, offset))
            self.caption_counts.append(len(row.captions))
            digest.update(repr((row.key, size, row.captions)).encode())
        self.skipped = dict(sorted(skipped.items()))
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        """Return the number of usable rows."""
        return len(self._places) // 2

    def __getitem__(self, i: int) -> Record:
        """Read row `i` and its image.

        Raises:
            RecordError: If the image has gone.
            ValueError: If the table has changed.
        """
        place = 2 * range(len(self))[i]
        number, offset = self._places[place : place + 2]
        with self._path.open("rb") as file:
            if _state(file) != self._state:
                raise ValueError(f"{self._path} has changed since it was opened; restart the run")
            file.seek(offset)
            row = self._parse(number, self._next_row(file))
        key = row.key.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        return Record(key, read_image(row.image), row.captions[0], row.columns, row.captions)

    def _refuse_no_text(self, file: BinaryIO) -> None:
        """Refuse an empty file, and one in UTF-16, which would seem to have no columns."""
        start = file.read(2)
        file.seek(0)
        if not start:
            raise ValueError(f"{self._path} is empty")
        if start in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) or b"\0" in start:
            raise ValueError(
                f"{self._path} is in UTF-16; write it in UTF-8: iconv -f UTF-16 -t UTF-8"
            )

    def _choose_columns(self) -> None:
        """Find the columns that matter among `_columns`; ValueError if they are not there."""

    def _parse(self, number: int, fields: list[str]) -> Row:
        """Return what row `number` says; RecordError if it is of no use, as one without fields."""
        raise NotImplementedError

    def _column_names(self, file: BinaryIO) -> list[str]:
        try:
            names = self._next_row(file)
        except csv.Error as error:
            raise ValueError(f"{self._path}: its first line names no columns ({error})") from None
        return [name.removeprefix("\ufeff").strip() for name in names]

    def _rows(self, file: BinaryIO) -> Iterator[tuple[int, list[str]]]:
        """Yield every row's offset and its fields, none for one that csv can make nothing of."""
        while True:
            offset = file.tell()
            try:
                fields = self._next_row(file)
            except csv.Error:
                fields = None
            if file.tell() == offset:
                return
            if fields is None or len(fields) not in (0, len(self._columns)):
                file.seek(offset)
                file.readline()  # A quote that is never closed costs one line, not all after it.
                yield offset, []
            elif fields:
                yield offset, fields

    def _next_row(self, file: BinaryIO) -> list[str]:
        lines = (line.decode("utf-8", "surrogateescape") for line in iter(file.readline, b""))
        rows = csv.reader(lines, delimiter=self._delimiter, quoting=self._quoting, strict=True)
        return next(rows, [])


class CsvTable(TextTable):
    """A CSV or TSV file with a line of column names.

    Image paths count from the table's folder. A caption cell may hold a json list of captions;
    there may also be several caption columns, of one name, or named by the option `caption`.
    """

    def __init__(self, path: Path, name: str, options: Mapping[str, str]) -> None:
        """Read all rows once, see `TextTable`.

        Args:
            path: The table; tabs separate columns in a `.tsv`.
            name: What to call it in logs.
            options: See `columns.choose_columns`.
        """
        self._options = options
        tabs = path.suffix.lower() in (".tsv", ".tab")
        super().__init__(path, name, delimiter="\t" if tabs else ",")

    def _choose_columns(self) -> None:
        self._refuse_other_separator()
        image, captions = choose_columns(self._columns, self._options, self.name)
        self._image_column = self._columns.index(image)
        self._caption_columns = [
            i for wanted in captions for i, name in enumerate(self._columns) if name == wanted
        ]

    def _refuse_other_separator(self) -> None:
        """Refuse a table whose only column's name is that of several with another separator."""
        if len(self._columns) != 1:
            return
        for separator, called in _SEPARATORS.items():
            if separator != self._delimiter and separator in self._columns[0]:
                raise ValueError(
                    f"{self._path}: its columns are separated by {called}; a .csv needs commas, "
                    "a .tsv tabs"
                )

    def _parse(self, number: int, fields: list[str]) -> Row:
        del number
        if not fields:
            raise RecordError("broken row")
        image = fields[self._image_column]
        if "://" in image:
            raise RecordError("image is a URL")
        try:
            found = [caption for i in self._caption_columns for caption in _captions(fields[i])]
        except UnicodeDecodeError:
            raise RecordError("caption not UTF-8") from None
        if not found:
            raise RecordError("empty caption")
        return Row(image, self._path.parent / image, tuple(dict.fromkeys(found)), {})


def _captions(cell: str) -> tuple[str, ...]:
    """Return the captions of a cell: those of a json list, else its text."""
    caption = clean_caption(cell.encode("utf-8", "surrogateescape"))
    if caption.startswith("["):
        with contextlib.suppress(ValueError, RecursionError):
            listed = json.loads(cell)
            if isinstance(listed, list) and all(isinstance(text, str) for text in listed):
                return clean_captions(listed)
    return (caption,) if caption else ()


def _state(file: BinaryIO) -> tuple[int, int]:
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns
