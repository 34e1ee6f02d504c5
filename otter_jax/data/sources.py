"""Random access to image-text pairs, by the SPEC that names them.

A source is a fixed, numbered list of pairs: `source[i]` is the same record in every process and in
every run, which is what makes a batch a pure function of the seed and the step.
"""

import bisect
import hashlib
import importlib.resources
import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from otter_jax.data import storage
from otter_jax.data.caption_checks import doubts, sample_captions
from otter_jax.data.caption_pairs import CaptionPairs
from otter_jax.data.folders import Folder
from otter_jax.data.icon_sheets import IconSheets
from otter_jax.data.records import (
    CaptionRule,
    Progress,
    Record,
    RecordError,
    Source,
    caption_lines,
    choose_captions,
    first_caption,
    key_of,
    no_progress,
    read_records,
    refuse_too_many_bad,
)
from otter_jax.data.shard_index import choose_file
from otter_jax.data.specs import Spec, spec_of_path
from otter_jax.data.tables import open_tables, refuse_remote
from otter_jax.data.tar_shards import BEHIND_THE_END, TRUNCATED, TarShards
from otter_jax.data.tfds_source import TfdsSource

__all__ = [
    "Mixture",
    "Record",
    "RecordError",
    "Source",
    "count_by_source",
    "describe_skipped_files",
    "is_known",
    "open_source",
    "refuse_too_many_bad",
    "register",
    "remarks",
    "skipped_files",
]

SPEC_FORMS = (
    "open_clipart",
    "icons",
    "webdataset:PATH (a tar, a folder of tars, a glob, or {00000..00331})",
    "csv:FILE (.csv, .tsv, .parquet or .jsonl)",
    "folder:PATH",
    "tfds:NAME[:SPLIT]",
)
# Of each kind; a set for evaluation may have others besides.
OPTIONS: dict[str, tuple[str, ...]] = {
    "webdataset": ("captions",),
    "csv": ("image", "caption"),
    "folder": ("captions",),
    "tfds": ("image", "caption", "data_dir"),
}
_SPLITS = ("train", "heldout")
_NAMED_FILES = 3


class _Wish(NamedTuple):
    """What `open_source` was asked for besides the SPEC."""

    split: str
    cache_dir: Path | None
    captions: CaptionRule
    every_caption: bool
    column: str | None
    progress: Progress


def open_source(
    spec: str | Sequence[str],
    split: str = "train",
    *,
    cache_dir: Path | None = None,
    captions: CaptionRule = choose_captions,
    every_caption: bool = False,
    column: str | None = None,
    progress: Progress = no_progress,
) -> Source:
    """Open the data set that a SPEC names, or several as a `Mixture`.

    - `open_clipart`, `icons`: the collections that come with the package.
    - `webdataset:PATH`: tar shards. PATH is one tar, a folder of `*.tar`, a glob, or has brace
      ranges; it may lie in a store that fsspec can read, such as `gs://bucket/{000..331}.tar`. With
      `?captions=lines` every line of a `.txt` is a caption, as in shards of clip-benchmark.
    - `csv:FILE[?image=COLUMN&caption=COLUMN]`: a table, `.csv`, `.tsv`, `.parquet` or `.jsonl`;
      several, as above. Columns of customary names are found without being named.
    - `folder:PATH`: images, with a text file beside each or a folder a class; `?captions=folders`
      takes the folders' names for captions whatever they are, `?captions=files` never.
    - `tfds:NAME[:SPLIT]`, `tfds:FOLDER[:SPLIT]`: a data set that TensorFlow Datasets prepared as
      ArrayRecord; options `image`, `caption`, `data_dir`.

    Args:
        spec: The SPEC, or several.
        split: "train" or "heldout"; of `icons` one of its own. Only built-in collections are
            divided; a path is read whole, and of `tfds:NAME` without a split "train" is meant.
        cache_dir: Where the index of shards is kept if it cannot lie beside them.
        captions: How captions are made of the text and metadata in tar shards; a function of a
            module. Nothing else has metadata to make them of.
        every_caption: Whether every caption of an image is a pair of its own, see `CaptionPairs`.
        column: One of Parquet tables that records are to have in their metadata, as
            `config.data.group` asks for it. Other sources give all that they know of a record.
        progress: Shows how far indexing is.

    Raises:
        ValueError: For a SPEC, option or split that means nothing, and for data without any pair.
        FileNotFoundError: For a path at which there is nothing.
        ModuleNotFoundError: If a package is missing; says which, and how to install it.
    """
    wish = _Wish(split, cache_dir, captions, every_caption, column, progress)
    if isinstance(spec, str):
        return _open_one(Spec.parse(spec), wish)
    if not spec:
        raise ValueError("config.data.train names no data source")
    return Mixture([_open_one(Spec.parse(each), wish) for each in spec], ", ".join(spec))


def _open_one(spec: Spec, wish: _Wish) -> Source:
    source = _open_records(spec, wish)
    return CaptionPairs(source) if wish.every_caption else source


def _open_records(spec: Spec, wish: _Wish) -> Source:
    if spec.name == "open_clipart":
        paths = _embedded_shards(spec.name, wish.split)
        return TarShards(paths, f"{spec.name}/{wish.split}", captions=wish.captions)
    on_sheets = spec.name == "icons"
    if not on_sheets and (spec.kind not in _OPENERS or not spec.path):
        meant = spec_of_path(spec.name)
        forms = f"write {meant}" if meant else f"valid forms: {', '.join(SPEC_FORMS)}"
        if spec.kind == "iconify":
            forms = "it is for prepare: otter-jax prepare --from=iconify:PACKAGE --to=DIR"
        raise ValueError(f"unknown data source {spec.name!r}; {forms}")
    if wish.captions is not choose_captions and spec.kind != "webdataset":
        raise ValueError(f"{spec.name}: only tar shards have metadata to make captions of")
    if on_sheets:
        return IconSheets(_embedded_folder(spec.name), spec.name, wish.split)
    return _OPENERS[spec.kind](spec, wish)


def _open_tar_shards(spec: Spec, wish: _Wish) -> Source:
    spec.refuse_options_but(*OPTIONS["webdataset"])
    captions = _caption_rule(spec, wish.captions)
    paths = storage.find_files(spec.path, ".tar")
    index_name = spec.name
    if captions is not choose_captions:  # Other pairs are usable.
        index_name += f" {captions.__module__}.{captions.__qualname__}"
    return TarShards(
        paths,
        spec.name,
        index_file=choose_file(paths, index_name, wish.cache_dir),
        captions=captions,
        progress=wish.progress,
    )


def _caption_rule(spec: Spec, wished: CaptionRule) -> CaptionRule:
    """Return how captions are made of tar shards' texts: as wished, or as the option says."""
    option = spec.options.get("captions")
    if option is None:
        return wished
    if option != "lines":
        raise ValueError(f"{spec.name}: captions={option}; it can only be lines, one a caption")
    if wished is not choose_captions:
        raise ValueError(f"{spec.name}: a recipe makes the captions, so ?captions= has no meaning")
    return caption_lines


def _open_tables(spec: Spec, wish: _Wish) -> Source:
    spec.refuse_options_but(*OPTIONS["csv"])
    tables = open_tables(spec, column=wish.column)
    return tables[0] if len(tables) == 1 else Mixture(tables, spec.name)


def _open_folder(spec: Spec, wish: _Wish) -> Source:
    spec.refuse_options_but(*OPTIONS["folder"])
    refuse_remote(spec)
    return Folder(Path(spec.path), spec.name, spec.options.get("captions", ""))


def _open_tfds(spec: Spec, wish: _Wish) -> Source:
    spec.refuse_options_but(*OPTIONS["tfds"])
    split = "train" if wish.split == "train" else None
    return TfdsSource(spec.path, spec.name, spec.options, split)


_OPENERS: dict[str, Callable[[Spec, _Wish], Source]] = {
    "webdataset": _open_tar_shards,
    "csv": _open_tables,
    "folder": _open_folder,
    "tfds": _open_tfds,
}


def register(kind: str, open_path: Callable[[str], Source]) -> None:
    """Make SPECs `kind:PATH` of one's own known, for training and for evaluation.

    Args:
        kind: What stands before the colon.
        open_path: Opens the source at a path, with what `Source` asks for.
    """
    _OPENERS[kind] = lambda spec, wish: open_path(spec.path)


def is_known(kind: str) -> bool:
    """Return whether SPECs of a kind can be opened."""
    return kind in _OPENERS


def _embedded_shards(name: str, split: str) -> list[str]:
    if split not in _SPLITS:
        raise ValueError(f"{name} has no split {split!r}; valid splits: {', '.join(_SPLITS)}")
    return storage.find_files(f"{_embedded_folder(name)}/{split}-*.tar", ".tar")


def _embedded_folder(name: str) -> Path:
    return Path(str(importlib.resources.files("otter_jax.data").joinpath(name)))


class Mixture:
    """The records of several sources under one numbering: those of the first come first.

    The numbering alone does not mix: `batches.record_order` draws from the parts, given their
    lengths and weights. Keys get the number of their source in front, as sources may share keys.

    Attributes:
        sources: The parts.
        lengths: How many records each has.
        skipped: How many records were left out, by reason.
        skipped_files: Files that cannot be read to their end, see `TarShards`.
    """

    def __init__(self, sources: Sequence[Source], name: str) -> None:
        """Join the sources, one at least."""
        self.name = name
        self.sources = tuple(sources)
        self.lengths = tuple(map(len, self.sources))
        self._starts = [0, *itertools.accumulate(self.lengths)]
        skipped: Counter[str] = Counter()
        for source in self.sources:
            skipped.update(source.skipped)
        self.skipped = dict(sorted(skipped.items()))
        self.skipped_files = {
            path: why for source in self.sources for path, why in skipped_files(source).items()
        }
        parts = [(source.fingerprint, len(source)) for source in self.sources]
        self.fingerprint = hashlib.sha256(repr(parts).encode()).hexdigest()

    @property
    def caption_counts(self) -> np.ndarray | None:
        """How many captions each record has; None if one of the sources does not know."""
        counts = [source.caption_counts for source in self.sources]
        return None if any(each is None for each in counts) else np.concatenate(counts)

    def __len__(self) -> int:
        """Return the number of records of all sources."""
        return self._starts[-1]

    def __getitem__(self, i: int) -> Record:
        """Return record `i`; errors are those of its source."""
        number = range(len(self))[i]
        part = bisect.bisect_right(self._starts, number) - 1
        return _of_part(part, self.sources[part][number - self._starts[part]])

    def key(self, i: int) -> str:
        """Return what record `i` is called; see `records.key_of`."""
        part = bisect.bisect_right(self._starts, i) - 1
        return f"{part}:{key_of(self.sources[part], i - self._starts[part])}"

    def first_caption(self, i: int) -> str:
        """Return the first caption of record `i`; see `records.first_caption`."""
        part = bisect.bisect_right(self._starts, i) - 1
        return first_caption(self.sources[part], i - self._starts[part])

    def read_many(self, numbers: Sequence[int]) -> list[Record | RecordError]:
        """Read some records, those of each source together; see `records.read_records`."""
        found: dict[int, Record | RecordError] = {}
        places = [range(len(self))[number] for number in numbers]
        for part, start in enumerate(self._starts[:-1]):
            own = [place for place in set(places) if start <= place < self._starts[part + 1]]
            read = read_records(self.sources[part], [place - start for place in own])
            found |= {place: _of_part(part, each) for place, each in zip(own, read, strict=True)}
        return [found[place] for place in places]


def _of_part(part: int, record: Record | RecordError) -> Record | RecordError:
    """Put the number of its source before a record's key."""
    if isinstance(record, RecordError):
        return record
    return record._replace(key=f"{part}:{record.key}")


def skipped_files(source: Source) -> dict[str, str]:
    """Return the files that cannot be read to their end, and what is known of them, by path."""
    if isinstance(source, CaptionPairs):
        return skipped_files(source.source)
    return getattr(source, "skipped_files", {})


def describe_skipped_files(source: Source) -> str:
    """Return one line that names the first of `skipped_files` and says what is lost; "" for none.

    It is to be said before anything is done with the data.
    """
    files = skipped_files(source)
    total = len(source) + sum(source.skipped.values())
    cut = [path for path, why in files.items() if why.startswith(TRUNCATED)]
    joined = [path for path in files if path not in set(cut)]
    parts = []
    if cut:
        lost = source.skipped[TRUNCATED]
        parts.append(
            f"truncated, download again: {_first_of(cut)}; about {lost:,} pairs are lost of "
            f"{total:,}"
        )
    if joined:
        lost = source.skipped[BEHIND_THE_END]
        parts.append(
            f"several tars in one file, of which the first is read: {_first_of(joined)}; "
            f"{lost:,} pairs are lost of {total:,}"
        )
    return "; ".join(parts)


def _first_of(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_NAMED_FILES])
    more = len(names) - _NAMED_FILES
    return f"{shown} and {more} more" if more > 0 else shown


def remarks(source: Source) -> list[str]:
    """Return what is to be said before anything is done with the data, a line each.

    Files that are not read to their end, what the captions are taken from where that is not plain,
    and what makes some of them, which are read for this, look like no captions.
    """
    said = [line for line in (describe_skipped_files(source), *notes(source)) if line]
    return said + [f"{source.name}: {line}" for line in doubts(sample_captions(source))]


def left_out(source: Source) -> dict[str, int]:
    """Return how many records were left out on purpose, by why: held out, or on no list to keep."""
    if isinstance(source, Mixture):
        return dict(sum((Counter(left_out(part)) for part in source.sources), Counter()))
    return getattr(source, "left_out", {})


def notes(source: Source) -> list[str]:
    """Return what a source has to say of itself, a line each."""
    if isinstance(source, Mixture):
        return [line for part in source.sources for line in notes(part)]
    if isinstance(source, CaptionPairs):
        return notes(source.source)
    return list(getattr(source, "notes", ()))


def count_by_source(source: Source, records: np.ndarray) -> tuple[int, ...]:
    """Return how many of some records, by their numbers in ascending order, each part holds.

    A source that is no mixture is its own only part.
    """
    lengths = source.lengths if isinstance(source, Mixture) else (len(source),)
    ends = np.searchsorted(records, np.cumsum(lengths))
    return tuple(np.diff(ends, prepend=0).tolist())
