"""Captions, names and columns, and how many bad records are too many."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from otter_jax.data import records
from otter_jax.data.caption_pairs import CaptionPairs
from otter_jax.data.sources import Mixture


@given(st.binary())
def test_a_clean_caption_has_nothing_to_choke_on(data: bytes) -> None:
    try:
        caption = records.clean_caption(data)
    except UnicodeDecodeError:
        with pytest.raises(UnicodeDecodeError):
            data.decode()
    else:
        assert caption == caption.strip() and "\0" not in caption


@given(st.text(st.characters(exclude_categories=[])))
def test_clean_captions_take_any_text(text: str) -> None:
    assert len(records.clean_captions(text)) <= 1


@pytest.mark.parametrize("value", [None, 3, {}, [None, 3, [], ""], "", " \0"])
def test_what_is_no_caption(value: object) -> None:
    assert records.clean_captions(value) == ()


def test_how_many_bad_records_are_too_many() -> None:
    counts = {"no image": 2, "empty caption": 3}
    records.refuse_too_many_bad(counts, 100, 0.05)
    records.refuse_too_many_bad({}, 0, 0.0)
    message = (
        r"5 of 99 records \(5\.1%\) cannot be used, more than config\.data\.max_bad_share=0\.05 "
        r"allows: empty caption: 3; no image: 2\. Look at .*: --config\.data\.max_bad_share=0\.06$"
    )
    with pytest.raises(ValueError, match=message):
        records.refuse_too_many_bad(counts, 99, 0.05)


def test_images_are_read_whole_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"pixels")
    assert records.read_image(tmp_path / "a") == b"pixels"
    for name in ("gone", "", "a/b", "\0", "x" * 5000):
        with pytest.raises(records.RecordError, match="missing image"):
            records.read_image(tmp_path / name)


class Numbered:
    """Ten records with as many captions as their number, but that every third cannot be read."""

    name, fingerprint = "numbered", "f"
    skipped: ClassVar[dict[str, int]] = {}
    caption_counts = np.arange(1, 11)

    def __len__(self) -> int:
        """Ten."""
        return 10

    def __getitem__(self, i: int) -> records.Record:
        """One of them."""
        if i % 3 == 2:
            raise records.RecordError(f"broken {i}")
        captions = tuple(f"{i}.{n}" for n in range(i + 1))
        return records.Record(str(i), b"x", captions[0], {}, captions)


class Batched(Numbered):
    """The same, that answers many at once."""

    def read_many(self, numbers: Sequence[int]) -> list[records.Record | records.RecordError]:
        """All of them together."""
        return [records._read_one(self, number) for number in numbers]


def one_by_one(source: records.Source, numbers: Sequence[int]) -> list[str]:
    found = []
    for number in numbers:
        try:
            found.append(repr(source[number]))
        except records.RecordError as error:
            found.append(repr(error))
    return found


@given(data=st.data())
def test_many_records_are_those_that_come_one_by_one(data: st.DataObject) -> None:
    mixture = Mixture([Numbered(), Batched(), CaptionPairs(Batched())], "mixed")
    for source in (mixture, CaptionPairs(mixture), Numbered(), Batched()):
        numbers = data.draw(st.lists(st.integers(0, len(source) - 1)))
        expected = one_by_one(source, numbers)
        assert list(map(repr, records.read_records(source, numbers))) == expected
        read = records.read_in_order(source, numbers)
        assert [(n, repr(each)) for n, each in read] == list(zip(numbers, expected, strict=True))


def test_records_that_do_not_exist() -> None:
    for source in (Mixture([Batched()], "x"), CaptionPairs(Batched())):
        with pytest.raises(IndexError):
            records.read_records(source, [0, len(source)])


@given(st.text() | st.lists(st.text()))
def test_cleaned_captions_are_what_every_tokenizer_takes(texts: str | list[str]) -> None:
    for caption in records.clean_captions(texts):
        caption.encode()
        assert caption and "\0" not in caption and len(caption) <= 10_000


def test_lines_as_captions() -> None:
    metadata = {"caption": "lone", "captions": ["two", "three"]}
    assert records.caption_lines("one\n\ntwo\r\n", metadata) == ("one", "two", "three")
    assert records.caption_lines("", metadata) == ("lone", "two", "three")
    assert records.caption_lines("", {}) == ()


class OneCaption(Numbered):
    """The same with a caption each, which it knows without reading a record."""

    caption_counts = np.ones(10, np.uint8)

    def __getitem__(self, i: int) -> records.Record:
        """Never."""
        raise AssertionError("an image was read for its caption")

    def first_caption(self, i: int) -> str:
        """Its caption."""
        return f"{i}.0"


class CountedByNobody(Numbered):
    """One caption each, which is not known before all are read."""

    caption_counts = None

    def __getitem__(self, i: int) -> records.Record:
        """One of them, with the first of its captions."""
        record = super().__getitem__(i)
        return record._replace(captions=record.captions[:1])


def test_single_captions_are_read_without_images_where_they_can_be() -> None:
    assert records.single_captions(OneCaption()) == [f"{i}.0" for i in range(10)]
    usable = [f"{i}.0" if i % 3 < 2 else "" for i in range(10)]
    assert records.single_captions(CountedByNobody()) == usable
    assert records.single_captions(Numbered()) is None
