"""Records become arrays: the same ones for the same seed, step and record."""

from pathlib import Path

import numpy as np
import pytest
from conftest import write_shard

from otter_jax.data.pair_loader import PairLoader
from otter_jax.data.sources import open_source
from otter_jax.data.texts import Tokenizer


def pair_loader(folder: Path, tokenizer_folder: Path, **changes) -> PairLoader:
    options = {
        "image_size": 32,
        "fit": "crop",
        "augmentation": "random_resized_crop",
        "flip": True,
        "seed": 0,
    }
    tokenizer = Tokenizer(tokenizer_folder, max_tokens=6)
    return PairLoader(open_source(f"webdataset:{folder}"), tokenizer, **(options | changes))


def test_pairs_are_decoded_and_tokenised(pairs_folder: Path, tokenizer_folder: Path) -> None:
    load = pair_loader(pairs_folder, tokenizer_folder)
    batch = load(0, np.array([0, 47]))
    assert batch["image"].shape == (2, 32, 32, 3) and batch["image"].dtype == np.uint8
    assert batch["tokens"].shape == (2, 6) and batch["tokens"].dtype == np.int32
    np.testing.assert_array_equal(batch["token_mask"].sum(1), [3, 3])


def test_augmentation_depends_on_step_and_record(
    pairs_folder: Path, tokenizer_folder: Path
) -> None:
    load = pair_loader(pairs_folder, tokenizer_folder)
    first = load(0, np.array([5, 6]))["image"]
    np.testing.assert_array_equal(first, load(0, np.array([5, 6]))["image"])
    np.testing.assert_array_equal(first[1], load(0, np.array([6]))["image"][0])
    assert (first != load(1, np.array([5, 6]))["image"]).any()


def test_unreadable_image_is_replaced_and_noted(
    tmp_path: Path, tokenizer_folder: Path, shape_pairs: list
) -> None:
    pairs = [shape_pairs[0], (b"not an image", "a red circle"), shape_pairs[7]]
    write_shard(tmp_path / "shard.tar", pairs)
    load = pair_loader(tmp_path, tokenizer_folder, augmentation="none", flip=False)
    batch = load(0, np.array([0, 1, 2]))
    np.testing.assert_array_equal(batch["image"][1], batch["image"][2])
    np.testing.assert_array_equal(batch["index"], [0, 2, 2])
    assert list(load.unreadable) == ["00001"]


def test_a_source_without_images_ends_clearly(tmp_path: Path, tokenizer_folder: Path) -> None:
    write_shard(tmp_path / "shard.tar", [(b"nothing", "a"), (b"at all", "b")])
    with pytest.raises(ValueError, match="not one of 2 images can be read"):
        pair_loader(tmp_path, tokenizer_folder)(0, np.array([0]))
