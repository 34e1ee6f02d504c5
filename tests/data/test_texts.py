"""Captions become rows of one length, cut and padded, with their mask."""

from pathlib import Path

import numpy as np
import pytest

from otter_jax.data.texts import Tokenizer


def test_padding_cutting_and_mask(tokenizer_folder: Path) -> None:
    tokenizer = Tokenizer(tokenizer_folder, max_tokens=4)
    tokens, mask = tokenizer(["a red circle", "a photo of a red circle", "zebra"])
    assert tokens.shape == mask.shape == (3, 4)
    assert tokens.dtype == np.int32 and mask.dtype == bool
    np.testing.assert_array_equal(mask.sum(1), [3, 4, 1])
    assert tokens[0, 3] == 0  # padding
    assert tokens[2, 0] == 1  # an unknown word


def test_folder_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no tokenizer"):
        Tokenizer(tmp_path, max_tokens=4)
