"""Batches are split over the devices and state is whole on each."""

import jax
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


def test_no_device_is_sent_more_than_its_part(monkeypatch: pytest.MonkeyPatch) -> None:
    mesh = sharding.make_mesh()
    tree = {"w": np.arange(2.0**15, dtype=np.float32).reshape(512, 64), "b": np.ones(3)}
    sent, make = [], jax.make_array_from_callback

    def note(shape: tuple, place: object, rows: object) -> jax.Array:
        return make(shape, place, lambda index: sent.append(rows(index)) or sent[-1])

    monkeypatch.setattr(jax, "make_array_from_callback", note)
    monkeypatch.setattr(jax, "device_put", None)
    placed = sharding.put_state(mesh, tree, fsdp=True)
    assert {rows.shape for rows in sent} == {(64, 64), (3,)}
    np.testing.assert_array_equal(placed["w"], tree["w"])
    described = sharding.describe_state(mesh, tree, fsdp=True)
    assert described["w"].sharding == placed["w"].sharding != described["b"].sharding


def test_on_host_is_where_jax_computes() -> None:
    with sharding.on_host():
        made = jax.numpy.ones(3)
    assert made.devices() == {jax.devices("cpu")[0]}


def test_batch_that_does_not_divide_is_refused() -> None:
    mesh = sharding.make_mesh()
    sharding.check_batch_size(mesh, 16)
    with pytest.raises(ValueError, match="does not divide over 8 devices: try 16 or 24"):
        sharding.check_batch_size(mesh, 20)
