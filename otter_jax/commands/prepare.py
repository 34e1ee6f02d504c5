"""Converts pairs for TFDS: otter-jax prepare --from=SPEC --to=DIR [...].

DIR becomes a data set of TensorFlow Datasets in ArrayRecord files, which `tfds:DIR` reads at
random, at once and without an index. Images are stored byte for byte. Shards are written by several
processes, or with --beam by a pipeline of Apache Beam. The same command goes on after an
interruption: shards that are finished, and whole by their checksums, are kept, and the files are in
the end those of a conversion that was never interrupted. manifest.json says what was converted, how
much of it, what was left out and why, and has the sha256 of every shard. A source that comes in
splits, as iconify:PACKAGE does, keeps them: `tfds:DIR:SPLIT`.
"""

import argparse
import contextlib
import dataclasses
import functools
import hashlib
import importlib
import json
import os
import pickle
import re
import shlex
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from otter_jax.commands.command_line import (
    Parser,
    ending_in_one_line,
    hearing_termination,
    path_of,
)
from otter_jax.data.builders.recipes import RECIPES, open_pairs
from otter_jax.data.kept_pairs import keep_listed, read_list
from otter_jax.data.records import RecordError, Source, in_words, read_in_order
from otter_jax.data.scan_pool import scan_in_order
from otter_jax.data.sources import left_out, remarks, skipped_files
from otter_jax.data.tfds_source import UNFINISHED

MANIFEST = "manifest.json"
LOCK = "prepare.lock"
RECORDS_PER_SHARD = 10_000
_NAME = re.compile(r"[a-z][a-z0-9_]*")

Runner = Callable[["Job", Sequence[str]], Iterator[Any]]  # Writes shards, yields once for each.


@dataclasses.dataclass(frozen=True)
class Job:
    """A conversion: what of, and where to.

    Attributes:
        source: The pairs.
        folder: Where the data set is to lie.
        name: What TFDS calls it.
        recipe: How captions are made, or "".
        records_per_shard: How many records of the source go into a file, usable or not.
    """

    source: Source
    folder: Path
    name: str
    recipe: str = ""
    records_per_shard: int = RECORDS_PER_SHARD

    @property
    def splits(self) -> dict[str, int]:
        """How many records of the source each split has, usable or not, in their order."""
        return getattr(self.source, "splits", None) or {"train": len(self.source)}

    @property
    def shards(self) -> dict[str, range]:
        """The names of the files, as TFDS has them, with the numbers of the records in each."""
        found, first = {}, 0
        for split, length in self.splits.items():
            records, size = range(first, first + length), self.records_per_shard
            count = -(-length // size)
            for n in range(count):
                name = f"{self.name}-{split}.array_record-{n:05d}-of-{count:05d}"
                found[name] = records[n * size : (n + 1) * size]
            first += length
        return found

    @property
    def unfinished(self) -> Path:
        """Where notes on finished shards lie, and shards that are being written."""
        return self.folder / UNFINISHED

    def identity(self) -> dict[str, Any]:
        """Return what must be the same for a conversion to go on."""
        return {
            "fingerprint": self.source.fingerprint,
            "name": self.name,
            "recipe": self.recipe,
            "records_per_shard": self.records_per_shard,
        }


def main(arguments: Sequence[str] | None = None) -> None:
    """Convert what the command line says; what is wrong with it ends in one line."""
    options = parse(arguments)
    with ending_in_one_line("stopped; the same command goes on"), hearing_termination():
        prepare(options)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = Parser(prog="otter-jax prepare")
    parser.add_argument("--from", dest="spec", required=True, metavar="SPEC",
                        help="as in config.data.train, official:FILE?images=FOLDER, or "
                        "iconify:PACKAGE")  # fmt: skip
    parser.add_argument(
        "--to", type=path_of, required=True, metavar="DIR", help="new, or unfinished"
    )
    parser.add_argument("--name", default="pairs", help="what TFDS calls it; default: pairs")
    parser.add_argument("--recipe", default="", metavar="NAME",
                        help=f"how captions are made: {', '.join(RECIPES)}")  # fmt: skip
    parser.add_argument("--keep", metavar="FILE",
                        help="as config.data.keep: the pairs to write; default: all")  # fmt: skip
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, metavar="N",
                        help="processes; default: one a core")  # fmt: skip
    parser.add_argument("--records_per_shard", type=int, default=RECORDS_PER_SHARD, metavar="N",
                        help=f"default: {RECORDS_PER_SHARD}")  # fmt: skip
    parser.add_argument("--beam", nargs="?", const="", metavar="OPTIONS",
                        help="run as a pipeline of Apache Beam; OPTIONS are its own")  # fmt: skip
    return parser.parse_args(arguments)


def prepare(options: argparse.Namespace) -> dict[str, Any]:
    """Write the data set; returns its manifest.

    Raises:
        ValueError: For a SPEC or option that makes no sense, for a folder that holds something
            else or in which another conversion is under way, and for pairs of which not one can be
            used.
        OSError: If the folder cannot be written; what is finished stays.
        ModuleNotFoundError: If tensorflow_datasets, or with `beam` apache_beam, is not installed.
    """
    for name in ("workers", "records_per_shard"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name}={getattr(options, name)}; it must be at least 1")
    if not _NAME.fullmatch(options.name):
        raise ValueError(f"--name={options.name}: use a-z, 0-9 and _, beginning with a letter")
    _require("tensorflow_datasets", "pip install 'otter_jax[tfds]'")
    if options.beam is None:
        run = functools.partial(run_processes, options.workers)
    else:
        _require("apache_beam", "see docs/installation.md")
        run = functools.partial(run_beam, options.beam)
    folder = options.to.absolute()  # Beam's workers may run elsewhere.
    if set(":?") & set(str(folder)):
        raise ValueError(f"--to={options.to}: a SPEC cannot name it, since it has a ':' or '?'")
    with _naming_keep():
        if options.keep:
            read_list(options.keep)  # Before what takes long.
    with claimed_folder(folder):
        return _convert(options, folder, run)


@contextlib.contextmanager
def _naming_keep() -> Iterator[None]:
    """Call a list of pairs to keep what it is called here, where something is wrong with it."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(str(error).replace("config.data.keep", "--keep")) from None


def _convert(options: argparse.Namespace, folder: Path, run: Runner) -> dict[str, Any]:
    from otter_jax.terminal import progress, say

    source = open_pairs(
        options.spec,
        options.recipe,
        cache_dir=folder / UNFINISHED,
        progress=progress,
        processes=options.workers,
    )
    for remark in remarks(source):
        say(remark)
    if options.keep:
        if hasattr(source, "splits"):
            raise ValueError(f"--keep: {options.spec} comes in splits, which it would join")
        with _naming_keep():
            source = keep_listed(source, options.keep, progress, say)
        count = sum(left_out(source).values())
        say(f"{count:,} pairs are not in {options.keep}, and are not written")
    job = Job(source, folder, options.name, options.recipe, options.records_per_shard)
    begin(job)
    missing = find_missing(job, progress)
    if kept := len(job.shards) - len(missing):
        say(f"{kept} of {len(job.shards)} shards are finished and whole")
    if missing:
        for _ in progress(run(job, missing), len(missing), "shards written"):
            pass
    manifest = finish(job)
    say(f"{manifest['pairs']:,} pairs ({in_words(manifest['skipped'])})")
    say(f"to train on them: {shlex.quote(f'--config.data.train=tfds:{job.folder}')}")
    if sets := ",".join(json.dumps(spec, ensure_ascii=False) for spec in evaluation_sets(job)):
        # Their captions are the classes as they are, with nothing around them.
        keys = (f"--config.evaluate.sets=({sets},)", "--config.evaluate.template={}")
        say(f"to evaluate on those held out: {shlex.join(keys)}")
    return manifest


def evaluation_sets(job: Job) -> list[str]:
    """Return the SPECs that rank the classes of each test split whose list of them was written."""
    lists = {split: job.folder / f"classes_{split}.txt" for split in job.splits}
    return [
        f"tfds:{job.folder}:{split}?classes={path}"
        for split, path in lists.items()
        if split.endswith("_test") and path.is_file()
    ]


@contextlib.contextmanager
def claimed_folder(folder: Path) -> Iterator[None]:
    """Hold a folder while the context lasts; one in which nothing was begun is left as it was.

    Raises:
        ValueError: If it holds something else, or another conversion is under way, which is named.
        OSError: If it cannot be made or written.
    """
    # Imports JAX, which the processes that write do without.
    from otter_jax.runs.workdir import WorkdirLock

    if folder.is_file():
        raise ValueError(f"--to={folder} is a file; name a new folder")
    if not any(path.is_file() for path in _notes(folder)) and any(_others(folder)):
        raise ValueError(f"--to={folder} is not empty; name a new folder")
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = WorkdirLock(folder / LOCK)
    except OSError as error:
        raise OSError(f"--to={folder} cannot be written: {error.strerror}") from None
    try:
        with lock, _kept_if_begun(folder / UNFINISHED):
            yield
    finally:
        for path in new:
            if any(path.iterdir()):
                break
            path.rmdir()


@contextlib.contextmanager
def _kept_if_begun(unfinished: Path) -> Iterator[None]:
    """Remove what was put there, such as an index, for a conversion that is then refused.

    Where a person stops it, it stays: drawings took minutes, and the same command goes on.
    """
    try:
        yield
    except Exception:
        if not (unfinished / MANIFEST).is_file():
            shutil.rmtree(unfinished, ignore_errors=True)
        raise


def begin(job: Job) -> None:
    """Note which conversion the folder is of, or find that it is of this one already.

    Raises:
        ValueError: If it is of another, saying what differs.
        OSError: If it cannot be written.
    """
    noted = (json.loads(path.read_text()) for path in _notes(job.folder) if path.is_file())
    before, wanted = next(noted, None), job.identity()
    if before is not None and not isinstance(before, dict):
        raise ValueError(f"--to={job.folder} holds a {MANIFEST} of something else")
    if before and (other := [key for key in wanted if before.get(key) != wanted[key]]):
        raise ValueError(
            f"--to={job.folder} holds another data set ({_differences(job, before, other)}): "
            "choose a new folder"
        )
    try:
        job.unfinished.mkdir(parents=True, exist_ok=True)
        _write_json(job.unfinished / MANIFEST, {"spec": job.source.name, **wanted})
        for shard, note in (before or {}).get("shards", {}).items():
            _write_json(job.unfinished / f"{shard}.json", note)
    except OSError as error:
        raise OSError(f"--to={job.folder} cannot be written: {error.strerror}") from None


def _differences(job: Job, before: dict[str, Any], keys: Sequence[str]) -> str:
    """Return how a noted conversion differs from a job in some keys of its identity, for people."""
    now = {"spec": job.source.name, **job.identity()}
    if "fingerprint" in keys:  # A number says nothing; that other pairs were meant does.
        if before.get("spec") == now["spec"]:
            return f"the pairs of {now['spec']} as they were before they changed"
        keys = ["spec", *(key for key in keys if key != "fingerprint")]
    return "; ".join(f"{key}: {before.get(key)}, now {now[key]}" for key in keys)


def _notes(folder: Path) -> tuple[Path, Path]:
    """Return where it may stand of which conversion a folder is."""
    return folder / MANIFEST, folder / UNFINISHED / MANIFEST


def _others(folder: Path) -> Iterator[Path]:
    """Yield what lies in a folder, if it is one, besides the beginning of a conversion."""
    found = folder.iterdir() if folder.is_dir() else ()
    return (path for path in found if path.name not in (UNFINISHED, LOCK))


def find_missing(job: Job, progress: Callable[..., Any]) -> list[str]:
    """Return the shards that are not there, or not as their notes have them."""
    noted = [shard for shard in job.shards if (job.unfinished / f"{shard}.json").is_file()]
    looked_at = progress(noted, len(noted), "shards checked") if noted else ()
    whole = {shard for shard in looked_at if _is_whole(job, shard)}
    return [shard for shard in job.shards if shard not in whole]


def _is_whole(job: Job, shard: str) -> bool:
    path = job.folder / shard
    return path.is_file() and _read_note(job, shard)["sha256"] == _sha256(path)


def _read_note(job: Job, shard: str) -> dict[str, Any]:
    return json.loads((job.unfinished / f"{shard}.json").read_text())


def run_processes(workers: int, job: Job, shards: Sequence[str]) -> Iterator[None]:
    """Write shards by some processes of this machine; yields once for each."""
    with _described(job) as description:
        write = functools.partial(write_described, description)
        try:
            yield from scan_in_order(write, shards, processes=workers)
        finally:  # Processes that were ended leave behind what they were writing.
            for partial in job.unfinished.glob("*.partial"):
                partial.unlink(missing_ok=True)


def run_beam(options: str, job: Job, shards: Sequence[str]) -> Iterator[str]:
    """Write shards by a pipeline of Beam, whose workers must see the same paths; yields them.

    `options` are Beam's own, such as `--runner=FlinkRunner`; its default is the local runner.
    """
    import apache_beam as beam

    with _described(job) as description, beam.Pipeline(argv=shlex.split(options)) as pipeline:
        # Reshuffled, lest Beam fuses the steps and one worker writes all.
        numbered = pipeline | beam.Create(shards) | beam.Reshuffle()
        _ = numbered | beam.Map(functools.partial(write_described, description))
    yield from shards


@contextlib.contextmanager
def _described(job: Job) -> Iterator[Path]:
    """Write a job down for all who work at it: pickled, an index is but the name of its file."""
    path = job.unfinished / f"{uuid.uuid4().hex}.job"
    try:
        path.write_bytes(pickle.dumps(job))
        yield path
    finally:
        path.unlink(missing_ok=True)


@functools.lru_cache(maxsize=1)
def _read_description(path: Path) -> Job:
    return pickle.loads(path.read_bytes())


def write_described(description: Path, shard: str) -> None:
    """Write one shard of the job that was written down in a file; raises as `write_shard`."""
    write_shard(_read_description(description), shard)


def write_shard(job: Job, shard: str) -> None:
    """Write one shard, whole or not at all, and a note of what it holds.

    Raises:
        OSError: If it cannot be written.
    """
    partial = job.unfinished / f"{shard}.{uuid.uuid4().hex}.partial"  # Machines may share a folder.
    skipped: Counter[str] = Counter()
    try:
        records = _write_records(partial, _serialized(job, shard, skipped))
        note = {
            "records": records,
            "bytes": partial.stat().st_size,
            "sha256": _sha256(partial),
            "skipped": dict(sorted(skipped.items())),
        }
        partial.replace(job.folder / shard)
        _write_json(job.unfinished / f"{shard}.json", note)
    finally:
        partial.unlink(missing_ok=True)


def _serialized(job: Job, shard: str, skipped: Counter[str]) -> Iterator[bytes]:
    """Yield the records of a shard as TFDS stores them; those that are unusable are counted."""
    from tensorflow_datasets.core.example_serializer import ExampleSerializer

    from otter_jax.data.builders.pairs import make_features, to_example

    features = make_features()
    serializer = ExampleSerializer(features.get_serialized_info())
    for _, record in read_in_order(job.source, job.shards[shard]):
        if isinstance(record, RecordError):
            skipped[str(record)] += 1
            continue
        example = features.encode_example(to_example(record))
        # The order of fields is free, and differs from process to process unless it is asked for.
        yield serializer.get_tf_example(example).SerializeToString(deterministic=True)


def _write_records(path: Path, records: Iterator[bytes]) -> int:
    """Write an ArrayRecord file, and count its records where they have arrived."""
    from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

    writer = ArrayRecordWriter(str(path), "group_size:1")  # Groups of one, as all are read alone.
    written = 0
    for record in records:
        _explained(path, writer.write, record)
        written += 1
    _explained(path, writer.close)
    with path.open("rb") as file:
        os.fsync(file.fileno())
    if (arrived := ArrayRecordReader(str(path)).num_records()) != written:
        raise OSError(f"{path}: only {arrived} of {written} records have arrived there")
    return written


def _explained(path: Path, write: Callable[..., None], *arguments: bytes) -> None:
    try:
        write(*arguments)
    except RuntimeError as error:  # Of the C++ library, with the reason in front.
        reason = str(error).partition(";")[0]
        folder = path.parents[1]
        raise OSError(
            f"--to={folder} cannot be written: {reason}; finished shards are kept"
        ) from None


def finish(job: Job) -> dict[str, Any]:
    """Write what TFDS wants to know, then the manifest; returns it.

    Raises:
        ValueError: If not one pair could be used.
    """
    notes = {shard: _read_note(job, shard) for shard in job.shards}
    skipped = Counter(job.source.skipped)
    for note in notes.values():
        skipped.update(note["skipped"])
    manifest = {
        "spec": job.source.name,
        **job.identity(),
        "pairs": sum(note["records"] for note in notes.values()),
        "skipped": dict(sorted(skipped.items())),
        "skipped_files": skipped_files(job.source),
        "shards": notes,
    }
    if not manifest["pairs"]:
        raise ValueError(
            f"{job.source.name}: not one pair can be used ({in_words(manifest['skipped'])})"
        )
    _write_tfds_metadata(job, notes)
    for name, text in getattr(job.source, "attachments", {}).items():
        (job.folder / name).write_text(text, encoding="utf-8")
    _write_json(job.folder / MANIFEST, manifest)
    shutil.rmtree(job.unfinished)
    return manifest


def _write_tfds_metadata(job: Job, notes: dict[str, dict[str, Any]]) -> None:
    import tensorflow_datasets as tfds

    from otter_jax.data.builders.pairs import VERSION, make_features

    splits = []
    for split in job.splits:
        own = [note for shard, note in notes.items() if shard.startswith(f"{job.name}-{split}.")]
        template = tfds.core.ShardedFileTemplate(
            data_dir=job.folder, dataset_name=job.name, split=split, filetype_suffix="array_record"
        )
        splits.append(
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[note["records"] for note in own],
                num_bytes=sum(note["bytes"] for note in own),
                filename_template=template,
            )
        )
    tfds.folder_dataset.write_metadata(
        data_dir=job.folder,
        features=make_features(),
        split_infos=splits,
        version=VERSION,
        check_data=False,  # It would read by TensorFlow.
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_json(path: Path, value: Any) -> None:
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    partial.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)


def _require(package: str, remedy: str) -> None:
    try:
        importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{package} is needed ({error.name} is missing): {remedy}"
        ) from None


if __name__ == "__main__":
    # Other processes must find its functions under the module's name.
    importlib.import_module("otter_jax.commands.prepare").main()
