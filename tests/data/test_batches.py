"""A batch is a function of seed and step alone."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otter_jax.data import batches


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
