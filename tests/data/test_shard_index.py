"""The index of shards: what is looked up, kept, renewed, and rebuilt when it is damaged."""

import dataclasses
import logging
import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otter_jax.data.shard_index import ROW, Scan, choose_file, load_index, open_index

Shards = list[tuple[list[bytes], list[list[int]]]]  # By shard: keys; three offsets, three sizes.


def counts_of(numbers: list[list[int]]) -> list[int]:
    """How many captions records have: all one, or as many as one, two or four bytes hold."""
    limit = (1, 2**8, 2**16, 2**32)[numbers[0][1] % 4] if numbers else 1
    return [row[0] % limit if limit > 1 else 1 for row in numbers]


def scan_of(keys: list[bytes], numbers: list[list[int]]) -> Scan:
    rows = np.array([(row[:3], row[3:]) for row in numbers], ROW)
    counts = np.array(counts_of(numbers), np.uint32)
    return Scan(rows, keys, counts, {"no image": len(keys)}, digest=repr((keys, numbers)))


@dataclasses.dataclass
class Scanner:
    """Gives prepared scans by file name, and remembers what was asked for."""

    scans: dict[str, Scan]
    asked: list[str] = dataclasses.field(default_factory=list)

    def __call__(self, paths: list[str]) -> Iterator[Scan]:
        for path in paths:
            self.asked.append(os.path.basename(path))
            yield self.scans[os.path.basename(path)]


def write_shards(folder: Path, shards: Shards) -> tuple[list[str], Scanner]:
    scans = {f"{number}.tar": scan_of(*shard) for number, shard in enumerate(shards)}
    for name in scans:
        (folder / name).write_bytes(name.encode())
    return [str(folder / name) for name in scans], Scanner(scans)


def shard_lists() -> st.SearchStrategy[Shards]:
    row = st.lists(st.integers(0, 2**62), min_size=6, max_size=6)
    key = st.one_of(st.binary(min_size=1, max_size=6), st.just(b"k" * 1000))
    record = st.tuples(key.filter(lambda k: not k.endswith(b"\0")), row)
    shard = st.lists(record, max_size=5).map(
        lambda records: ([k for k, _ in records], [r for _, r in records])
    )
    return st.lists(shard, min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(shards=shard_lists(), kept=st.booleans())
def test_entries_come_back_as_they_were_scanned(
    tmp_path_factory: pytest.TempPathFactory, shards: Shards, kept: bool
) -> None:
    folder = tmp_path_factory.mktemp("index")
    paths, scanner = write_shards(folder, shards)
    index = load_index(paths, scanner, folder / "x.index" if kept else None)
    index = pickle.loads(pickle.dumps(index))
    flat = [(s, *entry) for s, shard in enumerate(shards) for entry in zip(*shard, strict=True)]
    assert len(index) == len(flat) and index.paths == paths
    for number, (shard, key, row) in enumerate(flat):
        spans = list(zip(row[:3], row[3:], strict=True))
        assert index[number] == index[number - len(flat)] == (shard, key, spans)
    counts = [count for _, numbers in shards for count in counts_of(numbers)]
    np.testing.assert_array_equal(index.caption_counts, counts)
    with pytest.raises(IndexError):
        index[len(flat)]
    assert [each.skipped for each in index.segments] == [
        {"no image": len(keys)} for keys, _ in shards
    ]


SHARDS: Shards = [([b"a", b"bb"], [[1] * 6, [2] * 6]), ([b"c"], [[3] * 6]), ([b"d"], [[4] * 6])]


def test_only_shards_that_changed_are_scanned_again(tmp_path: Path) -> None:
    paths, scanner = write_shards(tmp_path, SHARDS)
    first = load_index(paths, scanner, tmp_path / "x.index")
    assert scanner.asked == ["0.tar", "1.tar", "2.tar"]
    scanner.asked.clear()
    assert load_index(paths, scanner, tmp_path / "x.index").fingerprint == first.fingerprint
    assert scanner.asked == []
    os.utime(paths[1], (1, 1))
    scanner.scans["1.tar"] = scan_of([b"new", b"c"], [[5] * 6, [6] * 6])
    second = load_index(paths, scanner, tmp_path / "x.index")
    assert scanner.asked == ["1.tar"]
    assert [second[i].key for i in range(len(second))] == [b"a", b"bb", b"new", b"c", b"d"]
    assert [first[i].key for i in range(len(first))] == [b"a", b"bb", b"c", b"d"]  # Still mapped.
    third = load_index([paths[2], paths[0]], scanner, tmp_path / "x.index")
    assert [third[i].key for i in range(len(third))] == [b"d", b"a", b"bb"]
    assert scanner.asked == ["1.tar"]


@settings(max_examples=60, deadline=None)
@given(position=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), cut=st.booleans())
def test_a_damaged_index_is_noticed_and_built_again(
    tmp_path_factory: pytest.TempPathFactory, position: float, bit: int, cut: bool
) -> None:
    folder = tmp_path_factory.mktemp("index")
    paths, scanner = write_shards(folder, SHARDS)
    file = folder / "x.index"
    whole = load_index(paths, scanner, file)
    data = bytearray(file.read_bytes())
    place = int(position * len(data))
    data[place] ^= 1 << bit
    file.unlink()  # The old one stays mapped.
    file.write_bytes(data[:place] if cut else data)
    assert open_index(file) is None
    scanner.asked.clear()
    again = load_index(paths, scanner, file)
    assert len(scanner.asked) == 3 and again.fingerprint == whole.fingerprint
    assert open_index(file) is not None


def test_the_fingerprint_is_that_of_the_digests_in_order(tmp_path: Path) -> None:
    def fingerprint(shards: Shards) -> str:
        return load_index(*write_shards(tmp_path, shards)).fingerprint

    reference = fingerprint(SHARDS)
    assert reference == fingerprint(SHARDS) == fingerprint([*SHARDS, ([], [])])
    others = [SHARDS[::-1], SHARDS[:2], [*SHARDS[:2], ([b"d"], [[5] * 6])]]
    assert len({reference, *map(fingerprint, others)}) == 4


def test_a_damaged_index_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "x.index").write_bytes(b"nonsense")
    with caplog.at_level(logging.WARNING):
        assert open_index(tmp_path / "x.index") is None
    assert "damaged index, which is built again" in caplog.text
    caplog.clear()
    assert open_index(tmp_path / "none.index") is None and not caplog.text


def test_a_pickled_index_that_was_replaced_is_refused(tmp_path: Path) -> None:
    paths, scanner = write_shards(tmp_path, SHARDS)
    pickled = pickle.dumps(load_index(paths, scanner, tmp_path / "x.index"))
    assert len(pickled) < 1000  # The name of the file, not its contents.
    load_index(paths[:1], scanner, tmp_path / "x.index")
    with pytest.raises(ValueError, match="no longer the index the run began with"):
        pickle.loads(pickled)


def test_an_index_half_written_leaves_nothing(tmp_path: Path) -> None:
    paths, scanner = write_shards(tmp_path, SHARDS)
    del scanner.scans["2.tar"]
    with pytest.raises(KeyError):
        load_index(paths, scanner, tmp_path / "x.index")
    assert not list(tmp_path.glob("x*"))


def test_an_index_that_cannot_be_written_is_read_or_built_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, scanner = write_shards(tmp_path, SHARDS)
    first = load_index(paths, scanner, tmp_path / "x.index")
    monkeypatch.setattr("os.access", lambda path, mode: False)
    scanner.asked.clear()
    assert load_index(paths, scanner, tmp_path / "x.index").fingerprint == first.fingerprint
    assert scanner.asked == []
    os.utime(paths[1], (1, 1))
    load_index(paths, scanner, tmp_path / "x.index")
    load_index(paths, scanner, tmp_path / "x.index")
    assert scanner.asked == ["1.tar", "1.tar"]


class TestChooseFile:
    @pytest.fixture(autouse=True)
    def everything_is_worth_keeping(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("otter_jax.data.shard_index._WORTH_KEEPING", 1)

    @pytest.fixture
    def shard(self, tmp_path: Path) -> str:
        (tmp_path / "shards").mkdir()
        (tmp_path / "shards" / "0.tar").write_bytes(b"0")
        return str(tmp_path / "shards" / "0.tar")

    def test_beside_the_shards(self, shard: str, tmp_path: Path) -> None:
        file = choose_file([shard], "a", tmp_path)
        assert file and file.parent == tmp_path / "shards" / ".otter_jax"
        assert file != choose_file([shard], "b", tmp_path)

    def test_elsewhere_if_the_shards_cannot_be_written(self, shard: str, tmp_path: Path) -> None:
        (tmp_path / "shards" / ".otter_jax").write_text("a file where the folder should be")
        file = choose_file([shard], "a", tmp_path / "run")
        assert file and file.parent == tmp_path / "run" / ".otter_jax"
        assert choose_file([shard], "a") is None

    def test_an_index_that_is_there_though_it_cannot_be_written(
        self, shard: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file = choose_file([shard], "a")
        assert file is not None
        monkeypatch.setattr("os.access", lambda path, mode: "run" in str(path))
        assert choose_file([shard], "a", tmp_path / "run") != file
        file.touch()
        assert choose_file([shard], "a", tmp_path / "run") == file

    def test_small_or_missing_shards(self, shard: str, monkeypatch: pytest.MonkeyPatch) -> None:
        assert choose_file([f"{shard}.gone"], "a") is None
        monkeypatch.setattr("otter_jax.data.shard_index._WORTH_KEEPING", 2)
        assert choose_file([shard], "a") is None
