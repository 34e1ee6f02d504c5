"""Tables as text whose rows name an image file and its captions, read at their byte offsets.

image,caption
photos/1.jpg,a cat on a mat
photos/2.jpg,"[""a dog"", ""a puppy""]"

or, as JSON lines,

{"file_name": "photos/1.jpg", "text": "a cat on a mat"}
"""

import codecs
import csv
import hashlib
import itertools
import json
import os
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from otter_jax.data.columns import CAPTION_NAMES, captions_of_cell, choose_columns
from otter_jax.data.records import (
    Record,
    RecordError,
    in_words,
    read_image,
    size_of_image,
)

_LINES_WITH_ALL_KEYS = 100
_START = 1 << 16  # Bytes, in which there is the end of a line.
_SEPARATORS = {";": "semicolons", "\t": "tabs", ",": "commas", "|": "vertical bars"}


class Row(NamedTuple):
    """What a row of a table says.

    Attributes:
        key: What to call the record.
        image: Where its image lies; None for one within the table.
        captions: Its captions, cleaned; at least one, unless a table is read for something else.
        columns: All that is known of it.
    """

    key: str
    image: Path | None
    captions: tuple[str, ...]
    columns: dict[str, Any]


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
        row = self.row(i)
        return Record(row.key, read_image(row.image), row.captions[0], row.columns, row.captions)

    def key(self, i: int) -> str:
        """Return what row `i` is called."""
        return self.row(i).key

    def first_caption(self, i: int) -> str:
        """Return the first caption of row `i`."""
        return self.row(i).captions[0]

    @property
    def folder(self) -> Path:
        """The folder that paths of images count from."""
        return self._path.parent

    def image(self, i: int) -> bytes:
        """Read the image of row `i`; errors as of the row."""
        return read_image(self.row(i).image)

    def row(self, i: int) -> Row:
        """Read row `i` without its image; ValueError if the table has changed."""
        place = 2 * range(len(self))[i]
        number, offset = self._places[place : place + 2]
        with self._path.open("rb") as file:
            if _state(file) != self._state:
                raise ValueError(f"{self._path} has changed since it was opened; restart the run")
            file.seek(offset)
            row = self._parse(number, self._next_row(file))
        key = row.key.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        return row._replace(key=key)

    def _refuse_no_text(self, file: BinaryIO) -> None:
        """Refuse an empty file, and what would seem to have no columns: UTF-16, one long line."""
        start = file.read(_START)
        file.seek(0)
        if not start:
            raise ValueError(f"{self._path} is empty")
        if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in start[:2]:
            raise ValueError(
                f"{self._path} is in UTF-16; write it in UTF-8: iconv -f UTF-16 -t UTF-8"
            )
        if b"\r" in start and b"\n" not in start:
            raise ValueError(
                f"{self._path}: its lines end in \\r alone, as those of old Macs; write them with "
                "\\n: tr '\\r' '\\n'"
            )

    def _choose_columns(self) -> None:
        """Find the columns that matter among `_columns`; ValueError if they are not there."""

    def _parse(self, number: int, fields: list[str]) -> Row:
        """Return what row `number` says; RecordError if it is of no use, as one without fields."""
        raise NotImplementedError

    def _column_names(self, file: BinaryIO) -> list[str]:
        try:
            names = self._next_row(file)
            while not names and file.peek(1):  # Blank lines before the names.
                names = self._next_row(file)
        except csv.Error as error:
            raise ValueError(f"{self._path}: its first line names no columns ({error})") from None
        return [name.strip() for name in names]

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
        # A byte-order mark goes before csv looks for quotes.
        mark = codecs.BOM_UTF8 if file.tell() == 0 else b""
        read = (line.removeprefix(mark) for line in iter(file.readline, b""))
        lines = (line.decode("utf-8", "surrogateescape") for line in read)
        rows = csv.reader(lines, delimiter=self._delimiter, quoting=self._quoting, strict=True)
        return next(rows, [])


class CsvTable(TextTable):
    """A CSV or TSV file with a line of column names.

    Image paths count from the table's folder. A caption cell may hold a json list of captions;
    there may also be several caption columns, of one name, or named by the option `caption`.

    Attributes:
        caption_names: What the columns with the captions are called.
    """

    def __init__(
        self,
        path: Path,
        name: str,
        options: Mapping[str, str],
        *,
        caption_names: Sequence[str] = CAPTION_NAMES,
        needs_caption: bool = True,
    ) -> None:
        """Read all rows once, see `TextTable`.

        Args:
            path: The table; tabs separate columns in a `.tsv`.
            name: What to call it in logs.
            options: See `columns.choose_columns`.
            caption_names: Customary names of the captions' columns.
            needs_caption: Whether rows without a caption are left out. (Of labels there may be
                none.)
        """
        self._options, self._caption_names = options, caption_names
        self._needs_caption = needs_caption
        tabs = path.suffix.lower() in (".tsv", ".tab")
        super().__init__(path, name, delimiter="\t" if tabs else ",")

    def _choose_columns(self) -> None:
        self._refuse_other_separator()
        image, captions = choose_columns(
            self._columns, self._options, self.name, self._caption_names
        )
        self.caption_names = tuple(captions)
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
        cells = [fields[i] for i in self._caption_columns]
        row = self._row(fields[self._image_column], cells)
        return row._replace(columns=dict(zip(self._columns, fields, strict=True)))

    def _row(self, image: object, cells: Sequence[object]) -> Row:
        """Return the row with an image and some cells of captions; RecordError if it is no pair."""
        try:
            "".join(cell for cell in cells if isinstance(cell, str)).encode("utf-8")
        except UnicodeEncodeError:
            raise RecordError("caption not UTF-8") from None
        found = dict.fromkeys(caption for cell in cells for caption in captions_of_cell(cell))
        if self._needs_caption and not found:
            raise RecordError("empty caption")
        if not isinstance(image, str) or not image:
            raise RecordError("missing image")
        if "://" in image:
            raise RecordError("image is a URL")
        return Row(image, self._path.parent / image, tuple(found), {})


class JsonLinesTable(CsvTable):
    """A file of one JSON object a line, such as the metadata.jsonl of Hugging Face's imagefolder.

    Its columns are the keys of the first lines.
    """

    def _column_names(self, file: BinaryIO) -> list[str]:
        start = file.tell()
        lines = itertools.islice(iter(file.readline, b""), _LINES_WITH_ALL_KEYS)
        names = [name for line in lines for name in _parse_line(line) or ()]
        file.seek(start)
        if not names:
            raise ValueError(
                f"{self._path}: none of its first lines is a JSON object; write one a line"
            )
        return list(dict.fromkeys(names))

    def _rows(self, file: BinaryIO) -> Iterator[tuple[int, list[Any]]]:
        while line := file.readline():
            if line.strip():
                yield file.tell() - len(line), self._fields(line)

    def _next_row(self, file: BinaryIO) -> list[Any]:
        return self._fields(file.readline())

    def _fields(self, line: bytes) -> list[Any]:
        """Return the values of the columns; none of a line that is no object."""
        found = _parse_line(line)
        return [] if found is None else [found.get(name) for name in self._columns]

    def _row(self, image: object, cells: Sequence[object]) -> Row:
        return super()._row(image, [_without_surrogates(cell) for cell in cells])


def _parse_line(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line.removeprefix(codecs.BOM_UTF8))
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _without_surrogates(cell: object) -> object:
    r"""Return a cell without halves of characters, which JSON can hold as \ud83d."""
    return cell.encode("utf-8", "replace").decode() if isinstance(cell, str) else cell


def _state(file: BinaryIO) -> tuple[int, int]:
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns
