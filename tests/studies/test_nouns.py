"""Which words of a caption are nouns."""

import pytest

from studies.nouns import Nouns, english_nouns


@pytest.fixture(scope="module")
def nouns() -> Nouns:
    return english_nouns()


@pytest.mark.parametrize(
    ("caption", "found"),
    [
        ("Two dogs are sitting on the red sofa.", ("dog", "sofa")),
        ("A man wearing a blue shirt is playing guitar", ("man", "shirt", "guitar")),
        ("Young women and geese: geese!", ("woman", "goose")),
        ("in a", ()),
    ],
)
def test_nouns_are_told_from_the_rest(nouns: Nouns, caption: str, found: tuple[str, ...]) -> None:
    assert nouns.find(caption) == found
