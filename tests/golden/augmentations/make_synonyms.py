"""Writes synonyms.json: words and their synonyms as the library wn itself finds them.

Needs wn 0.0.23: `python tests/golden/augmentations/make_synonyms.py`. It is no part of the tests,
because the library takes seconds to load and adds to Python's builtins.
"""

import json
from pathlib import Path

import wn
from wn.morphy import _morphy

WORDS = (
    "dogs circle geese running happier quickly photo churches bluest red-hot wine glass leaves men "
    "flies lying better 42 otter zyzzyva"
)


def synonyms(net: wn.WordNet, word: str) -> list[str]:
    """Return all words of all senses of all base forms, as WordNet spells them."""
    # All base forms, as NLTK takes them; `net.synsets(word)` takes the first alone.
    senses = [
        sense
        for part in "nvar"
        for form in _morphy(word, part)
        for sense in net.synsets(form, part)
    ]
    return sorted({lemma.name() for sense in senses for lemma in sense.lemmas()})


def main() -> None:
    """Write the synonyms of some regular and irregular, common and rare words."""
    net = wn.WordNet()
    text = json.dumps({word: synonyms(net, word) for word in WORDS.split()}, indent=0)
    Path(__file__).with_name("synonyms.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
