"""Parquet tables with paths and with images inside."""

import pickle
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from otter_jax.data import parquet_table
from otter_jax.data.sources import RecordError, Source, open_source, remarks

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def table(folder: Path, columns: dict, options: str = "", rows_a_group: int = 2) -> Source:
    path = folder / "pairs.parquet"
    parquet.write_table(pyarrow.table(columns), path, row_group_size=rows_a_group)
    return open_source(f"csv:{path}{options}")


def test_paths(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"pixels")
    names = ["a.jpg", "gone.jpg", None, "https://example.org/a.jpg", "a.jpg", "a.jpg"]
    texts = ["a cat", "x", "x", "x", None, " a dog\0"]
    source = table(tmp_path, {"id": range(6), "filename": names, "text": texts})
    assert source[0] == ("a.jpg", b"pixels", "a cat", {}, ("a cat",))
    assert len(source) == 2 and source[1].caption == "a dog"
    assert source.skipped == {"empty caption": 1, "image is a URL": 1, "missing image": 2}


@pytest.mark.parametrize("layout", ["bytes", "struct"])
def test_images_inside(tmp_path: Path, layout: str) -> None:
    images = [f"pixels {number}".encode() for number in range(5)] + [b""]
    column = images if layout == "bytes" else [{"bytes": i, "path": "x.jpg"} for i in images]
    captions = [["one", "two"], ["three"], [], ["four"], ["five"], ["six"]]
    source = table(tmp_path, {"image": column, "captions": captions})
    assert [source[i].image for i in (3, 0, 1)] == [images[4], images[0], images[1]]
    assert source[0].captions == ("one", "two") and source.skipped == {"empty caption": 1}
    with pytest.raises(RecordError, match="empty image"):
        source[4]
    assert pickle.loads(pickle.dumps(source))[2] == source[2]


def test_groups_are_read_once_in_order_and_whole_files_that_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [bytes([number]) * 1000 for number in range(40)]
    captions = ["a cat"] * 40
    sources = []
    for name, rows in (("small", 4), ("large", 40)):
        (tmp_path / name).mkdir()
        columns = {"image": images, "caption": captions}
        sources.append(table(tmp_path / name, columns, rows_a_group=rows))
    read, read_group = [], parquet_table.ParquetTable._read_group

    def counted(self: parquet_table.ParquetTable, group: int) -> object:
        read.append(group)
        return read_group(self, group)

    monkeypatch.setattr(parquet_table.ParquetTable, "_read_group", counted)
    order = np.random.default_rng(0).permutation(40)
    for limit, numbers, expected in (
        (10_000, range(40), [10, 1]),  # Two small groups fit, and the last one always does.
        (100_000, order, [10, 1]),
        (0, order, None),
    ):
        recent = parquet_table.RecentGroups(limit)
        monkeypatch.setattr(parquet_table, "_recent_groups", recent)
        for source, times in zip(sources, expected or [None, 1], strict=True):
            read.clear()
            assert [source[int(i)].image for i in numbers] == [images[i] for i in numbers]
            assert len(read) == times or (times is None and len(read) > 20)
        assert len(recent._kept) == 1 or recent._bytes <= limit
        assert recent._bytes == sum(column.nbytes for column in recent._kept.values())


def test_captions_are_looked_at_without_reading_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = {"image": [b"x"] * 6, "caption": [f"IMG_{n:04d}.jpg" for n in range(6)]}
    table(tmp_path, columns)
    (tmp_path / "second.parquet").write_bytes((tmp_path / "pairs.parquet").read_bytes())
    monkeypatch.setattr(parquet_table.ParquetTable, "_read_group", None)
    for every_caption in (False, True):
        source = open_source(f"csv:{tmp_path}/*.parquet", every_caption=every_caption)
        (line,) = remarks(source)
        assert "100% of the captions are names of files" in line


def test_threads_read_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_table, "_recent_groups", parquet_table.RecentGroups(4000))
    images = [bytes([number]) * 1000 for number in range(40)]
    source = table(tmp_path, {"image": images, "caption": ["a cat"] * 40})
    with ThreadPoolExecutor(8) as threads:
        records = list(threads.map(source.__getitem__, [*range(40), *range(39, -1, -1)] * 5))
    assert [record.image for record in records] == (images + images[::-1]) * 5


def test_large_groups_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    columns = {"image": [bytes([n]) * 3000 for n in range(10)], "caption": ["x"] * 10}
    monkeypatch.setattr(parquet_table, "_LARGE_GROUP", 20_000)
    table(tmp_path, columns, rows_a_group=10)
    assert not caplog.text  # The whole file is kept in memory.
    monkeypatch.setattr(parquet_table, "_KEPT_BYTES", 10_000)
    table(tmp_path, columns, rows_a_group=2)
    assert not caplog.text
    table(tmp_path, columns, rows_a_group=10)
    assert "row groups are that large; write them with row_group_size=10" in caplog.text


def test_a_table_that_changed_is_noticed(tmp_path: Path) -> None:
    source = table(tmp_path, {"image": [b"x", b"y"], "caption": ["cat", "dog"]})
    table(tmp_path, {"image": [b"xx", b"yy"], "caption": ["cat", "dog"]})
    with pytest.raises(ValueError, match=r"pairs\.parquet has changed since it was opened"):
        source[0]


def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"column 'image' holds int64; an image is a path"):
        table(tmp_path, {"image": [1], "caption": ["x"]})
    with pytest.raises(ValueError, match="caption column not found"):
        table(tmp_path, {"image": [b"x"], "words": ["x"]})
    with pytest.raises(ValueError, match="no usable row"):
        table(tmp_path, {"image": [b"x"], "caption": [""]})
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(ValueError, match="not a Parquet file"):
        open_source(f"csv:{tmp_path}/broken.parquet")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        open_source(f"csv:{tmp_path}/none.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'otter_jax\[parquet\]'"):
        open_source(f"csv:{tmp_path}/broken.parquet")


def test_fingerprint_follows_captions_and_images(tmp_path: Path) -> None:
    def fingerprint(image: bytes, caption: str) -> str:
        columns = {"image": [b"first", b"second", image], "caption": ["a", "b", caption]}
        return table(tmp_path, columns).fingerprint

    reference = fingerprint(b"x", "cat")
    assert reference == fingerprint(b"x", "cat")
    assert len({reference, fingerprint(b"x", "cot"), fingerprint(b"y", "cat")}) == 3


@pytest.mark.parametrize("image", ["path", "bytes"])
def test_a_column_that_is_asked_for_is_metadata(tmp_path: Path, image: str) -> None:
    (tmp_path / "a.jpg").write_bytes(b"pixels")
    images = ["a.jpg"] * 3 if image == "path" else [b"pixels"] * 3
    columns = {"image": images, "caption": ["a", "b", "c"], "id": [7, None, 8], "list": [[1]] * 3}
    table(tmp_path, columns)
    path = f"csv:{tmp_path}/pairs.parquet"
    assert open_source(path)[0].metadata == {}
    source = open_source(path, column="id")
    assert [source[i].metadata for i in range(3)] == [{"id": 7}, {"id": None}, {"id": 8}]
    assert source.fingerprint == open_source(path).fingerprint  # The pairs are the same.
    with pytest.raises(ValueError, match=r"data.group='ids': .* it has image, caption, id, list"):
        open_source(path, column="ids")
    with pytest.raises(ValueError, match=r"data.group='list': .* must be text or numbers"):
        open_source(path, column="list")
