"""`csv:` in all its forms: which files are meant, what cells hold, what is refused and how."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otter_jax.data.sources import RecordError, Source, open_source

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return with_images(tmp_path)


def with_images(folder: Path) -> Path:
    for name in "abc":
        (folder / f"{name}.jpg").write_bytes(f"pixels of {name}".encode())
    return folder


def captions(source: Source) -> list[tuple[str, ...]]:
    return [source[i].captions for i in range(len(source))]


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
    path.write_text("\n".join(lines) + "\n")


def write_json_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


ROWS = [{"file_name": "a.jpg", "text": "a cat"}, {"file_name": "b.jpg", "text": "a dog"},
        {"file_name": "gone.jpg", "text": "x"}]  # fmt: skip
FORMS = {"pairs.csv": write_csv, "metadata.jsonl": write_json_lines, "x.ndjson": write_json_lines,
         "pairs.parquet": write_parquet, "pairs.PQ": write_parquet}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("path", ["{0}/{1}", "{0}", "{0}/*{2}"])
def test_forms_are_read_alone_in_folders_and_by_globs(folder: Path, name: str, path: str) -> None:
    FORMS[name](folder / name, ROWS)
    source = open_source("csv:" + path.format(folder, name, Path(name).suffix))
    assert captions(source) == [("a cat",), ("a dog",)]
    assert source.skipped == {"missing image": 1}
    assert source[1].image == b"pixels of b"


def test_parquet_by_another_name_is_told_by_its_contents(folder: Path) -> None:
    write_parquet(folder / "train-00000-of-00001", ROWS)
    assert len(open_source(f"csv:{folder}/train-00000-of-00001")) == 2


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ('["a cat", "a kitten"]', ("a cat", "a kitten")),
        ("['a cat', 'a kitten']", ("a cat", "a kitten")),
        ("['a cat' 'a kitten']", ("a cat", "a kitten")),  # Of NumPy.
        ("['a cat'\n \"it's\"]", ("a cat", "it's")),
        ("['a cat', 'a cat', '']", ("a cat",)),
        (r"['a \u732b', 'a\'b']", ("a 猫", "a'b")),
        ("('a cat', 'a kitten')", ("a cat", "a kitten")),
        ("('a cat',)", ("a cat",)),
        ("('a cat')", ("('a cat')",)),
        ("(a cat, a kitten)", ("(a cat, a kitten)",)),
        ("['a cat', 3]", ("['a cat', 3]",)),
        ("['a cat', __import__('os')]", ("['a cat', __import__('os')]",)),
        ("['never closed", ("['never closed",)),
        ("[a cat]", ("[a cat]",)),
        ("[]", None),
        ('["", ""]', None),
    ],
)
def test_lists_in_cells(folder: Path, suffix: str, cell: str, expected: Any) -> None:
    path = folder / f"pairs.{suffix}"
    quoted = cell.replace('"', '""')
    rows = [{"image": "a.jpg", "caption": "first"}, {"image": "b.jpg", "caption": cell}]
    if suffix == "csv":
        path.write_text(f'image,caption\na.jpg,first\nb.jpg,"{quoted}"\n')
    else:
        FORMS["pairs.parquet" if suffix == "parquet" else "metadata.jsonl"](path, rows)
    source = open_source(f"csv:{path}")
    assert captions(source)[1:] == ([expected] if expected else [])
    assert source.skipped == ({} if expected else {"empty caption": 1})


@pytest.mark.parametrize(
    ("text", "options"),
    [
        (",image,caption\n0,a.jpg,a cat\n1,b.jpg,a dog\n", ""),  # pandas' index.
        (",image,caption\n0,a.jpg,a cat\n1,b.jpg,a dog\n", "?image=image"),
        (",image,caption\n0,a.jpg,a cat\n1,b.jpg,a dog\n", "?caption=caption"),
        ("image,caption,\na.jpg,a cat,\nb.jpg,a dog,\n", ""),
        ('\ufeff"image","caption"\n"a.jpg","a cat"\n"b.jpg","a dog"\n', ""),
        ('\ufeffimage,caption\na.jpg,a cat\nb.jpg,"a dog"\n', ""),
        (" Image , Caption \na.jpg,a cat\nb.jpg,a dog\n", ""),
        ("\n\r\nimage,caption\na.jpg,a cat\nb.jpg,a dog\n", ""),
    ],
)
def test_headers(folder: Path, text: str, options: str) -> None:
    (folder / "pairs.csv").write_text(text, encoding="utf-8")
    assert captions(open_source(f"csv:{folder}/pairs.csv{options}")) == [("a cat",), ("a dog",)]


@pytest.mark.parametrize("column", ["", "caption"])
def test_a_nameless_column_of_parquet_is_never_meant(folder: Path, column: str) -> None:
    write_parquet(folder / "p.parquet", [{"": "0", "image": "a.jpg", "caption": "a cat"}])
    options = f"?caption={column}" if column else ""
    assert captions(open_source(f"csv:{folder}/p.parquet{options}")) == [("a cat",)]


def test_json_lines_that_are_no_rows(folder: Path) -> None:
    lines = ['{"image": "a.jpg", "caption": "half an emoji \\ud83d"}', "[1]", "{broken", "", "3",
             '{"image": 3, "caption": "x"}', '{"caption": "x"}', '{"image": "b.jpg"}', "{}",
             '{"image": "b.jpg", "caption": ["one", 2, "two\\u0000"]}', "[" * 5000,
             '{"image": "\\ud83d", "caption": "x"}']  # fmt: skip
    (folder / "p.jsonl").write_text("\n".join(lines))
    source = open_source(f"csv:{folder}/p.jsonl")
    assert captions(source) == [("half an emoji ?",), ("one", "two")]
    assert source.skipped == {"broken row": 4, "empty caption": 2, "missing image": 3}


@pytest.mark.parametrize("kind", ["dictionary", "string_view", "binary_view", "large_string"])
def test_types_of_arrow(folder: Path, kind: str) -> None:
    names = pyarrow.array(["a.jpg", "b.jpg"])
    if kind == "dictionary":
        image = names.dictionary_encode()
    elif kind == "binary_view":
        image = pyarrow.array([b"pixels of a", b"pixels of b"]).cast(pyarrow.binary_view())
    else:
        image = names.cast(getattr(pyarrow, kind)())
    caption = pyarrow.array(["a cat", "a dog"]).dictionary_encode()
    parquet.write_table(pyarrow.table({"image": image, "caption": caption}), folder / "p.parquet")
    source = open_source(f"csv:{folder}/p.parquet")
    assert captions(source) == [("a cat",), ("a dog",)]
    assert source[1].image == b"pixels of b"


def test_captions_as_bytes_and_columns_that_share_a_name(folder: Path) -> None:
    images = pyarrow.array([b"x", b"y"])
    columns = [images, pyarrow.array([b"a cat", b"\xff"]), pyarrow.array([["one"], ["two"]])]
    table = pyarrow.Table.from_arrays(columns, ["image", "caption", "caption"])
    parquet.write_table(table, folder / "p.parquet")
    source = open_source(f"csv:{folder}/p.parquet")
    assert captions(source) == [("a cat", "one")] and source.skipped == {"caption not UTF-8": 1}


def test_images_by_their_path_within_a_struct(folder: Path) -> None:
    cells = [{"bytes": None, "path": str(folder / "a.jpg")}, {"bytes": None, "path": "b.jpg"},
             {"bytes": b"inside", "path": "x"}, {"bytes": None, "path": "gone.jpg"},
             {"bytes": None, "path": None}, None]  # fmt: skip
    columns = {"image": cells, "caption": [f"caption {n}" for n in range(6)]}
    parquet.write_table(pyarrow.table(columns), folder / "p.parquet", row_group_size=2)
    source = open_source(f"csv:{folder}/p.parquet")
    assert [source[i].image for i in range(3)] == [b"pixels of a", b"pixels of b", b"inside"]
    for number in (3, 4, 5):
        with pytest.raises(RecordError, match="missing image"):
            source[number]


@pytest.mark.parametrize("image", ["jpg", "png", "webp"])
def test_parquet_of_img2dataset(folder: Path, image: str) -> None:
    status = ["success", "failed_to_download", "success", "failed_to_resize"]
    columns = {"url": ["u"] * 4, "caption": list("wxyz"), "status": status,
               image: [b"0", None, b"2", None]}  # fmt: skip
    parquet.write_table(pyarrow.table(columns), folder / "p.parquet")
    for options in ("", f"?image={image}"):
        source = open_source(f"csv:{folder}/p.parquet{options}")
        assert [source[i].image for i in range(len(source))] == [b"0", b"2"]
        assert source.skipped == {
            "download failed (failed_to_download)": 1, "download failed (failed_to_resize)": 1
        }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        # Without the time, which would make the test's name another in each worker.
        (
            "pairs.csv.gz",
            gzip.compress(b"image,caption\n", mtime=0),
            "compressed by gzip: gunzip it",
        ),
        ("pairs.xlsx", b"PK\x03\x04 etc", "is a zip file or a workbook"),
        ("pairs.arrow", b"ARROW1\0\0", "is an Arrow file: write it as Parquet"),
        ("pairs.csv", b"<!doctype html><html>", "is a page of HTML"),
        ("pairs.json", b'[{"image": "a.jpg"}]', "is JSON; write an object a line, as .jsonl"),
        ("pairs.csv", b'{"image": "a.jpg"}\n', "is JSON; write an object a line, as .jsonl"),
        ("pairs.jsonl", b'[\n {"image": "a.jpg"}]', "is JSON; write an object a line, as .jsonl"),
        (
            "pairs.jsonl",
            b'{"image": "a.jpg", "caption": "a cat"',
            "none of its first lines is a JSON",
        ),
        ("pairs.jsonl", b'{\n "image": "a.jpg"\n}\n', "none of its first lines is a JSON object"),
        (
            "pairs.ndjson",
            b"null\n3\n",
            "none of its first lines is a JSON object; write one a line",
        ),
        (
            "pairs.csv",
            b"image,caption\ra.jpg,a cat\r",
            r"lines end in .r alone, as those of old Macs",
        ),
        ("pairs.csv", b'"image","caption"\r"a.jpg","a"', r"lines end in .r alone.*: tr '.r' '.n'$"),
        ("pairs.tsv", b"image\tcaption\ra.jpg\ta cat\r", r"lines end in .r alone"),
        ("pairs.jsonl", b'{"image": "a.jpg"}\r{"image": "b.jpg"}', r"lines end in .r alone"),
        ("pairs.parquet", b"version https://git-lfs", "a pointer of Git LFS: git lfs pull"),
        ("pairs.parquet", b"nonsense", "not a Parquet file"),
    ],
)
def test_other_formats_are_called_what_they_are(
    folder: Path, name: str, data: bytes, message: str
) -> None:
    (folder / name).write_bytes(data)
    with pytest.raises(ValueError, match=rf"{folder}/{name}.*{message}"):
        open_source(f"csv:{folder}/{name}")


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ([1, 2], "column 'caption' holds int64; captions are text or lists of text"),
        ([[{"raw": "x"}], []], r"column 'caption' holds list<.*struct<raw: string>>; captions are"),
        ([[1], [2]], "column 'caption' holds list<.*int64>; captions are text"),
    ],
)
def test_columns_that_are_no_captions(folder: Path, column: list, message: str) -> None:
    columns = {"image": [b"x", b"y"], "caption": column}
    parquet.write_table(pyarrow.table(columns), folder / "p.parquet")
    with pytest.raises(ValueError, match=message):
        open_source(f"csv:{folder}/p.parquet")


def test_folders_without_a_table(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(FileNotFoundError, match=r"no csv shard matches, nor.*among \.txt"):
        open_source(f"csv:{tmp_path}")
    (tmp_path / "data").mkdir()
    write_parquet(tmp_path / "data" / "train-0.parquet", ROWS)
    with pytest.raises(FileNotFoundError, match=r"there is .*train-0\.parquet: .*/data/\*"):
        open_source(f"csv:{tmp_path}")
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(ValueError, match=r"datasets\.save_to_disk; write it as Parquet"):
        open_source(f"csv:{tmp_path}")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("hf://datasets/a/b/*.parquet", "hf download OWNER/NAME --repo-type=dataset"),
        ("gs://bucket/pairs.csv", "csv is read from disks only"),
    ],
)
def test_stores_are_refused(path: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_source(f"csv:{path}")


CELLS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
    st.sampled_from(["", " ", "\0", "a cat", "['a', 'b']", '["x"]', "[]", "a\u2028b", "\ufeff"]),
)
NAMES = st.sampled_from(["a.jpg", "b.jpg", "gone.jpg", "", "..", "http://x/a.jpg", "a.jpg\0"])


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(st.tuples(NAMES, CELLS), max_size=8))
@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_every_row_is_a_pair_or_counted_and_the_forms_agree(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, rows: list[tuple[str, str]]
) -> None:
    folder = with_images(tmp_path_factory.mktemp("rows"))
    columns = [{"image": "c.jpg", "caption": "always"}]
    columns += [{"image": name, "caption": cell} for name, cell in rows]
    writers: dict[str, Callable[[Path, list], None]] = {
        "csv": write_quoted, "jsonl": write_json_lines, "parquet": write_parquet
    }  # fmt: skip
    writers[suffix](folder / f"pairs.{suffix}", columns)
    write_json_lines(folder / "reference.jsonl", columns)
    source = open_source(f"csv:{folder}/pairs.{suffix}")
    assert len(source) + sum(source.skipped.values()) == len(columns)
    reference = open_source(f"csv:{folder}/reference.jsonl")
    assert captions(source) == captions(reference) and source.skipped == reference.skipped
    np.testing.assert_array_equal(source.caption_counts, [len(c) for c in captions(source)])


def write_quoted(path: Path, rows: list[dict[str, str]]) -> None:
    def quote(cell: str) -> str:
        return '"' + cell.replace('"', '""') + '"'

    lines = [",".join(map(quote, rows[0])), *(",".join(map(quote, row.values())) for row in rows)]
    path.write_bytes("\n".join(lines).encode())
