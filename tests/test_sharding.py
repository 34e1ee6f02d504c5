"""Batches are split over the devices and state is whole on each, in one process or two."""

import dataclasses
import inspect
import json
import random
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, PartitionSpec
from runs.test_processes import outputs, start_two

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


@dataclasses.dataclass(frozen=True)
class FakeDevice:
    """What a mesh asks of a device; every machine with GPUs is a slice of its own."""

    id: int
    process_index: int
    slice_index: int
    platform: str = "gpu"
    device_kind: str = "fake"


def test_the_mesh_keeps_a_process_together_over_several_slices() -> None:
    devices = [FakeDevice(number, number // 4, number // 8) for number in range(16)]
    random.Random(0).shuffle(devices)
    with pytest.raises(ValueError, match="multi-slice"):
        jax.make_mesh((16,), ("data",), devices=devices)
    mesh = sharding.make_mesh(devices=devices)
    assert mesh.axis_names == ("data",)
    assert [device.id for device in mesh.devices] == list(range(16))
    groups = sharding.make_mesh(8, devices)
    assert groups.shape == {"data": 2, "fsdp": 8}
    assert {device.slice_index for device in groups.devices[0]} == {0}
    with pytest.raises(ValueError, match=r"config.mesh.fsdp=3 does not divide 16 devices"):
        sharding.make_mesh(3, devices)


def test_state_is_split_within_groups_and_batches_over_all_devices() -> None:
    mesh = sharding.make_mesh(4)
    tree = {"w": np.arange(2.0**15, dtype=np.float32).reshape(512, 64)}
    placed = sharding.put_state(mesh, tree, fsdp=True)["w"]
    assert placed.sharding.spec == PartitionSpec("fsdp")
    assert {shard.data.shape for shard in placed.addressable_shards} == {(128, 64)}
    np.testing.assert_array_equal(placed, tree["w"])
    rows = sharding.put_batch(mesh, {"x": np.arange(16.0)})["x"]
    np.testing.assert_array_equal(rows, np.arange(16.0))
    assert {shard.data.shape for shard in rows.addressable_shards} == {(2,)}


def interleaved(devices: Sequence[jax.Device]) -> Mesh:
    """A mesh on which two neighbours of the first half are followed by two of the second."""
    order = np.array(devices).reshape(2, -1, 2).swapaxes(0, 1).ravel()
    return Mesh(order, ("data",), axis_types=(AxisType.Auto,))


def draw(mesh: Mesh, rows: jax.Array) -> np.ndarray:
    """What the step does with rows: numbers drawn by their place in the batch, and a part of it."""

    def of_rows(rows: jax.Array) -> tuple[jax.Array, jax.Array]:
        keys = jax.random.split(jax.random.key(0), len(rows))
        return rows * jax.vmap(jax.random.normal)(keys), rows[: len(rows) // 2]

    drawn = jax.jit(of_rows, out_shardings=sharding.replicated(mesh))(rows)
    return np.concatenate([np.asarray(part) for part in drawn])


PROGRAM = f"""
from __future__ import annotations
import json, sys
import jax, numpy as np
from jax.sharding import AxisType, Mesh
from otter_jax import sharding
from otter_jax.runs import processes
{inspect.getsource(interleaved)}
{inspect.getsource(draw)}
address, process, kind = sys.argv[1:]
processes.join(address, 2, int(process))
mesh = interleaved(jax.devices()) if kind == "interleaved" else sharding.make_mesh()
order = [device.process_index for device in mesh.devices]
assert order == [0, 0, 1, 1] * 2 if kind == "interleaved" else sorted(order)
rows = np.arange(16, dtype=np.float32)[8 * int(process) :][:8]
placed = sharding.put_batch(mesh, dict(x=rows))["x"]
machines = len(set(device.slice_index for device in jax.devices()))
print(json.dumps([machines, *draw(mesh, placed).tolist()]))
"""


def assert_same_as_one_process(started: list[subprocess.Popen], machines: int) -> None:
    mesh = sharding.make_mesh()
    rows = sharding.put_batch(mesh, {"x": np.arange(16, dtype=np.float32)})["x"]
    for said in outputs(started):
        found, *drawn = json.loads(said.splitlines()[-1])
        assert found == machines
        np.testing.assert_array_equal(np.float32(drawn), draw(mesh, rows))


def test_rows_land_where_an_interleaved_mesh_has_them() -> None:
    assert_same_as_one_process(start_two(Path("interleaved"), program=PROGRAM), machines=1)


def can_have_a_namespace() -> bool:
    """Whether this user may give a process files of its own (`unshare`)."""
    command = ("unshare", "-m", "true")
    return bool(shutil.which("unshare")) and not subprocess.run(command, check=False).returncode


@pytest.mark.skipif(not can_have_a_namespace(), reason="a second boot id needs root and unshare")
def test_two_machines_are_one_mesh(tmp_path: Path) -> None:
    """JAX tells machines apart by their boot id, of which the second process has another."""
    boot_id = tmp_path / "boot_id"
    boot_id.write_text("01234567-89ab-cdef-0123-456789abcdef\n")
    script = f'mount --bind {boot_id} /proc/sys/kernel/random/boot_id && exec "$@"'
    command = ("unshare", "-m", "sh", "-c", script, "sh")
    started = start_two(Path("own"), program=PROGRAM, around_second=command)
    assert_same_as_one_process(started, machines=2)
