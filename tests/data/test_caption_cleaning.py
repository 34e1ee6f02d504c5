"""Tests of what captions look like to a text tower."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otter_jax.data.caption_cleaning import CLEANINGS, clean


@pytest.mark.parametrize(
    ("text", "cleaning", "wanted"),
    [
        ("  A  Dog,\n on_grass ", "none", "  A  Dog,\n on_grass "),
        ("  A  Dog,\n on_grass ", "whitespace", "A Dog, on_grass"),
        ("  A  Dog,\n on_grass ", "lower", "a dog, on_grass"),
        ("  A  Dog,\n on_grass ", "canonical", "a dog on grass"),
        ("don't STOP - now", "canonical", "dont stop now"),
    ],
)
def test_plain_captions(text: str, cleaning: str, wanted: str) -> None:
    assert clean(text, cleaning) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("salt &amp; pepper", "salt & pepper"),
        ("salt &amp;amp; pepper", "salt & pepper"),
        ("1 &lt; 2 <b>", "1 < 2 <b>"),
        ("voilÃ  le travail", "voilà le travail"),
        ("the Mona Lisa doesnâ€™t have eyebrows", "the mona lisa doesn't have eyebrows"),
    ],
)
def test_entities_and_wrong_encodings_are_mended(text: str, wanted: str) -> None:
    pytest.importorskip("ftfy")
    assert clean(text, "lower") == wanted


def test_without_ftfy_only_captions_that_need_it_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "ftfy", None)
    assert clean("A dog", "lower") == "a dog"
    with pytest.raises(ModuleNotFoundError, match="pip install ftfy"):
        clean("salt &amp; pepper", "lower")


@given(st.text(st.characters(codec="ascii"), max_size=30))
def test_plain_text_is_mended_as_ftfy_would(text: str) -> None:
    """The short cut for ASCII without entities leaves what ftfy leaves."""
    ftfy = pytest.importorskip("ftfy")
    if "&" not in text:
        assert clean(text, "whitespace") == " ".join(ftfy.fix_text(text).split())


def test_another_cleaning_is_refused() -> None:
    with pytest.raises(ValueError, match="cleaning is 'upper'; it must be one of none, whitespace"):
        clean("a dog", "upper")
    assert all(clean("a dog", cleaning) == "a dog" for cleaning in CLEANINGS)
