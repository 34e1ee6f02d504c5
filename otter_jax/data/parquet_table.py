"""Parquet files, through pyarrow (the extra `[parquet]`)."""

import hashlib
import logging
import threading
from array import array
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from otter_jax.data import storage
from otter_jax.data.columns import choose_columns
from otter_jax.data.records import (
    Record,
    RecordError,
    clean_captions,
    in_words,
    read_image,
    size_of_image,
)

if TYPE_CHECKING:
    from pyarrow import ChunkedArray
    from pyarrow.parquet import ColumnChunkMetaData, FileMetaData, ParquetFile

_KEPT_BYTES = 256 << 20  # Of row groups, for all tables of a process.
_LARGE_GROUP = 16 << 20  # Bytes; reading them takes longer than decoding an image.

_log = logging.getLogger(__name__)


class RecentGroups:
    """Row groups that were read last, as many as fit; those of all tables of a process."""

    def __init__(self, limit: int) -> None:
        """Keep at most `limit` bytes, but always the last group."""
        self._limit = limit
        self._kept: OrderedDict[tuple[Any, ...], ChunkedArray] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, key: tuple[Any, ...], read: Callable[[], "ChunkedArray"]) -> "ChunkedArray":
        """Return the group of a key, read if it is not here."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        column = read()  # Not under the lock: others may read other groups.
        with self._lock:
            if key not in self._kept:
                self._kept[key] = column
                self._bytes += column.nbytes
            while self._bytes > self._limit and len(self._kept) > 1:
                self._bytes -= self._kept.popitem(last=False)[1].nbytes
        return column


_recent_groups = RecentGroups(_KEPT_BYTES)


class ParquetTable:
    """The rows of a Parquet file, one record a row.

    Captions, text or lists of text, stay in memory as Arrow arrays. The image column holds paths,
    which count from the table's folder and stay in memory too, or encoded images: bytes, or a
    struct with a field `bytes`. Such images are read a row group at a time, the smallest unit that
    Parquet can be asked for: in groups of 100 rows, 100 images are read for one. Those that were
    read last are kept, which makes reading in order cheap, and any reading of a file that fits. To
    train on larger ones, write them with some ten images a group (`row_group_size=10`), or convert
    them: `otter-jax prepare`.

    What cannot be used is left out and counted in `skipped` by reason; a missing image among bytes
    shows when it is read.
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
        self._state = storage.state_of(str(path))
        file = self._open()
        self._metadata = file.metadata
        groups = [self._metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
        self._first_rows = np.cumsum([0, *groups])
        self._image, self._caption_columns = choose_columns(file.schema_arrow.names, options, name)
        self._bytes_column = _bytes_column(file.schema_arrow.field(self._image), path)
        named = [] if self._bytes_column else [self._image]
        self._texts = file.read(columns=[*self._caption_columns, *named])
        self._check_rows(hashlib.sha256(self._sample_images()))

    def _sample_images(self) -> bytes:
        """Return some bytes of the images in every row group; says where groups are too large."""
        chunks = _column_chunks(self._metadata, self._bytes_column)
        sizes = [chunk.total_uncompressed_size for chunk in chunks]
        if sum(sizes) > _KEPT_BYTES and max(sizes) > _LARGE_GROUP:
            _log.warning(
                "%s: up to %d MiB are read for one image, as row groups are that large; write them "
                "with row_group_size=10, or convert the pairs: otter-jax prepare",
                self._path,
                max(sizes) >> 20,
            )
        with storage.open_reader(str(self._path), self._state) as file:
            return b"".join(
                storage.sample(
                    file,
                    chunk.dictionary_page_offset or chunk.data_page_offset,
                    chunk.total_compressed_size,
                )
                for chunk in chunks
            )

    def _check_rows(self, digest: Any) -> None:
        self._rows = array("Q")
        self.caption_counts = array("I")
        skipped: Counter[str] = Counter()
        for row in range(self._first_rows[-1]):
            try:
                captions = self._captions(row)
                size = None if self._bytes_column else size_of_image(self._image_path(row))
            except RecordError as error:
                skipped[str(error)] += 1
                continue
            self._rows.append(row)
            self.caption_counts.append(len(captions))
            digest.update(repr((row, size, captions)).encode())
        self.skipped = dict(sorted(skipped.items()))
        self.fingerprint = digest.hexdigest()
        if not self._rows:
            raise ValueError(
                f"{self.name}: no usable row in {self._path} ({in_words(self.skipped)})"
            )

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

    def _open(self, metadata: "FileMetaData | None" = None) -> "ParquetFile":
        try:
            import pyarrow
            from pyarrow.parquet import ParquetFile
        except ModuleNotFoundError:
            raise ModuleNotFoundError(
                f"{self.name}: Parquet needs pyarrow: pip install 'otter_jax[parquet]'"
            ) from None
        try:
            return ParquetFile(self._path, metadata=metadata, memory_map=True)
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
        column = _recent_groups.get(
            (self._path, self._state, self._bytes_column, group), lambda: self._read_group(group)
        )
        cell = column[row - int(self._first_rows[group])].as_py()
        image = cell["bytes"] if isinstance(cell, dict) else cell
        if not image:
            raise RecordError("empty image")
        return image

    def _read_group(self, group: int) -> "ChunkedArray":
        if storage.state_of(str(self._path)) != self._state:
            raise ValueError(f"{self._path} has changed since it was opened; restart the run")
        file = self._open(self._metadata)  # The footer of many groups takes longer than a group.
        return file.read_row_group(group, columns=[self._bytes_column]).column(0)


def _column_chunks(metadata: "FileMetaData", column: str) -> list["ColumnChunkMetaData"]:
    """Return what the file says of a column in each row group; nothing of a column called ""."""
    groups = (metadata.row_group(g) for g in range(metadata.num_row_groups))
    chunks = (group.column(c) for group in groups for c in range(group.num_columns))
    return [chunk for chunk in chunks if chunk.path_in_schema == column]


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
