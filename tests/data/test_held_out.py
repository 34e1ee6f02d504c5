"""Pairs held out of training: whole families, by seed, and nothing lost."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otter_jax.data.held_out import (
    Subset,
    are_class_names,
    choose_families,
    families_of,
    hold_out,
    join_families,
)
from otter_jax.data.records import Record, RecordError, read_records
from otter_jax.data.sources import Mixture, count_by_source, open_source


class Pairs:
    """Pairs given as (image, caption); None cannot be read."""

    def __init__(self, pairs: Sequence[tuple[str, str] | None], name: str = "pairs"):
        self.pairs, self.name, self.fingerprint = pairs, name, f"{name} {pairs}"
        self.skipped, self.caption_counts = {}, np.ones(len(pairs), np.uint32)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, i: int) -> Record:
        if self.pairs[i] is None:
            raise RecordError("broken")
        image, caption = self.pairs[i]
        return Record(str(i), image.encode(), caption, {}, (caption,))


MARKS = st.lists(st.lists(st.integers(0, 12), max_size=3), min_size=1, max_size=14)


@given(MARKS)
@settings(max_examples=60, deadline=None)
def test_families_are_the_components_of_shared_marks(marks: list[list[int]]) -> None:
    joined = np.array([[bool(set(a) & set(b)) for b in marks] for a in marks])
    reached = joined | np.eye(len(marks), dtype=bool)
    for _ in marks:
        reached = (reached.astype(int) @ reached.astype(int)) > 0
    found = join_families(marks)
    np.testing.assert_array_equal(found[:, None] == found[None], reached)


@given(
    families=st.lists(st.integers(0, 6), min_size=1, max_size=40),
    share=st.floats(0.01, 0.99),
    seed=st.integers(0, 5),
)
@settings(max_examples=60, deadline=None)
def test_no_family_is_divided_and_the_share_is_not_exceeded(
    families: list[int], share: float, seed: int
) -> None:
    held = choose_families(np.array(families), share, seed)
    assert held.sum() <= round(share * len(families))
    for family in set(families):
        assert len(set(held[np.array(families) == family])) == 1
    np.testing.assert_array_equal(held, choose_families(np.array(families), share, seed))


def test_equal_images_and_equal_captions_stay_together() -> None:
    pairs = [("a", "x"), ("a", "y"), ("b", "y"), ("c", "z"), None, ("d", "z "), ("e", "w")]
    found = families_of(Pairs(pairs))[0].tolist()
    assert found[0] == found[1] == found[2]
    assert found[3] == found[5]
    assert len(set(found)) == 4


def test_captions_that_are_class_names_join_nothing() -> None:
    pairs = [(f"image {number}", "cat" if number % 2 else "dog") for number in range(8)]
    assert are_class_names([caption for _, caption in pairs])
    families, names = families_of(Pairs(pairs))
    assert len(set(families)) == 8
    assert names == ("cat", "dog")


def test_a_mixture_keeps_its_parts_and_every_pair_is_on_one_side() -> None:
    first = Pairs([(f"a{n}", f"first {n}") for n in range(9)], "first")
    second = Pairs([(f"b{n}", f"second {n}") for n in range(11)], "second")
    train, held, _ = hold_out(Mixture([first, second], "both"), 0.3, seed=1)
    assert sum(count_by_source(train, np.arange(len(train)))) == len(train) == 14
    assert train.sources[0].name == "first"
    captions = [source[i].caption for source in (train, held) for i in range(len(source))]
    assert sorted(captions) == sorted(caption for _, caption in first.pairs + second.pairs)
    assert len({train.fingerprint, held.fingerprint}) == 2
    other = hold_out(Mixture([first, second], "both"), 0.3, seed=2)
    assert other.held_out.fingerprint != held.fingerprint


def test_a_subset_reads_as_its_source_does(pairs_folder: Path) -> None:
    source = open_source(f"webdataset:{pairs_folder}")
    subset = Subset(source, np.array([3, 17, 40]))
    assert [subset[i].key for i in range(3)] == [source[i].key for i in (3, 17, 40)]
    assert read_records(subset, [2, 0]) == read_records(source, [40, 3])
    assert subset.first_caption(1) == source[17].caption
    assert list(subset.caption_counts) == [1, 1, 1]


@pytest.mark.parametrize(("share", "left"), [(0.5, "all to train on"), (0.01, "all to train on")])
def test_a_split_that_leaves_no_pair_is_refused(share: float, left: str) -> None:
    pairs = [("same", f"caption {number}") for number in range(6)]
    with pytest.raises(ValueError, match=f"config.data.held_out={share}: .* leaves {left}"):
        hold_out(Pairs(pairs), share, seed=0)
