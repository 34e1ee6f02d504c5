"""Icons on sheets: what is written comes back, and the collection of the package is whole."""

from pathlib import Path

import numpy as np
import pytest
from test_iconify import many, open_at  # noqa: F401

from otter_jax.data import icon_sheets
from otter_jax.data.builders.iconify.sheets import write_sheets
from otter_jax.data.builders.iconify.splits import concept
from otter_jax.data.icon_sheets import IconSheets
from otter_jax.data.images import decode
from otter_jax.data.sources import open_source


def test_what_is_written_comes_back(
    many: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from otter_jax.data.builders.iconify import sheets

    for module in (icon_sheets, sheets):
        monkeypatch.setattr(module, "ON_A_SHEET", 128)  # So that there are several.
    source = open_at(many, tmp_path / "drawn", "?sets=" + ",".join(f"s{n:02d}" for n in range(12)))
    write_sheets(source, tmp_path / "sheets")
    first = 0
    for split, length in source.splits.items():
        found = IconSheets(tmp_path / "sheets", "icons", split)
        assert len(found) == length
        for i in range(length):
            before = source[first + i]
            assert (found[i].key, found[i].caption) == (before.key, before.caption)
            np.testing.assert_array_equal(decode(found[i].image), decode(before.image))
        first += length
    assert len(list((tmp_path / "sheets").glob("sheet-*.webp"))) > 1
    with pytest.raises(IndexError):
        found[length]


def test_other_tables_and_splits_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        IconSheets(tmp_path, "icons", "train")
    (tmp_path / "pairs.tsv").write_text("caption\nhome\n")
    with pytest.raises(ValueError, match=r"pairs\.tsv begins with 'caption'"):
        IconSheets(tmp_path, "icons", "train")
    with pytest.raises(ValueError, match="icons has no split 'heldout'; valid splits: train"):
        open_source("icons", "heldout")


def test_what_is_held_out_of_the_collection_is_not_trained_on() -> None:
    train = open_source("icons")
    trained = {concept(train.first_caption(i)) for i in range(len(train))}
    sets = {train.key(i).partition(":")[0] for i in range(len(train))}
    pixels = {train[i].image for i in range(len(train))}
    for split in ("style_validation", "style_test", "concepts_validation", "concepts_test"):
        held = open_source("icons", split)
        captions = {concept(held.first_caption(i)) for i in range(len(held))}
        of_sets = {held.key(i).partition(":")[0] for i in range(len(held))}
        if split.startswith("style"):
            assert captions <= trained and not of_sets & sets
        else:
            assert not captions & trained and of_sets <= sets
        assert not {held[i].image for i in range(len(held))} & pixels
    assert len(pixels) == len(train)  # No two are alike.
