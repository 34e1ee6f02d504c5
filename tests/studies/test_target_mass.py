"""Which kind two captions are of each other, and how a target's mass is told apart by it."""

import numpy as np
import pytest

from studies.target_mass import KINDS, kind_of, kinds_of, shares

SYNONYMS = {"car": ["automobile"], "cart": []}


def synonyms(word: str) -> list[str]:
    return SYNONYMS.get(word, [])


@pytest.mark.parametrize(
    ("one", "other", "kind"),
    [
        ("Arrow left", "arrow left", "equal captions"),
        ("align left", "align right", "opposites"),
        ("left align", "align right", "a word in common"),
        ("automobile", "car", "synonyms"),
        ("red car", "red automobile", "synonyms"),
        ("car", "cart", "nothing in common"),
        ("red car", "red cart", "another word"),
        ("red car", "a car", "another word"),
        ("car", "red car", "a word in common"),
        ("up", "down", "opposites"),
    ],
)
def test_kinds(one: str, other: str, kind: str) -> None:
    assert kind_of(one, other, synonyms) == kind_of(other, one, synonyms) == kind


def test_mass_off_the_diagonal_is_counted_by_kind() -> None:
    captions = ["up", "down", "up", "car"]
    target = np.array([[9, 1, 2, 3], [4, 9, 5, 6], [7, 8, 9, 1], [2, 3, 4, 9]], float)
    found = dict(zip(KINDS, shares(target, kinds_of(captions, synonyms)), strict=True))
    expected = {"equal captions": 9, "opposites": 18, "nothing in common": 19}
    assert found == {kind: pytest.approx(expected.get(kind, 0) / 46) for kind in KINDS}
