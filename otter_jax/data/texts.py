"""Captions to token ids, with the tokenizer that belongs to the text tower."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from otter_jax.data.caption_cleaning import clean

# A tokenizer as a whole, or the vocabulary from which its class makes one: that of WordPiece, or of
# byte-pair encoding, which is nothing without its merges.
TOKENIZER_FILES = (("tokenizer.json",), ("vocab.txt",), ("vocab.json", "merges.txt"))
OWN_MODEL_TYPE = "otter_jax"  # In the config.json of models/export.py.
SHORTEST = 3  # A start, an end, and a token in between.


class Tokenizer:
    """A Hugging Face tokenizer that always answers with the same number of tokens a text.

    A text that is too long loses tokens from its end, but not the special token that closes it.

    Attributes:
        max_tokens: length of every row.
        cleaning: what is done to texts before they become tokens.
        stripped_id: which id becomes 0; None for none.
        vocabulary_size: one more than the largest id of the vocabulary.
        special_ids: the ids of start, end, padding, unknown and the like, sorted.
        ordinary_ids: all ids of the vocabulary but these and the mask's, sorted.
        mask_id: what stands for a hidden token. A tokenizer without a mask token, as CLIP's, gets
            the id after its last one: the tower then needs `num_tokens_with_mask` embeddings, and
            trained ones keep their rows. (DeCLIP's release puts its `<|mask|>` before CLIP's start
            and end, which moves those two by one.)
    """

    def __init__(
        self,
        folder: Path,
        max_tokens: int,
        mask_token: str | None = None,
        cleaning: str = "none",
        strip_separator: bool = False,
    ):
        """Read the tokenizer of a local folder.

        Args:
            folder: holds tokenizer.json, or a vocabulary beside a tokenizer_config.json or
                config.json that says what kind it is.
            max_tokens: length of every row, special tokens included; longer texts are cut.
            mask_token: what stands for a hidden token in masked language modelling, if not the
                token that the tokenizer itself names for this.
            cleaning: what is done to texts first, see `caption_cleaning.clean`.
            strip_separator: id 0 takes the place of the token behind a text (CLIPA).

        Raises:
            FileNotFoundError: the folder has no tokenizer.
            ValueError: the tokenizer cannot be read, has no padding token or no token named
                `mask_token`, `cleaning` is unknown, or `max_tokens` is below 3.
        """
        if max_tokens < SHORTEST:
            raise ValueError(
                f"max_tokens is {max_tokens}; it must be at least {SHORTEST}: a start, a token "
                "and an end"
            )
        if not any(all((folder / name).is_file() for name in names) for names in TOKENIZER_FILES):
            wanted = ", ".join(" + ".join(names) for names in TOKENIZER_FILES)
            raise FileNotFoundError(f"no tokenizer in {folder}; it should have one of: {wanted}")
        self._tokenizer = _read_tokenizer(folder)
        if self._tokenizer.pad_token is None:
            raise ValueError(
                f"the tokenizer in {folder} has no padding token; "
                "name one as pad_token in its tokenizer_config.json"
            )
        self.max_tokens, self.cleaning = max_tokens, cleaning
        self.stripped_id = self._tokenizer.sep_token_id if strip_separator else None
        vocabulary = self._tokenizer.get_vocab()
        self.vocabulary_size = max(vocabulary.values()) + 1
        self.special_ids = np.unique(self._tokenizer.all_special_ids)
        self.mask_id = _mask_id(self._tokenizer, vocabulary, mask_token, folder)
        special_and_mask = [*self.special_ids, self.mask_id]
        self.ordinary_ids = np.setdiff1d(np.arange(self.vocabulary_size), special_and_mask)
        # The first call sets the tokenizer's length, which two threads must not do at once.
        self([""])

    def share_cut(self, texts: Sequence[str]) -> float:
        """Return which share of some texts is longer than `max_tokens`, in [0, 1]."""
        if not texts:
            return 0.0
        longer = self._tokenizer(
            self._cleaned(texts), truncation=True, max_length=self.max_tokens + 1
        )
        self([""])  # Which sets the tokenizer's length again.
        return float(np.mean([len(ids) > self.max_tokens for ids in longer["input_ids"]]))

    def _cleaned(self, texts: Sequence[str]) -> list[str]:
        # Tokenizers choke on halves of characters, which json and names of files can hold.
        whole = (text.encode("utf-8", "replace").decode() for text in texts)
        return [clean(text, self.cleaning) for text in whole]

    def save(self, folder: Path) -> None:
        """Write the tokenizer, with the class to read it by and the length of its texts."""
        self._tokenizer.model_max_length = self.max_tokens
        self._tokenizer.save_pretrained(str(folder))

    @property
    def num_tokens_with_mask(self) -> int:
        """Rows of the embedding of a text tower that is shown masked captions."""
        return max(self.vocabulary_size, self.mask_id + 1)

    def __call__(self, texts: Sequence[str] | str) -> tuple[np.ndarray, np.ndarray]:
        """Return the tokens of N texts, int32 [N, max_tokens], and their mask, bool.

        A lone text counts as one of N = 1.
        """
        texts = [texts] if isinstance(texts, str) else texts
        if not texts:
            return np.zeros((0, self.max_tokens), np.int32), np.zeros((0, self.max_tokens), bool)
        encoded = self._tokenizer(
            self._cleaned(texts),
            padding="max_length",
            truncation=True,
            max_length=self.max_tokens,
            return_tensors="np",
        )
        tokens = encoded["input_ids"].astype(np.int32)
        if self.stripped_id is not None:
            tokens[tokens == self.stripped_id] = 0
        return tokens, encoded["attention_mask"].astype(bool)


def shortened(
    tokens: np.ndarray, token_mask: np.ndarray, lengths: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return texts without the padding that all have at their end, down to one of some lengths.

    Args:
        tokens: int32 [N, L].
        token_mask: bool [N, L].
        lengths: ascending, those that texts may be cut to.

    Returns:
        int32 [N, K] and bool [N, K], K the first of the lengths that holds all N, else L.
    """
    length = fitting_length(used_length(token_mask), lengths, tokens.shape[1])
    return tokens[:, :length], token_mask[:, :length]


def used_length(token_mask: np.ndarray) -> int:
    """Return how many columns of a mask [N, L] there are up to the last that any text uses."""
    return 1 + int(np.flatnonzero(token_mask.any(axis=0)).max(initial=-1))


def fitting_length(used: int, lengths: Sequence[int], longest: int) -> int:
    """Return the first of ascending lengths that holds `used` tokens, `longest` if none does."""
    return next((length for length in lengths if used <= length < longest), longest)


def _mask_id(
    tokenizer: Any, vocabulary: Mapping[str, int], mask_token: str | None, folder: Path
) -> int:
    if mask_token is not None and mask_token not in vocabulary:
        raise ValueError(
            f"the tokenizer in {folder} has no token {mask_token!r} to mask with; name one of its "
            "vocabulary, or none to have one added after the last"
        )
    token = mask_token or tokenizer.mask_token
    return max(vocabulary.values()) + 1 if token is None else vocabulary[token]


def _model_type(folder: Path) -> str | None:
    """Return what kind of model a folder's config.json is of, None where it does not say."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # Whoever reads the model says what is wrong with it.
        return None
    return config.get("model_type") if isinstance(config, dict) else None


def _read_tokenizer(folder: Path) -> Any:
    # Only the tokenizers are wanted; this keeps an installed torch from being imported.
    os.environ.setdefault("USE_TORCH", "0")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers import AutoTokenizer, PreTrainedConfig

    # transformers asks config.json for the class, though the tokenizer's own file says it, and
    # warns of this package's kind of model, which it does not know.
    of_ours = _model_type(folder) == OWN_MODEL_TYPE
    known = {"config": PreTrainedConfig()} if of_ours else {}
    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, **known)
    except Exception as error:  # Of the many kinds that damaged or foreign files cause.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"the tokenizer in {folder} cannot be read ({reason}); a vocabulary needs a "
            "tokenizer_config.json with its tokenizer_class"
        ) from None
