"""Captions that look like none are named with an example; those that read like captions are not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otter_jax.data.caption_checks import (
    are_lists_of_lines,
    doubts,
    reads_like_language,
    sample_captions,
)
from otter_jax.data.records import Record, RecordError
from otter_jax.data.sources import open_source

WORDS = ("a cat on a mat", "two dogs", "an old house by the sea", "a red car", "eine Straße", "猫")


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        (["0", "1", "2"], "are mostly digits: '0'"),
        (["train_00001", "train_00002", "n01440764"], "are mostly digits"),
        (["n01440764_1.JPEG", "a b.jpg c.jpg", "x/y.png"], "are names of files or addresses"),
        (["https://example.org/a"] * 3, "are names of files or addresses"),
        (["['a cat', 'a kitten']"] * 3, "are bracketed lists"),
        (['{"text": "a cat"}'] * 3, "are bracketed lists"),
        (["array(['x', 'y'], dtype=object)"] * 3, "are bracketed lists"),
        (["a <b>cat</b>", "x<br/>", "salt &amp; pepper"], "hold HTML: 'a <b>cat</b>'"),
        (["train"] * 3, "are one word: 'train'"),
        (["one\ntwo"] * 3, "have several lines"),
    ],
)
def test_what_looks_wrong_is_named(wrong: list[str], expected: str) -> None:
    share = f"{len(wrong) / (len(wrong) + 4):.0%}"
    if "b.jpg c.jpg" in wrong[1]:  # With blanks it is no name of a file.
        wrong = [*wrong, "y.gif"]
        share = "38%"
    found = doubts([*WORDS[:4], *wrong])
    assert any(expected in line and line.startswith(share) for line in found)


@given(st.lists(st.sampled_from(WORDS), unique=True))
def test_captions_are_not_doubted(captions: list[str]) -> None:
    assert doubts(captions) == []
    assert doubts(captions * 3) == [] or len(captions) < 6  # "猫" is one word.


def test_a_few_among_many_are_not_mentioned() -> None:
    assert doubts([*WORDS, *WORDS[:5], "1", "2"]) == []
    assert doubts(["[photo] of a cat", "(a drawing) of a dog", "a & b <3", "cat no. 12"] * 3) == []


def test_the_open_collection_reads_like_captions() -> None:
    captions = sample_captions(open_source("open_clipart"))
    assert len(captions) == 100 and doubts(captions) == []


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (WORDS, True),
        (["a cat"], True),
        (["a cat"] * 5, False),
        (["train_00001", "train_00002"], False),
        (["a.jpg", "b.jpg"], False),
        (["12", "13"], False),
        ([], False),
        (["", ""], False),
        ([*WORDS, "IMG_1.jpg"], True),
    ],
)
def test_language(texts: list[str], expected: bool) -> None:
    assert reads_like_language(texts) is expected


def record(caption: str, **metadata: str) -> Record:
    return Record("x", b"", caption, metadata)


def test_lists_of_lines() -> None:
    listed = [record("one\ntwo"), record("one\ntwo\nthree"), record("one")]
    assert are_lists_of_lines(listed)
    assert not are_lists_of_lines([*listed, record("x", url="u")])
    assert not are_lists_of_lines([record("one"), record("one\ntwo")])


class Holed:
    """Every second record cannot be read."""

    def __len__(self) -> int:
        """Ten."""
        return 10

    def __getitem__(self, i: int) -> Record:
        """One of them."""
        if i % 2:
            raise RecordError("missing image")
        return record(f"caption {i}")


def test_samples_are_spread_evenly_over_what_can_be_read() -> None:
    assert sample_captions(Holed()) == [f"caption {i}" for i in range(0, 10, 2)]
    assert sample_captions(Holed(), 4) == ["caption 0", "caption 6"]
