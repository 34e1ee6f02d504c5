"""SPECs open what they name, and what cannot be opened is refused by its words."""

import re
from collections.abc import Iterable
from pathlib import Path

import pytest
from shard_files import keys, pair, write

from otter_jax.data import sources
from otter_jax.data.mixture import Mixture
from otter_jax.data.sources import open_source


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


@pytest.mark.parametrize("spec", ["", "cc3m", "webdataset:", "webdataset", "hdf5:a", "csv:"])
def test_unknown_specs_are_told_the_valid_forms(spec: str) -> None:
    with pytest.raises(ValueError, match=r"unknown data source .*open_clipart, webdataset:PATH"):
        open_source(spec)


@pytest.mark.parametrize("pattern", ["nothing/*.tar", "nothing/{0..3}.tar", "nothing.tar"])
def test_a_path_at_which_there_is_nothing(tmp_path: Path, pattern: str) -> None:
    with pytest.raises(FileNotFoundError, match="nothing"):
        open_source(f"webdataset:{tmp_path}/{pattern}")


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
    with pytest.raises(ValueError, match="unknown option 'caption'; there are: none"):
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
    kinds = {re.split(r"[:\s]", form)[0] for form in sources.SPEC_FORMS} - {"open_clipart"}
    assert kinds == set(sources._OPENERS)
