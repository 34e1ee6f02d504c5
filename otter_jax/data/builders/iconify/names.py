"""Makes captions of the names of icons: "arrow-left-bold-duotone" is "arrow left".

Three rules, in this order, never down to nothing:

1. The prefix or suffix that the set itself lists as a style goes, the longest that fits.
2. Last words that name a style or a size go, where so many names of the set end in them that they
   do: "bold" is a style of a set in bold and light, and a caption in a set of buttons for text.
3. A last number goes where the set has the name before it twice or more: the icon is one of several
   of its kind.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

STYLES = {
    "solid", "filled", "fill", "outline", "outlined", "duotone", "duo", "twotone", "line", "linear",
    "light", "sharp", "bold", "thin", "regular", "round", "rounded", "broken", "stroke", "alt", "o",
    "baseline", "negative",
}  # fmt: skip
STYLE_SHARE = 0.04  # Of the names of a set that end in a word that is a style there.
FEWEST_OF_STYLE = 10
_SIZE = re.compile(r"\d{2,3}(px)?")
_NUMBER = re.compile(r"\d{1,2}")

Words = tuple[str, ...]


def captions_of(names: Iterable[str], contents: Mapping[str, Any]) -> dict[str, str]:
    """Return captions by name, in alphabetical order of names; none for names without a letter.

    Args:
        names: Of the icons of a set.
        contents: The set, of which `prefixes` and `suffixes` list its styles.
    """
    prefixes, suffixes = (
        [part for part in listed if part] if isinstance(listed := contents.get(key), dict) else []
        for key in ("prefixes", "suffixes")
    )
    words = {name: _without_listed(name, prefixes, suffixes) for name in sorted(names)}
    styles = _styles_among(words.values())
    words = {name: _without_styles(each, styles) for name, each in words.items()}
    rests = Counter(_without_number(each) for each in words.values())
    captions = {}
    for name, each in words.items():
        rest = _without_number(each)
        caption = " ".join(rest if rests[rest] > 1 else each)
        if any(letter.isalpha() for letter in caption):
            captions[name] = caption
    return captions


def _without_listed(name: str, prefixes: Iterable[str], suffixes: Iterable[str]) -> Words:
    for prefix in sorted(prefixes, key=len, reverse=True):
        if name.startswith(f"{prefix}-"):
            name = name.removeprefix(f"{prefix}-")
            break
    for suffix in sorted(suffixes, key=len, reverse=True):
        if name.endswith(f"-{suffix}"):
            name = name.removesuffix(f"-{suffix}")
            break
    return tuple(name.lower().replace("-", " ").replace("_", " ").split())


def _styles_among(words: Iterable[Words]) -> frozenset[str]:
    """Return the last words that are styles or sizes in this set."""
    endings = Counter(each[-1] for each in words if len(each) > 1)
    fewest = max(FEWEST_OF_STYLE, STYLE_SHARE * endings.total())
    return frozenset(
        word
        for word, times in endings.items()
        if times >= fewest and (word in STYLES or _SIZE.fullmatch(word))
    )


def _without_styles(words: Words, styles: frozenset[str]) -> Words:
    while len(words) > 1 and words[-1] in styles:
        words = words[:-1]
    return words


def _without_number(words: Words) -> Words:
    return words[:-1] if len(words) > 1 and _NUMBER.fullmatch(words[-1]) else words
