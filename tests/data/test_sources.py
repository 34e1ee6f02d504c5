"""SPECs open what they name, alone or mixed; what cannot be opened is refused by its words."""

import itertools
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_files import keys, pair, write

from otter_jax.data import batches, sources
from otter_jax.data.sources import Mixture, Source, count_by_source, open_source


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(12):
        write(tmp_path / f"{number:05d}.tar", pair(f"key{number}"))
    (tmp_path / "stats.json").write_text("{}")
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "numbers"),
    [
        ("", range(12)),
        ("/*.tar", range(12)),
        ("/0000?.tar", range(10)),
        ("/00003.tar", [3]),
        ("/{00008..00011}.tar", [8, 9, 10, 11]),
        ("/{00007,00002}.tar", [7, 2]),
        ("/000{0,1}{1..0}.tar", None),
        ("/000{0,1}{0..1}.tar", [0, 1, 10, 11]),
        ("/{00000..00001,nothing}.tar", None),
    ],
)
def test_patterns(folder: Path, pattern: str, numbers: Iterable[int] | None) -> None:
    spec = f"webdataset:{folder}{pattern}"
    if numbers is None:
        with pytest.raises((ValueError, FileNotFoundError)):
            open_source(spec)
    else:
        source = open_source(spec)
        assert keys(source) == [f"key{number}" for number in numbers]
        assert source.name == spec


def test_home_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    assert len(open_source("webdataset:~/00000.tar")) == 1


def test_a_bare_path_is_answered_with_its_spec(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text("")
    with pytest.raises(ValueError, match=f"unknown data source '{path}'; write csv:{path}"):
        open_source(str(path))


@pytest.mark.parametrize("spec", ["", "cc3m", "webdataset:", "webdataset", "hdf5:a", "csv:"])
def test_unknown_specs_are_told_the_valid_forms(spec: str) -> None:
    with pytest.raises(
        ValueError, match=r"unknown data source .*open_clipart, icons, webdataset:PATH"
    ):
        open_source(spec)


@pytest.mark.parametrize("spec", ["iconify:json.tgz", "iconify:json.tgz?sets=lucide", "iconify"])
def test_what_prepare_alone_reads_is_sent_there(spec: str) -> None:
    with pytest.raises(ValueError, match=r"unknown data source .*prepare --from=iconify:"):
        open_source(spec)


@pytest.mark.parametrize("pattern", ["nothing/*.tar", "nothing/{0..3}.tar", "nothing.tar"])
def test_a_path_at_which_there_is_nothing(tmp_path: Path, pattern: str) -> None:
    with pytest.raises(FileNotFoundError, match="nothing"):
        open_source(f"webdataset:{tmp_path}/{pattern}")


def test_compressed_tars_are_refused(tmp_path: Path) -> None:
    (tmp_path / "0.tar.gz").touch()
    with pytest.raises(FileNotFoundError, match=r"only 0\.tar\.gz, which must be uncompressed"):
        open_source(f"webdataset:{tmp_path}")


def test_a_range_that_runs_backwards(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"\{9\.\.1\} runs backwards; write \{1\.\.9\}"):
        open_source(f"webdataset:{folder}/{{9..1}}.tar")


def test_embedded_collection_has_two_splits() -> None:
    train, heldout = (open_source("open_clipart", split) for split in ("train", "heldout"))
    assert len(train) > 5 * len(heldout) > 1000
    assert train.name == "open_clipart/train" and train.fingerprint != heldout.fingerprint
    with pytest.raises(ValueError, match="no split 'test'; valid splits: train, heldout"):
        open_source("open_clipart", "test")


def test_several_specs_are_one_source(folder: Path) -> None:
    specs = [f"webdataset:{folder}/00003.tar", f"webdataset:{folder}/{{00001..00002}}.tar"]
    source = open_source(specs)
    assert isinstance(source, Mixture) and source.lengths == (1, 2)
    assert keys(source) == ["0:key3", "1:key1", "1:key2"]
    with pytest.raises(ValueError, match=r"config\.data\.train names no data source"):
        open_source(())


def test_options_a_kind_does_not_have(folder: Path) -> None:
    with pytest.raises(ValueError, match="unknown option 'caption'; there are: captions"):
        open_source(f"webdataset:{folder}?caption=text")
    with pytest.raises(ValueError, match="unknown option 'txt'; there are: image, caption"):
        open_source("csv:a.csv?txt=a")


@pytest.mark.parametrize("kind", ["csv", "folder"])
def test_what_is_read_from_disks_only(kind: str) -> None:
    with pytest.raises(ValueError, match="read from disks only"):
        open_source(f"{kind}:gs://bucket/a")


def test_tables_by_a_pattern_are_one_source(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(b"pixels")
    for number in range(2):
        (tmp_path / f"{number}.csv").write_text(f"image,caption\nx.jpg,cat {number}\n")
    source = open_source(f"csv:{tmp_path}/?.csv")
    assert [source[i].caption for i in range(len(source))] == ["cat 0", "cat 1"]


def test_index_of_large_shards_is_kept_beside_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("otter_jax.data.shard_index._WORTH_KEEPING", 1)
    write(tmp_path / "a.tar", pair("x"))
    shown = []

    def progress(items: Iterable, total: int, label: str) -> Iterable:
        shown.append((total, label.split(": ")[-1]))
        return items

    for _ in range(2):
        assert keys(open_source(f"webdataset:{tmp_path}", progress=progress)) == ["x"]
    assert shown == [(1, "shards indexed")]  # The second time nothing is indexed.
    assert [file.suffix for file in (tmp_path / ".otter_jax").iterdir()] == [".index"]


def test_forms_in_messages_are_those_that_open() -> None:
    kinds = {re.split(r"[:\s]", form)[0] for form in sources.SPEC_FORMS}
    kinds -= {"open_clipart", "icons"}  # Which come with the package.
    assert kinds == set(sources._OPENERS)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixture")
    for shard in range(3):
        write(folder / f"{shard}.tar", *(pair(f"{n}", f"{shard} {n}".encode()) for n in range(9)))
    (folder / "x.jpg").write_bytes(b"pixels")
    rows = "".join(f"x.jpg,row {number}\n" for number in range(7))
    (folder / "x.csv").write_text("image,caption\n" + rows + "x.jpg,\n")
    return folder


@pytest.fixture
def reopen(mixed: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Source]:
    monkeypatch.setattr("otter_jax.data.shard_index._WORTH_KEEPING", 1)
    return lambda: open_source((f"webdataset:{mixed}/?.tar", f"csv:{mixed}/x.csv"))


def test_records_keep_their_order_and_their_source(reopen: Callable[[], Source]) -> None:
    source = reopen()
    assert isinstance(source, Mixture) and source.lengths == (27, 7) and len(source) == 34
    assert (source[0].key, source[26].caption, source[27].caption) == ("0:0", "2 8", "row 0")
    assert source[-1].key == "1:x.jpg" and source.skipped == {"empty caption": 1}
    with pytest.raises(IndexError):
        source[34]
    assert source.fingerprint == reopen().fingerprint != reopen().sources[0].fingerprint


def test_count_by_source(reopen: Callable[[], Source]) -> None:
    source = reopen()
    assert count_by_source(source, np.arange(34)) == (27, 7)
    assert count_by_source(source, np.array([0, 26, 27, 28, 33])) == (2, 3)
    assert count_by_source(source.sources[0], np.array([3, 4])) == (2,)
    assert count_by_source(source, np.array([30])) == (0, 1)


def captions_of_batches(source: Source, steps: range, **options) -> list[list[str]]:
    def load(step: int, records: np.ndarray) -> batches.Batch:
        del step
        return {"caption": np.array([source[int(number)].caption for number in records])}

    lengths = source.lengths if isinstance(source, Mixture) else len(source)
    stream = batches.batches(load, lengths, batch_size=4, seed=3, start_step=steps.start, **options)
    return [batch["caption"].tolist() for batch in itertools.islice(stream, len(steps))]


@settings(max_examples=10, deadline=None)
@given(
    start=st.integers(0, 20),
    threads=st.integers(0, 2),
    processes=st.sampled_from([1, 2, 4]),
    weights=st.sampled_from([(), (1.0, 3.0), (0.7, 0.3)]),
    touch=st.booleans(),
)
def test_batches_do_not_depend_on_how_they_are_made(
    mixed: Path, start: int, threads: int, processes: int, weights: tuple, touch: bool
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("otter_jax.data.shard_index._WORTH_KEEPING", 1)
        specs = (f"webdataset:{mixed}/?.tar", f"csv:{mixed}/x.csv")
        source = open_source(specs)
        whole = captions_of_batches(source, range(23), weights=weights)
        if touch:  # One shard is scanned again.
            os.utime(mixed / "1.tar")
        source = open_source(specs)
    parts = [
        captions_of_batches(
            source,
            range(start, start + 3),
            weights=weights,
            threads=threads,
            process=(p, processes),
        )
        for p in range(processes)
    ]
    joined = [list(itertools.chain(*rows)) for rows in zip(*parts, strict=True)]
    assert joined == whole[start : start + 3]
