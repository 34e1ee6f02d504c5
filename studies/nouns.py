"""The nouns of captions, by a rule: what WordNet's texts use as a noun most of the time.

A word is a noun if it, or what it is a form of, stands in WordNet as one, and was met as a noun at
least as often as it was met as a verb, an adjective or an adverb, in the texts whose words
WordNet's authors have labelled. So "dogs" and "light" are, and "sitting", "red" and "in" are not.
No sentence is parsed: in "a painting", the word is what it mostly is, a form of "to paint".
"""

import re
from collections import Counter, defaultdict
from pathlib import Path

from otter_jax.data.text_augmentations import (
    FUNCTION_WORDS,
    PARTS_OF_SPEECH,
    Thesaurus,
    wordnet,
    wordnet_folder,
)

# By the number in a sense's key, the manual page senseidx(5).
_PART_OF = {"1": "noun", "2": "verb", "3": "adj", "4": "adv", "5": "adj"}
_WORDS = re.compile(r"[a-z]+")


class Nouns:
    """Finds nouns in captions."""

    def __init__(self, thesaurus: Thesaurus, folder: Path) -> None:
        """Count the uses of words in `folder`/index.sense."""
        self._thesaurus = thesaurus
        self._uses: dict[str, Counter[str]] = defaultdict(Counter)
        self._known: dict[str, str | None] = {}
        for line in (folder / "index.sense").read_text(encoding="utf-8").splitlines():
            key, _, _, count = line.split()
            lemma, _, sense = key.partition("%")
            self._uses[_PART_OF[sense[0]]][lemma] += int(count)

    def find(self, caption: str) -> tuple[str, ...]:
        """Return a caption's nouns, each once, in their base forms: "dogs" is "dog"."""
        words = _WORDS.findall(caption.lower())
        found = (self._noun(word) for word in words if word not in FUNCTION_WORDS)
        return tuple(dict.fromkeys(each for each in found if each))

    def _noun(self, word: str) -> str | None:
        """Return the noun that a word is a form of; None if it is more often something else."""
        if word not in self._known:
            best = {part: self._best(word, part) for part in PARTS_OF_SPEECH}
            uses, noun = best.pop("noun")
            is_noun = noun is not None and uses >= max(count for count, _ in best.values())
            self._known[word] = noun if is_noun else None
        return self._known[word]

    def _best(self, word: str, part: str) -> tuple[int, str | None]:
        """Return how often the most used known base form was used, and the form."""
        known = self._uses[part]
        forms = [form for form in self._thesaurus.base_forms(word, part) if form in known]
        return max(
            ((known[form], form) for form in forms), key=lambda each: each[0], default=(0, None)
        )


def english_nouns() -> Nouns:
    """Return what finds English nouns; ModuleNotFoundError without the extra `[declip]`."""
    return Nouns(wordnet(), wordnet_folder())
