"""Text files as people's editors write them."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otter_jax.data import text_files


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_lines_end_at_newlines_alone(text: str) -> None:
    lines = text_files.split_lines(text)
    assert "\n".join(lines) == text.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n")
    assert not any(end in line for line in lines for end in "\r\n")


def test_other_separators_are_part_of_a_line() -> None:
    line = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\x1dh\x1ei"
    assert text_files.split_lines(f"{line}\n\nx") == [line, "", "x"]


def test_marks_and_nuls_go(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfa\0b\r\n\r\n c \n")
    assert text_files.read_lines(path) == ["ab", "", " c "]
    assert list(text_files.numbered_lines(path)) == [(1, "ab"), (3, " c ")]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"cat\ncaf\xe9\n", r"a\.txt: line 2 is not UTF-8; write the file in UTF-8"),
        ("cat".encode("utf-16"), r"a\.txt is in UTF-16"),
    ],
)
def test_other_encodings_are_named_with_their_place(
    tmp_path: Path, data: bytes, message: str
) -> None:
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        text_files.read_lines(tmp_path / "a.txt")


def test_rows_of_a_csv_and_where_they_end(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('\ufeff"a",b\n\n"two\nlines",c\n', encoding="utf-8")
    assert list(text_files.read_csv(path)) == [(1, ["a", "b"]), (4, ["two\nlines", "c"])]
    path.write_text("a,b\n" + "x" * 200_000)
    with pytest.raises(ValueError, match=r"a\.csv: line 2 is no row of a csv \(field larger"):
        list(text_files.read_csv(path))
