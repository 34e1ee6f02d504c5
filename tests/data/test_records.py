"""Captions, names and columns, and how many bad records are too many."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otter_jax.data import records


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
