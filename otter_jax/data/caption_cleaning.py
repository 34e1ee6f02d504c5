"""Cleans captions as the weights of a text tower were trained with them.

Web captions hold what no reader sees: entities of HTML (`salt &amp; pepper`), text in a wrong
encoding, line breaks. CLIP's tokenizer mends this before it makes tokens (Radford et al. 2021), and
a tower of its kind then sees tokens that it knows.
"""

import html
import string
from collections.abc import Callable, Mapping

CLEANINGS = ("none", "whitespace", "lower", "canonical", "small")


def clean(text: str, cleaning: str) -> str:
    """Return a caption as a text tower expects it.

    Args:
        text: the caption.
        cleaning: "none"; "small" makes all letters small; "whitespace" mends encodings, resolves
            entities of HTML, twice since some are written so, and makes white space single blanks;
            "lower" (CLIP) does this and makes all letters small; "canonical" (SigLIP) takes
            ASCII's punctuation out, too.

    Raises:
        ValueError: for another `cleaning`.
        ModuleNotFoundError: ftfy is needed and not installed.
    """
    if cleaning not in _CLEANERS:
        raise ValueError(f"cleaning is {cleaning!r}; it must be one of {', '.join(CLEANINGS)}")
    return _CLEANERS[cleaning](text)


def _whitespace(text: str) -> str:
    return " ".join(_mend(text).split())


def _lower(text: str) -> str:
    return _whitespace(text).lower()


def _canonical(text: str) -> str:
    text = _mend(text).replace("_", " ").translate(_WITHOUT_PUNCTUATION)
    return " ".join(text.lower().split())


def _mend(text: str) -> str:
    """Repair wrong encodings and resolve entities; most captions have neither."""
    plain = text.isascii() and "&" not in text and text.replace("\n", " ").isprintable()
    return text if plain else html.unescape(html.unescape(_fix(text)))


def _fix(text: str) -> str:
    try:
        import ftfy  # Late: towers without captions of this kind never need it.
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "cleaning captions needs the package ftfy; run: pip install ftfy"
        ) from None
    return ftfy.fix_text(text)


_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)
_CLEANERS: Mapping[str, Callable[[str], str]] = {
    "none": str,
    "small": str.lower,
    "whitespace": _whitespace,
    "lower": _lower,
    "canonical": _canonical,
}
