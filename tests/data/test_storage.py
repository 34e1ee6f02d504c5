"""Files on disks and in a store, the one that fsspec keeps in memory."""

import os
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from shard_files import keys, pair, tar_bytes

from otter_jax.data import storage
from otter_jax.data.sources import open_source


@pytest.fixture
def store() -> Iterator[fsspec.AbstractFileSystem]:
    system = fsspec.filesystem("memory")
    for number in range(3):
        data = tar_bytes([*pair(f"a{number}"), *pair(f"b{number}")])
        system.pipe_file(f"/bucket/{number:05d}.tar", data)
    yield system
    system.rm("/bucket", recursive=True)


@pytest.mark.parametrize(
    ("pattern", "numbers"),
    [
        ("memory://bucket", [0, 1, 2]),
        ("memory://bucket/*.tar", [0, 1, 2]),
        ("memory://bucket/{00002,00000}.tar", [2, 0]),
        ("memory://bucket/00001.tar", [1]),
    ],
)
def test_shards_in_a_store(
    store: fsspec.AbstractFileSystem, pattern: str, numbers: list[int]
) -> None:
    source = open_source(f"webdataset:{pattern}")
    assert keys(source) == [f"{name}{number}" for number in numbers for name in "ab"]
    assert source[1].image == f"pixels of b{numbers[0]}".encode()


class ClientError(Exception):
    """As a client of a store has its own, for example httpx.ConnectError."""


@pytest.mark.parametrize(
    ("call", "pattern"), [("isdir", "a.tar"), ("info", "00000.tar"), ("glob", "*.tar"),
                          ("get_file", "00000.tar"), ("cat_ranges", "00000.tar")],
)  # fmt: skip
def test_what_a_client_raises_names_the_path(
    store: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch, call: str, pattern: str
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise ClientError("name or service\nnot known")

    spec = f"webdataset:memory://bucket/{pattern}"
    source = open_source(spec) if call == "cat_ranges" else None
    monkeypatch.setattr(type(store), call, fail)
    with pytest.raises(OSError, match=r"^memory://bucket/.*: ClientError: name or service not"):
        open_source(spec) if source is None else source[0]


@pytest.mark.parametrize("kind", ["webdataset", "csv"])
def test_pipes_are_not_waited_for(kind: str, tmp_path: Path) -> None:
    for suffix in ("csv", "parquet", "tar"):
        os.mkfifo(tmp_path / f"pipe.{suffix}")
        with pytest.raises(ValueError, match=rf"pipe\.{suffix} is no regular file but a"):
            open_source(f"{kind}:{tmp_path}/pipe.{suffix}")


@pytest.mark.parametrize("kind", ["webdataset", "csv"])
@pytest.mark.parametrize(
    "braces",
    ["{0..99999999999}", "{0..1000000}", "{0..999}{0..999}{0..1}", "{1.." + 5000 * "9" + "}",
     "{a,b}" * 20],
)  # fmt: skip
def test_endless_braces_are_refused_at_once(kind: str, braces: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="more than 1,000,000 files") as error:
        open_source(f"{kind}:{tmp_path}/{braces}")
    assert len(str(error.value)) < 300


def test_index_of_a_store_is_kept_in_the_folder_given(
    store: fsspec.AbstractFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("otter_jax.data.shard_index._WORTH_KEEPING", 1)
    first = open_source("webdataset:memory://bucket", cache_dir=tmp_path)
    assert len(list(tmp_path.rglob("*.index"))) == 1
    store.pipe_file("/bucket/00001.tar", tar_bytes(pair("new")))
    second = open_source("webdataset:memory://bucket", cache_dir=tmp_path)
    assert keys(second) == ["a0", "b0", "new", "a2", "b2"]
    assert first.fingerprint != second.fingerprint


def test_what_a_store_does_not_have(store: fsspec.AbstractFileSystem) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.tar"):
        open_source("webdataset:memory://bucket/gone.tar")
    with pytest.raises(FileNotFoundError, match="no tar shard matches"):
        open_source("webdataset:memory://bucket/x*.tar")
    with pytest.raises(ValueError, match="unknown kind of store nonsense://"):
        open_source("webdataset:nonsense://bucket/a.tar")


def test_a_store_whose_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(path: str) -> None:
        raise ImportError("Please install gcsfs")

    monkeypatch.setattr("fsspec.core.url_to_fs", missing)
    with pytest.raises(ModuleNotFoundError, match="gs:// needs another package: Please install"):
        open_source("webdataset:gs://bucket/a.tar")


def test_reads_beyond_the_end_are_refused(store: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abcdef")
    store.pipe_file("/bucket/a", b"abcdef")
    for path in (str(tmp_path / "a"), "memory://bucket/a"):
        with storage.open_reader(path) as file:
            assert file.read(1, 3) == b"bcd" and file.read(9, 0) == b""
            with pytest.raises(ValueError, match="shorter than when it was indexed"):
                file.read(4, 3)


def test_a_store_is_asked_once_for_the_members_of_a_record(
    store: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, asked = open_source("webdataset:memory://bucket"), []
    together = store.cat_ranges

    def cat_ranges(names: list[str], *ranges: list[int], **options: str) -> list[bytes]:
        asked.append(names)
        return together(names, *ranges, **options)

    monkeypatch.setattr(type(store), "cat_ranges", staticmethod(cat_ranges))
    assert source[5].image == b"pixels of b2"
    assert asked == [["/bucket/00002.tar"] * 3]


@pytest.mark.parametrize("remote", [False, True])
def test_spans_come_back_in_order(
    store: fsspec.AbstractFileSystem, tmp_path: Path, remote: bool
) -> None:
    (tmp_path / "a").write_bytes(b"abcdef")
    store.pipe_file("/bucket/a", b"abcdef")
    with storage.open_reader("memory://bucket/a" if remote else str(tmp_path / "a")) as file:
        assert file.read_all([(4, 2), (0, 0), (1, 1)]) == [b"ef", b"", b"b"]
        assert file.read_all([]) == []
        with pytest.raises(ValueError, match="shorter than when it was indexed"):
            file.read_all([(0, 1), (5, 2)])


def test_a_sample_tells_contents_by_their_middle_and_end(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(range(256)) * 40)
    with storage.open_reader(str(tmp_path / "a")) as file:
        assert storage.sample(file, 10, 3) == bytes([10, 11, 12]) * 2
        whole = file.read(0, 10_240)
        assert storage.sample(file, 100, 4000) == whole[1972:2228] + whole[3844:4100]


def test_state_follows_size_and_time(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"abc")
    state = storage.state_of(str(file))
    file.write_bytes(b"abcd")
    assert storage.state_of(str(file))[0] == 4 and state[0] == 3
    os.utime(file, (1, 1))
    assert storage.state_of(str(file)) == (4, "1000000000")
