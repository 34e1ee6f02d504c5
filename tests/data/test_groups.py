"""Which pairs are known to match each other, by their captions or by a column."""

from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from otter_jax.data.groups import group_name, hash_groups, refuse_unknown_column
from otter_jax.data.records import Record
from otter_jax.data.sources import Mixture, open_source


class Table:
    name, fingerprint = "csv:mine.csv", "0"
    skipped: ClassVar[dict[str, int]] = {}

    def __init__(self, *rows: dict):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Record:
        return Record(str(i), b"", "a cat", self.rows[i], ("a cat",))


def test_a_group_is_what_the_column_says_else_the_caption() -> None:
    record = Table({"product": 7})[0]
    assert group_name(record, " a dog ", None) == "a dog"
    assert group_name(record, "a dog", "product") == "7"
    assert group_name(record, "a dog", "missing") == "a dog"
    for nothing in (None, ""):
        assert group_name(Table({"product": nothing})[0], "a dog", "product") == "a dog"
    assert hash_groups(["\ud800"]).shape == (1, 2)  # Half a character, as JSON may hold.


@given(st.lists(st.text(max_size=3), max_size=8))
def test_equal_names_have_equal_hashes(names: list[str]) -> None:
    found = hash_groups(names)
    assert found.shape == (len(names), 2) and found.dtype == np.int32
    for i, one in enumerate(names):
        for j, other in enumerate(names):
            assert (found[i] == found[j]).all() == (one == other)


def test_a_column_that_no_record_has_is_refused() -> None:
    refuse_unknown_column(Table({}), None)
    refuse_unknown_column(Table({}, {"product": 1}), "product")
    other = Mixture([Table(*[{}] * 30), Table({"product": 1})], "two")
    refuse_unknown_column(other, "product")  # Only the second part has it.
    with pytest.raises(ValueError, match=r"data.group='produkt': none of the .* have product"):
        refuse_unknown_column(Table({"product": 1}), "produkt")
    with pytest.raises(ValueError, match=r"they have nothing beside their captions"):
        refuse_unknown_column(Table({}), "product")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.csv", "image,caption,product\na.png,a cat,7\nb.png,a dog,\n"),
        ("t.tsv", "image\tcaption\tproduct\na.png\ta cat\t7\nb.png\ta dog\t\n"),
        (
            "t.jsonl",
            '{"image": "a.png", "caption": "a cat", "product": "7"}\n'
            '{"image": "b.png", "caption": "a dog", "product": null}\n',
        ),
    ],
)
def test_columns_of_tables_are_groups(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    for image in ("a.png", "b.png"):
        (tmp_path / image).write_bytes(b"an image")
    source = open_source(f"csv:{tmp_path / name}")
    refuse_unknown_column(source, "product")
    assert [group_name(source[n], source[n].caption, "product") for n in (0, 1)] == ["7", "a dog"]
