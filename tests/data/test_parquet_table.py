"""Parquet tables with paths and with images inside."""

import pickle
import sys
from pathlib import Path

import pytest

from otter_jax.data.sources import RecordError, Source, open_source

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


def test_fingerprint_follows_the_captions(tmp_path: Path) -> None:
    reference = table(tmp_path, {"image": [b"x"], "caption": ["cat"]}).fingerprint
    assert reference == table(tmp_path, {"image": [b"x"], "caption": ["cat"]}).fingerprint
    assert reference != table(tmp_path, {"image": [b"x"], "caption": ["cot"]}).fingerprint
