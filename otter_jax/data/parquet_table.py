"""Parquet files, through pyarrow (the extra `[parquet]`)."""

import hashlib
from array import array
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from otter_jax.data.columns import choose_columns
from otter_jax.data.records import Record, RecordError, clean_captions, read_image, size_of_image

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile


class ParquetTable:
    """The rows of a Parquet file, one record a row.

    Captions, text or lists of text, stay in memory as Arrow arrays. The image column holds paths,
    which count from the table's folder and stay in memory too, or encoded images: bytes, or a
    struct with a field `bytes`. Such images are read a row group at a time, for Parquet knows no
    smaller unit: where groups have 100 rows, 100 images are read for one. What cannot be used is
    left out and counted in `skipped` by reason; a missing image among bytes shows when it is read.
    """

    def __init__(self, path: Path, name: str, options: Mapping[str, str]) -> None:
        """Read the captions, and ask the file system for every image that is named by its path.

        Args:
            path: The table.
            name: What to call it in logs.
            options: See `columns.choose_columns`.

        Raises:
            FileNotFoundError: If there is no such file.
            ModuleNotFoundError: If pyarrow is not installed.
            ValueError: If it is no Parquet file, if a column is not found or holds something else,
                or if there is not one usable row.
        """
        if not path.is_file():
            raise FileNotFoundError(f"{name}: there is no file {path}")
        self.name = name
        self._path = path
        file = self._open()
        groups = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
        self._first_rows = np.cumsum([0, *groups])
        self._image, self._caption_columns = choose_columns(file.schema_arrow.names, options, name)
        self._bytes_column = _bytes_column(file.schema_arrow.field(self._image), path)
        named = [] if self._bytes_column else [self._image]
        self._texts = file.read(columns=[*self._caption_columns, *named])
        self._check_rows()

    def _check_rows(self) -> None:
        self._rows = array("Q")
        skipped: Counter[str] = Counter()
        digest = hashlib.sha256(str(self._path.stat().st_size).encode())
        for row in range(self._first_rows[-1]):
            try:
                captions = self._captions(row)
                size = None if self._bytes_column else size_of_image(self._image_path(row))
            except RecordError as error:
                skipped[str(error)] += 1
                continue
            self._rows.append(row)
            digest.update(repr((row, size, captions)).encode())
        self.skipped = dict(sorted(skipped.items()))
        self.fingerprint = digest.hexdigest()
        if not self._rows:
            raise ValueError(f"{self.name}: no usable row in {self._path}, {self.skipped}")

    def __len__(self) -> int:
        """Return the number of usable rows."""
        return len(self._rows)

    def __getitem__(self, i: int) -> Record:
        """Read row `i`; RecordError if it has no image."""
        row = self._rows[i]
        captions = self._captions(row)
        image = self._stored_image(row) if self._bytes_column else read_image(self._image_path(row))
        key = str(row) if self._bytes_column else self._texts[self._image][row].as_py()
        return Record(key, image, captions[0], {}, captions)

    def _open(self) -> "ParquetFile":
        try:
            import pyarrow
            from pyarrow.parquet import ParquetFile
        except ModuleNotFoundError:
            raise ModuleNotFoundError(
                f"{self.name}: Parquet needs pyarrow: pip install 'otter_jax[parquet]'"
            ) from None
        try:
            return ParquetFile(self._path, memory_map=True)
        except pyarrow.ArrowInvalid as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"{self._path}: not a Parquet file ({reason})") from None

    def _captions(self, row: int) -> tuple[str, ...]:
        try:
            cells = [self._texts[column][row].as_py() for column in self._caption_columns]
        except UnicodeDecodeError:
            raise RecordError("caption not UTF-8") from None
        found = tuple(dict.fromkeys(caption for cell in cells for caption in clean_captions(cell)))
        if not found:
            raise RecordError("empty caption")
        return found

    def _image_path(self, row: int) -> Path:
        name = self._texts[self._image][row].as_py()
        if not name:
            raise RecordError("missing image")
        if "://" in name:
            raise RecordError("image is a URL")
        return self._path.parent / name

    def _stored_image(self, row: int) -> bytes:
        group = int(np.searchsorted(self._first_rows, row, side="right")) - 1
        column = self._open().read_row_group(group, columns=[self._bytes_column]).column(0)
        cell = column[row - int(self._first_rows[group])].as_py()
        image = cell["bytes"] if isinstance(cell, dict) else cell
        if not image:
            raise RecordError("empty image")
        return image


def _bytes_column(field: Any, path: Path) -> str:
    """Return the column with encoded images; "" where the field holds paths."""
    kind = str(field.type)
    if kind in ("string", "large_string"):
        return ""
    if kind in ("binary", "large_binary"):
        return field.name
    if kind.startswith("struct<") and field.type.get_field_index("bytes") >= 0:
        return f"{field.name}.bytes"
    raise ValueError(
        f"{path}: column {field.name!r} holds {kind}; an image is a path, bytes, or a struct with "
        "the field bytes"
    )
