"""Tables whose rows name an image file and its captions: CSV and TSV, read at their byte offsets.

image,caption
photos/1.jpg,a cat on a mat
photos/2.jpg,"[""a dog"", ""a puppy""]"
"""

import contextlib
import csv
import hashlib
import json
import os
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from otter_jax.data.columns import choose_columns
from otter_jax.data.records import (
    Record,
    RecordError,
    clean_caption,
    clean_captions,
    read_image,
    size_of_image,
)


class CsvTable:
    """The rows of a CSV or TSV file, one record a row; eight bytes a row are kept in memory.

    Image paths count from the table's folder. A caption cell may hold a json list of captions;
    there may also be several caption columns, of one name, or named by the option `caption`. What
    cannot be used is left out and counted in `skipped` by reason; after a row that csv cannot make
    sense of, such as one with a quote that is never closed, reading goes on at the next line.
    """

    def __init__(self, path: Path, name: str, options: Mapping[str, str]) -> None:
        """Read all rows once, and ask the file system for every image.

        Args:
            path: The table, with a line of column names; tabs separate columns in a `.tsv`.
            name: What to call it in logs.
            options: See `columns.choose_columns`.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If a column is not found, or if there is not one usable row.
        """
        self.name = name
        self._path = path
        self._delimiter = "\t" if path.suffix.lower() in (".tsv", ".tab") else ","
        self._offsets = array("Q")
        skipped: Counter[str] = Counter()
        digest = hashlib.sha256()
        try:
            file = path.open("rb")
        except FileNotFoundError:
            raise FileNotFoundError(f"{name}: there is no file {path}") from None
        with file:
            self._state = _state(file)
            self._choose_columns(file, options)
            for offset, fields in self._rows(file):
                try:
                    image, captions = self._image_and_captions(fields)
                    size = size_of_image(self._path.parent / image)
                except RecordError as error:
                    skipped[str(error)] += 1
                    continue
                self._offsets.append(offset)
                digest.update(repr((image, size, captions)).encode("utf-8", "surrogateescape"))
        self.skipped = dict(sorted(skipped.items()))
        self.fingerprint = digest.hexdigest()
        if not self._offsets:
            raise ValueError(f"{name}: no usable row in {path}, {self.skipped}")

    def __len__(self) -> int:
        """Return the number of usable rows."""
        return len(self._offsets)

    def __getitem__(self, i: int) -> Record:
        """Read row `i` and its image.

        Raises:
            RecordError: If the image has gone.
            ValueError: If the table has changed.
        """
        offset = self._offsets[i]
        with self._path.open("rb") as file:
            if _state(file) != self._state:
                raise ValueError(f"{self._path} has changed since it was opened; restart the run")
            file.seek(offset)
            image, captions = self._image_and_captions(self._next_row(file))
        key = image.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        return Record(key, read_image(self._path.parent / image), captions[0], {}, captions)

    def _choose_columns(self, file: BinaryIO, options: Mapping[str, str]) -> None:
        try:
            names = self._next_row(file)
        except csv.Error as error:
            raise ValueError(f"{self._path}: its first line names no columns ({error})") from None
        names = [name.removeprefix("\ufeff").strip() for name in names]
        image, captions = choose_columns(names, options, self.name)
        self._width = len(names)
        self._image_column = names.index(image)
        self._caption_columns = [i for c in captions for i, name in enumerate(names) if name == c]

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
            if fields is None or len(fields) not in (0, self._width):
                file.seek(offset)
                file.readline()  # A quote that is never closed costs one line, not all after it.
                yield offset, []
            elif fields:
                yield offset, fields

    def _next_row(self, file: BinaryIO) -> list[str]:
        lines = (line.decode("utf-8", "surrogateescape") for line in iter(file.readline, b""))
        return next(csv.reader(lines, delimiter=self._delimiter, strict=True), [])

    def _image_and_captions(self, fields: list[str]) -> tuple[str, tuple[str, ...]]:
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
        return image, tuple(dict.fromkeys(found))


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
