"""Lists of pairs to keep: `config.data.keep`, made by trust, by another model's scores, or by hand.

A list is a text file with the key of a pair in each line, as `otter-jax inspect --trust` and the
demo write it, or a table (.csv, .parquet) with the columns `key` and `trust` or `score`, and how
much of the latter a pair must have: `trust.parquet?above=0.5`.
"""

import csv
import io
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from otter_jax.data.held_out import restrict
from otter_jax.data.records import Progress, RecordError, Source, key_of, no_progress
from otter_jax.data.text_files import split_lines

KEY, VALUES, ABOVE = "key", ("trust", "score"), "?above="
KEEP_FILE = "keep.txt"  # Customary name of a list.


def keep_listed(
    source: Source,
    listed: str,
    progress: Progress = no_progress,
    remark: Callable[[str], None] = lambda line: None,
) -> Source:
    """Return the pairs of a source that a list names; their order stays.

    Args:
        source: All pairs.
        listed: Path of the list, with `?above=NUMBER` behind that of a table.
        progress: Shows how far reading is, where keys are not known without it.
        remark: Is told, in a line, how many keys are of no pair of the source.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no such list, or names no pair of the source.
        ModuleNotFoundError: If it is a Parquet file and pyarrow is not installed.
    """
    names = read_list(listed)
    keys = [_key_or_none(source, n) for n in progress(range(len(source)), len(source), "keys")]
    kept = np.array([key in names for key in keys], bool)
    unknown = names.difference(keys)
    hint = _hint_of_blanks(unknown, keys)
    if not kept.any():
        shown = ", ".join(map(repr, sorted(names)[:3])) + (", ..." if len(names) > 3 else "")
        raise ValueError(
            f"config.data.keep={listed}: none of its {len(names):,} keys ({shown}) is that of "
            f"a pair of {source.name}, which are like {keys[0]!r}{hint}"
        )
    if unknown:
        remark(
            f"config.data.keep={listed}: {len(unknown):,} of its {len(names):,} keys are of no "
            f"pair here{hint}"
        )
    return restrict(source, kept, "not in data.keep")


def _hint_of_blanks(unknown: Iterable[str], keys: Iterable[str | None]) -> str:
    """Return what is to be said of listed keys that have blanks around those of pairs."""
    known = set(keys)
    count = sum(name.strip() in known for name in unknown)
    return f"; without the blanks around them {count:,} would be: remove those" if count else ""


def _key_or_none(source: Source, number: int) -> str | None:
    try:
        return key_of(source, number)
    except RecordError:  # Counted when it is read.
        return None


def read_list(listed: str) -> set[str]:
    """Return the keys that a list names; errors as of `keep_listed`."""
    name, _, above = listed.partition(ABOVE)
    path = Path(name).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"config.data.keep: there is no file {path}")
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".tsv", ".parquet"):
        if above:
            raise ValueError(f"config.data.keep={listed}: a list without scores has no {ABOVE}")
        names = read_keys(path)
    else:
        rows = _parquet_rows(path) if suffix == ".parquet" else _csv_rows(path)
        names = _above(listed, rows, _threshold(listed, above))
    if not names:
        raise ValueError(f"config.data.keep={listed} names no pair")
    return names


def read_keys(path: Path) -> set[str]:
    """Return the keys in a text file, one a line; ValueError where it is not in UTF-8."""
    return {line for line in split_lines(_text(path)) if line}


def write_keys(path: Path, keys: Iterable[str]) -> None:
    """Write keys, one a line; a reader finds what the file was or what it is now, whole."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text("".join(f"{key}\n" for key in keys), encoding="utf-8")
    partial.replace(path)


def _threshold(listed: str, above: str) -> float:
    try:
        threshold = float(above)
    except ValueError:
        threshold = math.nan
    if not math.isfinite(threshold):
        raise ValueError(
            f"config.data.keep={listed}: say how much a pair must have, as {ABOVE}0.5 behind the "
            "table's path"
        )
    return threshold


def _above(listed: str, rows: Iterable[Mapping[str, object]], threshold: float) -> set[str]:
    """Return the keys of the rows whose trust or score is at least the threshold."""
    kept, dropped = set(), set()
    for number, row in enumerate(rows, start=1):
        place = f"config.data.keep={listed}: row {number}"
        # One column for the whole table: values of two kinds have no threshold in common.
        column = next((name for name in VALUES if name in row), None)
        if row.get(KEY) is None or column is None or row[column] is None:
            raise ValueError(
                f"{place} lacks {KEY!r}, or one of {', '.join(map(repr, VALUES))}; "
                f"it has {', '.join(map(str, row))}"
            )
        if column == "trust" and not 0 <= threshold <= 1:
            raise ValueError(f"config.data.keep={listed}: trust lies in [0, 1]")
        key, score = row[KEY], _number(place, column, row[column])
        if isinstance(key, bytes):  # What Parquet calls binary.
            raise ValueError(f"{place}: {KEY!r} has bytes, and must be text")
        (kept if score >= threshold else dropped).add(str(key))
    if both := kept & dropped:
        raise ValueError(
            f"config.data.keep={listed}: {min(both)!r} is there twice, above {threshold:g} and not"
        )
    return kept


def _number(place: str, column: str, value: object) -> float:
    try:
        found = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{place} has {value!r} where a number belongs") from None
    if not math.isfinite(found) or (column == "trust" and not 0 <= found <= 1):
        limits = "in [0, 1]" if column == "trust" else "finite"
        raise ValueError(f"{place} has {value!r}, and {column} must be {limits}")
    return found


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"config.data.keep={path} is not in UTF-8 ({error})") from None


def _csv_rows(path: Path) -> Iterator[Mapping[str, object]]:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    rows = csv.DictReader(io.StringIO(_text(path), newline=""), delimiter=delimiter)
    try:
        yield from rows
    except csv.Error as error:
        raise ValueError(f"config.data.keep={path}: line {rows.line_num}: {error}") from None


def _parquet_rows(path: Path) -> Iterator[Mapping[str, object]]:
    try:
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"config.data.keep={path}: Parquet needs pyarrow: pip install 'otter_jax[parquet]'"
        ) from None
    import pyarrow

    known = {KEY, *VALUES}
    try:
        opened = parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"config.data.keep={path} is no whole Parquet file ({error})") from None
    with opened as table:
        columns = [name for name in table.schema_arrow.names if name in known]
        for batch in table.iter_batches(columns=columns or None):
            yield from batch.to_pylist()
