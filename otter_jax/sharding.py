"""The mesh and where things live on it: batches split over the devices, state whole or split.

Everything is written from the global view: `jax.jit` over a mesh with Auto axes lets the compiler
split the work, so batch norm and the contrastive loss see the whole batch on any device count.
"""

import contextlib
import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

DATA, FSDP = "data", "fsdp"  # The mesh's axes. A batch is split over both, state over the second.
SMALLEST_SPLIT = 2**14  # Elements; gathering less would cost more than it saves.


def make_mesh(group: int | None = None, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Return the mesh over which a batch is split: the devices of each process side by side.

    It is made by hand, because `jax.make_mesh` refuses devices of several slices, which every two
    machines with CPUs or GPUs are, and on a TPU slice puts neighbours on the chips' network side
    by side instead of the devices of a process, so that these would hold rows from all over the
    batch.

    Args:
        group: devices that share one copy of the state where it is split (FSDP), each group with a
            copy of its own; all of them if None.
        devices: those to use; all devices of all processes if None.

    Returns:
        One axis `data`, or with groups two, `data` over the groups and `fsdp` within each.

    Raises:
        ValueError: the devices do not divide into groups.
    """
    chosen = jax.devices() if devices is None else devices
    ordered = np.array(sorted(chosen, key=lambda device: (device.process_index, device.id)))
    if group is None:
        return Mesh(ordered, (DATA,), axis_types=(AxisType.Auto,))
    refuse_group(group, len(ordered))
    return Mesh(ordered.reshape(-1, group), (DATA, FSDP), axis_types=(AxisType.Auto,) * 2)


def split_rows(mesh: Mesh) -> NamedSharding:
    """Return arrays whose first axis is the batch."""
    return NamedSharding(mesh, PartitionSpec(mesh.axis_names))


def replicated(mesh: Mesh) -> NamedSharding:
    """Return arrays that every device holds whole: parameters, optimizer state, scalars."""
    return NamedSharding(mesh, PartitionSpec())


def first_process_says(flag: bool) -> bool:
    """Return the first process's answer to a question that all of them ask at the same time."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.broadcast_one_to_all(np.array(flag)))


def parameter_place(mesh: Mesh, array: Any) -> NamedSharding:
    """Return where a parameter lives when its kind is split over the devices (FSDP, ZeRO).

    The longest axis that the devices of a group divide is split; small arrays, and those without
    such an axis, are whole on every device.
    """
    split = FSDP if FSDP in mesh.shape else DATA
    devices, shape = mesh.shape[split], array.shape
    axes = [axis for axis, size in enumerate(shape) if size % devices == 0]
    if math.prod(shape) < SMALLEST_SPLIT or not axes:
        return replicated(mesh)
    longest = max(axes, key=lambda axis: shape[axis])
    return NamedSharding(mesh, PartitionSpec(*(None,) * longest, split))


def check_batch_size(mesh: Mesh, batch_size: int, key: str = "batch_size") -> None:
    """Refuse a batch that does not divide over the devices (ValueError naming `config.key`)."""
    refuse_batch_size(batch_size, mesh.devices.size, key)


def refuse_batch_size(batch_size: int, devices: int, key: str = "batch_size") -> None:
    """Refuse the same, of so many devices."""
    if batch_size % devices:
        lower = batch_size // devices * devices
        raise ValueError(
            f"config.{key}={batch_size} does not divide over {devices} devices: "
            f"try {lower or devices} or {lower + devices}"
        )


def refuse_group(group: int | None, devices: int) -> None:
    """Refuse groups that devices do not divide into; None is one group (ValueError)."""
    if group is not None and (group < 1 or devices % group):
        raise ValueError(f"config.mesh.fsdp={group} does not divide {devices} devices into groups")


def put_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Return a batch, of which each process has its part, as global arrays split over the devices.

    Args:
        mesh: of any order; where a process's devices are not side by side on it, rows travel.
        batch: this process's rows. Those of process 0 are the first of the batch, and so on.
    """
    place = split_rows(mesh)
    as_loaded = split_rows(make_mesh(devices=mesh.devices.ravel()))

    def put(rows: np.ndarray) -> jax.Array:
        array = jax.make_array_from_process_local_data(as_loaded, rows)
        return jax.device_put(array, place)

    return {name: put(rows) for name, rows in batch.items()}


def put_rows(mesh: Mesh, rows: np.ndarray) -> jax.Array:
    """Return an array that every process holds whole, split over all devices."""
    return jax.make_array_from_callback(rows.shape, split_rows(mesh), lambda index: rows[index])


def array_places(mesh: Mesh, tree: Any, *, fsdp: bool) -> Any:
    """Return where each array of a pytree lives: whole everywhere, or as `parameter_place` says."""
    return jax.tree.map(lambda x: parameter_place(mesh, x) if fsdp else replicated(mesh), tree)


def whole_in_use(mesh: Mesh, tree: Any) -> Any:
    """Return split arrays as a computation should take them: whole on every device.

    This is what makes splitting the state FSDP: each array is gathered where it is used, and its
    gradient is summed into the places that `array_places` gives it. Unless told so, the compiler
    goes on from how a parameter is split to split the activations, and exchanges these.
    """

    def gather(array: jax.Array) -> jax.Array:
        place = parameter_place(mesh, array)
        if place.is_fully_replicated:
            return array
        return _gather(replicated(mesh), place, array)

    return jax.tree.map(gather, tree)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _gather(whole: NamedSharding, place: NamedSharding, array: jax.Array) -> jax.Array:
    """Return an array of one place in another; its gradient goes back."""
    del place
    return jax.lax.with_sharding_constraint(array, whole)


def _gather_forward(
    whole: NamedSharding, place: NamedSharding, array: jax.Array
) -> tuple[jax.Array, None]:
    return _gather(whole, place, array), None


def _gather_backward(
    whole: NamedSharding, place: NamedSharding, saved: None, gradient: jax.Array
) -> tuple[jax.Array]:
    del saved
    # Summed as a whole first: told of the parts alone, compilers gather rows of the batch to make
    # them (for a table of embeddings), or exchange them in windows that take more memory. A sum
    # whose parts are taken is one reduce-scatter to compilers for accelerators.
    gradient = jax.lax.with_sharding_constraint(gradient, whole)
    return (jax.lax.with_sharding_constraint(gradient, place),)


_gather.defvjp(_gather_forward, _gather_backward)


def put_state(mesh: Mesh, tree: Any, *, fsdp: bool = False) -> Any:
    """Return a pytree of arrays where `array_places` says; no device is sent more than its part."""

    def put(array: Any, place: NamedSharding) -> jax.Array:
        rows = np.asarray(array)
        return jax.make_array_from_callback(rows.shape, place, lambda index: rows[index])

    return jax.tree.map(put, tree, array_places(mesh, tree, fsdp=fsdp))


def describe_state(mesh: Mesh, tree: Any, *, fsdp: bool = False) -> Any:
    """Return what `put_state` would give, without its numbers: shapes, types and places."""

    def describe(array: Any, place: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=place)

    return jax.tree.map(describe, tree, array_places(mesh, tree, fsdp=fsdp))


@contextlib.contextmanager
def on_host() -> Iterator[None]:
    """Have JAX compute in the host's memory, so that what is made takes none of a device's."""
    try:
        host = jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS leaves it out.
        host = None
    with jax.default_device(host):
        yield


def bytes_on_a_device(tree: Any) -> int:
    """Return how much of a pytree of arrays one device holds."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )


def whole(array: jax.Array) -> np.ndarray:
    """Return an array with what other processes have of it; all must ask at the same time."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    return multihost_utils.process_allgather(array, tiled=True)
