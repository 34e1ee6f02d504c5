"""CSV and TSV tables: columns, captions, broken rows, and reads by offset."""

import csv
import io
import os
import pickle
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otter_jax.data.sources import RecordError, Source, open_source


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in "abc":
        (tmp_path / f"{name}.jpg").write_bytes(f"pixels of {name}".encode())
    (tmp_path / "empty.jpg").write_bytes(b"")
    return tmp_path


def table(folder: Path, text: str | bytes, name: str = "pairs.csv", options: str = "") -> Source:
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return open_source(f"csv:{folder / name}{options}")


def captions(source: Source) -> list[str]:
    return [source[i].caption for i in range(len(source))]


def test_rows_come_back_as_they_were_written(folder: Path) -> None:
    text = 'image,caption\na.jpg,a cat\nb.jpg,"two lines,\nof ""one"" caption"\r\nc.jpg, naïve 猫 '
    source = table(folder, text)
    assert captions(source) == ["a cat", 'two lines,\nof "one" caption', "naïve 猫"]
    columns = {"image": "a.jpg", "caption": "a cat"}
    assert source[0] == ("a.jpg", b"pixels of a", "a cat", columns, ("a cat",))
    assert source[-1].image == b"pixels of c" and source.skipped == {}
    with pytest.raises(IndexError):
        source[3]
    assert captions(pickle.loads(pickle.dumps(source))) == captions(source)


@pytest.mark.parametrize(
    ("header", "options"),
    [
        ("image,caption", ""),
        ("Filename,TITLE", ""),
        ("\ufefffile_path,text", ""),
        (" path , sentence ", ""),
        ("photo,words", "?image=photo&caption=words"),
        ("photo,caption", "?image=photo"),
    ],
)
def test_columns_are_found(folder: Path, header: str, options: str) -> None:
    assert captions(table(folder, f"{header}\na.jpg,a cat\n", options=options)) == ["a cat"]


def test_columns_that_are_not_found_are_listed(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"caption column not found: .*'image', 'words'; name it "
                       r"by adding \?caption=COLUMN"):  # fmt: skip
        table(folder, "image,words\na.jpg,a cat\n")
    with pytest.raises(ValueError, match="image column not found: there is no 'photo' among"):
        table(folder, "image,caption\na.jpg,a cat\n", options="?image=photo")


def test_tabs_separate_a_tsv(folder: Path) -> None:
    assert captions(table(folder, "image\tcaption\na.jpg\ta, cat\n", "pairs.tsv")) == ["a, cat"]


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        ("image,caption,caption\na.jpg,one,two\n", "", ("one", "two")),
        ("image,caption,text\na.jpg,one,two\n", "?caption=text,caption", ("two", "one")),
        ("image,title,text\na.jpg,one,two\n", "?caption=title,text", ("one", "two")),
        ('image,caption\na.jpg,"[""one"", ""two"", ""one""]"\n', "", ("one", "two")),
        ('image,caption\na.jpg,"[one, two]"\n', "", ("[one, two]",)),
        ("image,caption\na.jpg,[1]\n", "", ("[1]",)),
        ("image,caption,caption\na.jpg,,two\n", "", ("two",)),
    ],
)
def test_several_captions(folder: Path, text: str, options: str, expected: tuple) -> None:
    record = table(folder, text, options=options)[0]
    assert record.captions == expected and record.caption == expected[0]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b"b.jpg", "broken row"),
        (b"b.jpg,a,b", "broken row"),
        (b'b.jpg,"a "quote" inside"', "broken row"),
        (b'b.jpg,"never closed', "broken row"),
        (b"b.jpg," + b"x" * 1_000_000, "broken row"),
        (b"b.jpg,", "empty caption"),
        (b"b.jpg,\0 \0", "empty caption"),
        (b"b.jpg,caf\xe9", "caption not UTF-8"),
        (b"gone.jpg,a cat", "missing image"),
        (b"\0.jpg,a cat", "missing image"),
        (b"caf\xe9.jpg,a cat", "missing image"),
        (b",a cat", "missing image"),
        (b"..,a cat", "missing image"),
        (b"empty.jpg,a cat", "empty image"),
        (b"https://example.org/b.jpg,a cat", "image is a URL"),
    ],
)
def test_skipped_and_counted(folder: Path, row: bytes, reason: str) -> None:
    source = table(folder, b"image,caption\na.jpg,first\n\n" + row + b"\nc.jpg,last\n")
    assert captions(source) == ["first", "last"] and source.skipped == {reason: 1}


def test_a_pipe_is_not_waited_for(folder: Path) -> None:
    os.mkfifo(folder / "pipe.jpg")
    source = table(folder, "image,caption\npipe.jpg,a cat\na.jpg,a cat\n")
    assert source.skipped == {"missing image": 1}


@settings(max_examples=50, deadline=None)
@given(rows=st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=6))
def test_what_csv_writes_is_read(tmp_path_factory: pytest.TempPathFactory, rows: list[str]) -> None:
    folder = tmp_path_factory.mktemp("csv")
    (folder / "a.jpg").write_bytes(b"pixels")
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer)
    writer.writerows([["image", "caption"], ["a.jpg", "first"], *(["a.jpg", row] for row in rows)])
    source = table(folder, buffer.getvalue())
    plain = [row for row in rows if not row.startswith("[") and "\ufeff" not in row]
    cleaned = [caption for row in plain if (caption := row.replace("\0", "").strip())]
    if plain == rows:
        assert captions(source) == ["first", *cleaned]
        assert source.skipped.get("empty caption", 0) == len(rows) - len(cleaned)


def test_nothing_usable_and_nothing_there(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"no usable row in .*\(missing image: 1\)"):
        table(folder, "image,caption\ngone.jpg,a cat\n")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        open_source(f"csv:{folder}/none.csv")
    with pytest.raises(ValueError, match="names no columns"):
        table(folder, '"never closed')


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"pairs\.csv is empty$"),
        ("image,caption\n".encode("utf-16"), "is in UTF-16; write it in UTF-8"),
        ("image,caption\n".encode("utf-16-le"), "is in UTF-16; write it in UTF-8"),
        (b"\n", "among no columns"),
        (b"image;caption\n", "its columns are separated by semicolons; a .csv needs commas"),
        (b"image\tcaption\n", "its columns are separated by tabs; a .csv needs commas"),
        (b"url,caption\n", "none of image, .* is among 'url', 'caption'; .*downloaded first"),
        (b"photo,caption\n", "name it by adding .image=COLUMN to the SPEC$"),
    ],
)
def test_what_is_no_such_table_is_said(folder: Path, data: bytes, message: str) -> None:
    (folder / "pairs.csv").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        open_source(f"csv:{folder}/pairs.csv")


def test_changes_after_opening_are_noticed(folder: Path) -> None:
    source = table(folder, "image,caption\na.jpg,a cat\nb.jpg,a dog\n")
    (folder / "a.jpg").unlink()
    with pytest.raises(RecordError, match="missing image"):
        source[0]
    assert source[1].caption == "a dog"
    (folder / "pairs.csv").write_text("image,caption\nb.jpg,longer than before\n")
    with pytest.raises(ValueError, match=r"pairs\.csv has changed since it was opened"):
        source[1]


def test_fingerprint_follows_captions_and_images(folder: Path) -> None:
    text = "image,caption\na.jpg,a cat\nb.jpg,a dog\n"
    reference = table(folder, text).fingerprint
    assert table(folder, text + "gone.jpg,x\n").fingerprint == reference
    changes = (("cat", "cot"), ("b.jpg", "c.jpg"), ("b.jpg,a dog\n", ""))
    others = [table(folder, text.replace(*change)).fingerprint for change in changes]
    (folder / "b.jpg").write_bytes(b"other pixels")
    assert len({reference, table(folder, text).fingerprint, *others}) == 5
