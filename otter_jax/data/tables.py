"""Tables of image-text pairs, `csv:`: which files a path stands for, and how each is read.

A table is told by what it begins with and not by its name alone, so that a compressed file, a page
of HTML or a data set in another format is called what it is.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from otter_jax.data import storage
from otter_jax.data.columns import CAPTION_NAMES
from otter_jax.data.csv_table import CsvTable, JsonLinesTable
from otter_jax.data.parquet_table import ParquetTable
from otter_jax.data.specs import Spec

Table = CsvTable | ParquetTable

# What is looked for in a folder; files of the first kind that there is are read.
SUFFIXES = (".csv", ".tsv", ".tab", ".parquet", ".pq", ".jsonl", ".ndjson")
FORMS = "a .csv, .tsv, .parquet or .jsonl, several by a folder or a glob"

_JSON_LINES = (".jsonl", ".ndjson")
_OTHER_FORMATS = (  # By the first bytes.
    (b"\x1f\x8b", "compressed by gzip: gunzip it"),
    (b"BZh", "compressed by bzip2: bunzip2 it"),
    (b"\xfd7zXZ", "compressed by xz: unxz it"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd: unzstd it"),
    (b"PK\x03\x04", "a zip file or a workbook: unzip it, or save it as .csv"),
    (b"ARROW1", "an Arrow file: write it as Parquet"),
    (b"SQLite format 3", "a database: write it as .csv"),
    (b"<!DOCTYPE", "a page of HTML, as comes where a download is refused"),
    (b"<html", "a page of HTML, as comes where a download is refused"),
    (b"version https://git-lfs", "a pointer of Git LFS: git lfs pull"),
)


def open_tables(
    spec: Spec,
    *,
    caption_names: Sequence[str] = CAPTION_NAMES,
    needs_caption: bool = True,
    column: str | None = None,
) -> list[Table]:
    """Open the tables of a SPEC, in order.

    Args:
        spec: `csv:PATH`, with the options `image` and `caption`, see `columns.choose_columns`.
        caption_names: Customary names of the captions' columns.
        needs_caption: Whether rows without a caption are left out.
        column: Another one that is read of Parquet; of text all are.

    Raises:
        FileNotFoundError: For a path at which there is nothing.
        ModuleNotFoundError: If Parquet is to be read without pyarrow.
        ValueError: For a file that is no such table, a column that is not found, and a table
            without one usable row; and for a path in a store.
    """
    reading = {"caption_names": caption_names, "needs_caption": needs_caption}
    return [
        _open_table(path, spec.name, spec.options, column, **reading) for path in find_tables(spec)
    ]


def find_tables(spec: Spec) -> list[Path]:
    """Return the files that the path of a SPEC stands for; errors are those of `open_tables`."""
    if spec.path.startswith("hf://"):
        raise ValueError(
            f"{spec.name}: csv is read from disks only; download it first: hf download "
            "OWNER/NAME --repo-type=dataset --local-dir=FOLDER"
        )
    refuse_remote(spec)
    folder = Path(spec.path)
    if not os.path.isdir(folder):  # Unlike is_dir, it takes long lists in braces for no folder.
        return [Path(path) for path in storage.find_files(spec.path, ".csv")]
    _refuse_saved_dataset(folder, spec)
    names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    for suffix in SUFFIXES:
        if found := [folder / name for name in names if name.lower().endswith(suffix)]:
            return found
    raise FileNotFoundError(f"{folder}: no csv shard matches, nor another table{_below(folder)}")


def _below(folder: Path) -> str:
    """Say where a folder without a table has some further down, or what else it has."""
    found = sorted(path for path in folder.glob("*/*") if path.suffix.lower() in SUFFIXES)
    if found:
        return f"; there is {found[0]}: name such files by a glob, {found[0].parent}/*"
    others = sorted({path.suffix for path in folder.iterdir() if path.is_file()} - {""})
    return f" among {', '.join(others)}" if others else ""


def _refuse_saved_dataset(folder: Path, spec: Spec) -> None:
    """Refuse what `datasets.save_to_disk` writes, and say how to write it as a table."""
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        raise ValueError(
            f"{spec.name}: a data set of datasets.save_to_disk; write it as Parquet: "
            f"datasets.load_from_disk({str(folder)!r}).to_parquet('pairs.parquet'), of a split"
        )


def refuse_remote(spec: Spec) -> None:
    """Refuse a path in a store (ValueError), which only tar shards are read from."""
    if storage.is_remote(spec.path):
        raise ValueError(
            f"{spec.name}: {spec.kind} is read from disks only; copy it, mount the store, or pack "
            "the pairs into tar shards (webdataset:)"
        )


def _open_table(
    path: Path, name: str, options: Mapping[str, str], column: str | None, **reading: object
) -> Table:
    storage.refuse_no_file(str(path))
    start = _first_bytes(path)
    for magic, what in _OTHER_FORMATS:
        if start.lower().startswith(magic.lower()):
            raise ValueError(f"{path} is {what}. csv: reads {FORMS}")
    suffix = path.suffix.lower()
    if suffix in (".parquet", ".pq") or start.startswith(b"PAR1"):
        return ParquetTable(path, name, options, column=column, **reading)
    if suffix in _JSON_LINES and not _is_json_array(start):
        return JsonLinesTable(path, name, options, **reading)
    if suffix in (".json", *_JSON_LINES) or _begins(start, b"{") or _is_json_array(start):
        raise ValueError(f"{path} is JSON; write an object a line, as .jsonl. csv: reads {FORMS}")
    return CsvTable(path, name, options, **reading)


def _begins(start: bytes, *what: bytes) -> bool:
    """Return whether a file begins with one of some texts, behind blanks and a byte-order mark."""
    return start.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(what)


def _is_json_array(start: bytes) -> bool:
    return _begins(start, b"[{", b"[\n", b"[\r", b"[ ")


def _first_bytes(path: Path) -> bytes:
    """Return what a file begins with; nothing where there is no file, which its reader says."""
    if not path.is_file():
        return b""
    with path.open("rb") as file:
        return file.read(64)
