"""Parquet files, through pyarrow (the extra `[parquet]`)."""

import contextlib
import hashlib
import logging
import threading
from array import array
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from otter_jax.data import storage
from otter_jax.data.columns import CAPTION_NAMES, captions_of_cell, choose_columns
from otter_jax.data.csv_table import Row
from otter_jax.data.records import (
    Record,
    RecordError,
    in_words,
    read_image,
    size_of_image,
)

if TYPE_CHECKING:
    from pyarrow import ChunkedArray
    from pyarrow.parquet import ColumnChunkMetaData, FileMetaData, ParquetFile

_KEPT_BYTES = 256 << 20  # Of row groups, for all tables of a process.
_OF_IMG2DATASET = ("jpg", "png", "webp")  # What it calls its column of images.
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
    struct with a field `bytes`, beside which a field `path` stands in for images that are not
    inside. Such images are read a row group at a time, the smallest unit that Parquet can be asked
    for: in groups of 100 rows, 100 images are read for one. Those that were read last are kept,
    which makes reading in order cheap, and any reading of a file that fits. To train on larger
    ones, write them with some ten images a group (`row_group_size=10`), or convert them:
    `otter-jax prepare`.

    What cannot be used is left out and counted in `skipped` by reason, downloads among it of which
    img2dataset's column `status` says that they failed; a missing image among bytes shows when it
    is read.

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
        column: str | None = None,
    ) -> None:
        """Read the captions, and ask the file system for every image that is named by its path.

        Args:
            path: The table.
            name: What to call it in logs.
            options: See `columns.choose_columns`.
            caption_names: Customary names of the captions' columns.
            needs_caption: Whether rows without a caption are left out. (Of labels there may be
                none.)
            column: Another one, of text or numbers, that records have in their metadata.

        Raises:
            FileNotFoundError: If there is no such file.
            ModuleNotFoundError: If pyarrow is not installed.
            ValueError: If it is no Parquet file or a damaged one, if a column is not found or holds
                something else, or if there is not one usable row.
        """
        if not path.is_file():
            raise FileNotFoundError(f"{name}: there is no file {path}")
        self.name = name
        self._path = path
        self._needs_caption = needs_caption
        self._state = storage.state_of(str(path))
        file = self._open()
        self._metadata = file.metadata
        groups = [self._metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
        self._first_rows = np.cumsum([0, *groups])
        with self._explaining_damage("damaged Parquet file"):
            schema = file.schema_arrow
            image, captions = choose_columns(schema.names, options, name, caption_names)
            self._bytes_column, path_column = _image_columns(_field(schema, image), path)
            self.caption_names = tuple(captions)
            for caption in captions:
                _refuse_no_text(_field(schema, caption), path)
            self._caption_columns = _read_columns(file, captions)
            self._image_paths = _read_columns(file, [path_column])[0] if path_column else None
            self._refuse_other_lengths()
            self._failed = self._failed_downloads(file, image)
            self._metadata_columns = _read_metadata(file, column, path)
            self._check_rows(hashlib.sha256(self._sample_images()))

    def _refuse_other_lengths(self) -> None:
        """Refuse a file whose columns are longer or shorter than its footer says (ValueError)."""
        columns = self._caption_columns + ([] if self._image_paths is None else [self._image_paths])
        rows = self._metadata.num_rows
        if {len(column) for column in columns} != {rows} or self._first_rows[-1] != rows:
            raise ValueError(
                f"{self._path}: damaged Parquet file (its footer and its columns count rows "
                "differently)"
            )

    def _failed_downloads(self, file: "ParquetFile", image: str) -> dict[int, str]:
        """Return the rows of img2dataset's output that have no image, and what it says of each."""
        if image not in _OF_IMG2DATASET or "status" not in file.schema_arrow.names:
            return {}
        status = _read_columns(file, ["status"])[0].to_pylist()
        return {row: str(each) for row, each in enumerate(status) if each != "success"}

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
        for number in range(self._first_rows[-1]):
            try:
                row = self._parse(number)
                size = None if self._bytes_column else size_of_image(row.image)
            except RecordError as error:
                skipped[str(error)] += 1
                continue
            self._rows.append(number)
            self.caption_counts.append(len(row.captions))
            digest.update(repr((number, size, row.captions)).encode())
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
        row = self.row(i)
        return Record(row.key, self.image(i), row.captions[0], row.columns, row.captions)

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
        """Read the image of row `i`; RecordError if it has none."""
        row = self.row(i)
        return self._stored_image(self._rows[i]) if row.image is None else read_image(row.image)

    def row(self, i: int) -> Row:
        """Return row `i` without its image."""
        return self._parse(self._rows[i])

    def _parse(self, number: int) -> Row:
        """Return what a row of the file says; RecordError if it is no pair."""
        if number in self._failed:
            raise RecordError(f"download failed ({self._failed[number]})")
        captions, columns = self._captions(number), self._columns(number)
        if self._bytes_column:
            return Row(str(number), None, captions, columns)
        name = self._image_name(number)
        return Row(name, self._path.parent / name, captions, columns)

    def _columns(self, number: int) -> dict[str, Any]:
        """Return what the column that was asked for says; RecordError if it is not UTF-8."""
        try:
            return {name: found[number].as_py() for name, found in self._metadata_columns.items()}
        except UnicodeDecodeError:
            raise RecordError("metadata not UTF-8") from None

    def _open(self, metadata: "FileMetaData | None" = None) -> "ParquetFile":
        try:
            from pyarrow.parquet import ParquetFile
        except ModuleNotFoundError:
            raise ModuleNotFoundError(
                f"{self.name}: Parquet needs pyarrow: pip install 'otter_jax[parquet]'"
            ) from None
        with self._explaining_damage("not a Parquet file"):
            return ParquetFile(self._path, metadata=metadata, memory_map=True)

    @contextlib.contextmanager
    def _explaining_damage(self, what: str) -> Iterator[None]:
        """Make of Arrow's errors, which are of many types, a ValueError that names the file."""
        import pyarrow

        try:
            yield
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            if isinstance(error, FileNotFoundError):
                raise
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(f"{self._path}: {what} ({reason:.200})") from None

    def _captions(self, number: int) -> tuple[str, ...]:
        try:
            cells = [_as_text(column[number].as_py()) for column in self._caption_columns]
        except UnicodeDecodeError:
            raise RecordError("caption not UTF-8") from None
        found = tuple(dict.fromkeys(each for cell in cells for each in captions_of_cell(cell)))
        if self._needs_caption and not found:
            raise RecordError("empty caption")
        return found

    def _image_name(self, number: int) -> str:
        """Return the path of an image that is not inside; RecordError if there is none."""
        try:
            name = self._image_paths[number].as_py()
        except UnicodeDecodeError:
            raise RecordError("missing image") from None
        if not name:
            raise RecordError("missing image")
        if "://" in name:
            raise RecordError("image is a URL")
        return name

    def _stored_image(self, number: int) -> bytes:
        group = int(np.searchsorted(self._first_rows, number, side="right")) - 1
        column = _recent_groups.get(
            (self._path, self._state, self._bytes_column, group), lambda: self._read_group(group)
        )
        cell = column[number - int(self._first_rows[group])].as_py()
        image = cell["bytes"] if isinstance(cell, dict) else cell
        if image is None and self._image_paths is not None:
            return read_image(self._path.parent / self._image_name(number))
        if not image:
            raise RecordError("empty image")
        return image

    def _read_group(self, group: int) -> "ChunkedArray":
        if storage.state_of(str(self._path)) != self._state:
            raise ValueError(f"{self._path} has changed since it was opened; restart the run")
        file = self._open(self._metadata)  # The footer of many groups takes longer than a group.
        try:
            with self._explaining_damage(f"damaged row group {group}"):
                column = file.read_row_group(group, columns=[self._bytes_column]).column(0)
        except ValueError as error:
            raise RecordError(f"damaged row group: {error}") from None
        if len(column) != self._metadata.row_group(group).num_rows:
            raise RecordError(f"damaged row group: {self._path}, {group}")
        return column


def _read_columns(file: "ParquetFile", names: Sequence[str]) -> list["ChunkedArray"]:
    """Return the columns of some names, all where several share one; of "a.b" the field b."""
    tables = [file.read(columns=[name]) for name in dict.fromkeys(names)]
    columns = [table.column(i) for table in tables for i in range(table.num_columns)]
    return [_field_of_struct(column) for column in columns]


def _read_metadata(file: "ParquetFile", name: str | None, path: Path) -> dict[str, "ChunkedArray"]:
    """Return a column by its name, none for None; ValueError if it is none, or no plain one."""
    import pyarrow

    if name is None:
        return {}
    names = file.schema_arrow.names
    if name not in names:
        raise ValueError(
            f"config.data.group={name!r}: {path} has no such column; it has {', '.join(names)}"
        )
    kind = _field(file.schema_arrow, name).type
    if pyarrow.types.is_nested(kind) or _is_bytes(kind):
        raise ValueError(
            f"config.data.group={name!r}: in {path} it holds {kind}; it must be text or numbers"
        )
    return {name: _read_columns(file, [name])[0]}


def _field_of_struct(column: "ChunkedArray") -> "ChunkedArray":
    """Return the only field of a struct, which Parquet gives for "a.b"; any other column as is."""
    import pyarrow

    if not pyarrow.types.is_struct(column.type):
        return column
    from pyarrow import compute

    return compute.struct_field(column, 0)


def _column_chunks(metadata: "FileMetaData", column: str) -> list["ColumnChunkMetaData"]:
    """Return what the file says of a column in each row group; nothing of a column called ""."""
    groups = (metadata.row_group(g) for g in range(metadata.num_row_groups))
    chunks = (group.column(c) for group in groups for c in range(group.num_columns))
    return [chunk for chunk in chunks if chunk.path_in_schema == column]


def _field(schema: Any, name: str) -> Any:
    """Return a field of the schema; the first of several that share the name."""
    return schema.field(schema.names.index(name))


def _image_columns(field: Any, path: Path) -> tuple[str, str]:
    """Return the column with encoded images and the one with their paths; "" for one of them."""
    import pyarrow

    kind = _plain_type(field.type)
    if _is_text(kind):
        return "", field.name
    if _is_bytes(kind):
        return field.name, ""
    if pyarrow.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        has_path = kind.get_field_index("path") >= 0 and _is_text(kind.field("path").type)
        return f"{field.name}.bytes", f"{field.name}.path" if has_path else ""
    raise ValueError(
        f"{path}: column {field.name!r} holds {field.type}; an image is a path, bytes, or a struct "
        "with the field bytes"
    )


def _refuse_no_text(field: Any, path: Path) -> None:
    """Refuse a column of captions that holds neither text nor lists of text (ValueError)."""
    import pyarrow

    kind = _plain_type(field.type)
    while pyarrow.types.is_nested(kind) and hasattr(kind, "value_type"):
        kind = _plain_type(kind.value_type)
    if not (_is_text(kind) or _is_bytes(kind) or pyarrow.types.is_null(kind)):
        raise ValueError(
            f"{path}: column {field.name!r} holds {field.type}; captions are text or lists of text"
        )


def _plain_type(kind: Any) -> Any:
    """Return the type of the values of a dictionary (a pandas category), any other as it is."""
    import pyarrow

    return kind.value_type if pyarrow.types.is_dictionary(kind) else kind


def _is_text(kind: Any) -> bool:
    return str(_plain_type(kind)) in ("string", "large_string", "string_view")


def _is_bytes(kind: Any) -> bool:
    return str(kind) in ("binary", "large_binary", "binary_view")


def _as_text(cell: Any) -> Any:
    """Return a cell with its bytes decoded; UnicodeDecodeError if they are not UTF-8."""
    if isinstance(cell, bytes):
        return cell.decode()
    return [_as_text(each) for each in cell] if isinstance(cell, list) else cell
