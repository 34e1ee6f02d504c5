"""Captions to token ids, with the tokenizer that belongs to the text tower."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np


class Tokenizer:
    """A Hugging Face tokenizer that always answers with the same number of tokens a text."""

    def __init__(self, folder: Path, max_tokens: int):
        """Reads the tokenizer of a local folder.

        Args:
          folder: holds tokenizer.json or what else the tokenizer's class needs.
          max_tokens: length of every row, special tokens included; longer texts are cut.

        Raises:
          FileNotFoundError: if the folder has no tokenizer.
        """
        if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt")):
            raise FileNotFoundError(f"no tokenizer (tokenizer.json or vocab.txt) in {folder}")
        # Only the tokenizers are wanted; this keeps an installed torch from being imported.
        os.environ.setdefault("USE_TORCH", "0")
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
        from transformers import AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        self.max_tokens = max_tokens

    def __call__(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Tokens int32 [N, max_tokens] and their mask, bool of the same shape."""
        if not texts:
            return np.zeros((0, self.max_tokens), np.int32), np.zeros((0, self.max_tokens), bool)
        encoded = self._tokenizer(
            list(texts),
            padding="max_length",
            truncation=True,
            max_length=self.max_tokens,
            return_tensors="np",
        )
        return encoded["input_ids"].astype(np.int32), encoded["attention_mask"].astype(bool)
