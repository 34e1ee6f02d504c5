"""A batch is a function of seed and step alone."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from conftest import write_shard
from hypothesis import given, settings
from hypothesis import strategies as st

from otter_jax.data import batches
from otter_jax.data.sources import open_source
from otter_jax.data.texts import Tokenizer


def take(count: int, **options) -> list[np.ndarray]:
    numbers = batches.array_loader({})
    stream = batches.batches(numbers, **options)
    return [batch["index"] for batch in itertools.islice(stream, count)]


@settings(max_examples=25, deadline=None)
@given(
    records=st.integers(4, 40),
    batch_size=st.integers(2, 4),
    seed=st.integers(0, 2**31 - 1),
    start=st.integers(0, 30),
)
def test_resumed_equals_uninterrupted(records, batch_size, seed, start) -> None:
    options = {"num_records": records, "batch_size": batch_size, "seed": seed}
    whole = take(start + 3, **options)
    np.testing.assert_array_equal(whole[start:], take(3, **options, start_step=start))


@settings(max_examples=25, deadline=None)
@given(records=st.integers(4, 40), batch_size=st.integers(2, 4), seed=st.integers(0, 2**31 - 1))
def test_every_record_once_an_epoch(records, batch_size, seed) -> None:
    steps = 2 * records
    order = np.concatenate(take(steps, num_records=records, batch_size=batch_size, seed=seed))
    for epoch in range(len(order) // records):
        chunk = order[epoch * records : (epoch + 1) * records]
        np.testing.assert_array_equal(np.sort(chunk), np.arange(records))


def test_epochs_and_seeds_differ() -> None:
    epochs = np.array(take(2, num_records=64, batch_size=64, seed=0))
    assert (epochs[0] != epochs[1]).any()
    assert (epochs[0] != take(1, num_records=64, batch_size=64, seed=1)[0]).any()


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("threads", [1, 3])
def test_processes_and_threads_change_nothing(count: int, threads: int) -> None:
    options = {"num_records": 50, "batch_size": 8, "seed": 3}
    parts = [take(5, **options, process=(p, count), threads=threads) for p in range(count)]
    joined = [np.concatenate(rows) for rows in zip(*parts, strict=True)]
    np.testing.assert_array_equal(joined, take(5, **options))


def test_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(ValueError, match="batch_size=9 is more than the 8 pairs"):
        batches.record_order(8, 9, seed=0)


def pair_loader(folder: Path, tokenizer_folder: Path, **changes) -> batches.PairLoader:
    options = {
        "image_size": 32,
        "fit": "crop",
        "augmentation": "random_resized_crop",
        "flip": True,
        "seed": 0,
    }
    tokenizer = Tokenizer(tokenizer_folder, max_tokens=6)
    return batches.PairLoader(open_source(f"webdataset:{folder}"), tokenizer, **(options | changes))


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
