"""Batches are split over the devices and state is whole on each."""

import numpy as np
import pytest

from otter_jax import sharding


def test_batch_is_split_and_state_is_whole() -> None:
    mesh = sharding.make_mesh()
    rows = np.arange(16.0).reshape(8, 2)
    batch = sharding.put_batch(mesh, {"x": rows})["x"]
    np.testing.assert_array_equal(batch, rows)
    assert {shard.data.shape for shard in batch.addressable_shards} == {(1, 2)}
    np.testing.assert_array_equal(sharding.put_rows(mesh, rows), rows)
    state = sharding.put_state(mesh, {"w": rows})["w"]
    assert {shard.data.shape for shard in state.addressable_shards} == {(8, 2)}


def test_batch_that_does_not_divide_is_refused() -> None:
    mesh = sharding.make_mesh()
    sharding.check_batch_size(mesh, 16)
    with pytest.raises(ValueError, match="does not divide over 8 devices: try 16 or 24"):
        sharding.check_batch_size(mesh, 20)
