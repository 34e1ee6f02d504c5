"""A queue of recent text embeddings, and which of them is nearest to a new one (DeCLIP, sec. 3.3).

The queue is one for the whole batch and part of the state. Over a mesh its rows may be split over
the devices: each looks among its own, and only queries and winners travel.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from otter_jax.objectives import tiles
from otter_jax.objectives.contrastive import normalize, similarity
from otter_jax.objectives.tiles import Rows, Tiling

NO_ROW = jnp.iinfo(jnp.int32).max  # Above every index.


class Queue(NamedTuple):
    """First in, first out; the first `filled` rows can be found."""

    features: jax.Array  # [M, d] unit rows; those not filled yet are 0.
    position: jax.Array  # int32 scalar: the row that is written next, in [0, M).
    filled: jax.Array  # int32 scalar, in [0, M].


def make_queue(size: int, dim: int, dtype: jnp.dtype = jnp.float32) -> Queue:
    """Return an empty queue for `size` rows of `dim` numbers."""
    # Two zeros, not one twice: a step consumes the buffers it is given.
    return Queue(jnp.zeros((size, dim), dtype), jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))


def enqueue(queue: Queue, rows: jax.Array) -> Queue:
    """Return the queue after `rows`, which came one by one; beyond its size the oldest are gone.

    Args:
        queue: [M, d]; split over devices, it stays so.
        rows: [N, d] embeddings of any length, constants; of more than M the last M stay.
    """
    size, count = len(queue.features), len(rows)
    kept = normalize(jax.lax.stop_gradient(rows[-size:])).astype(queue.features.dtype)
    slots = (queue.position + count - len(kept) + jnp.arange(len(kept))) % size
    return Queue(
        features=queue.features.at[slots].set(kept, unique_indices=True),
        position=(queue.position + count) % size,
        filled=jnp.minimum(queue.filled + count, size),
    )


def nearest(
    queue: Queue, queries: jax.Array, mesh: Mesh | None = None
) -> tuple[jax.Array, jax.Array]:
    """Return the row of the queue nearest to each query by cosine; of equals the lowest index.

    Args:
        queue: [M, d]; rows that are not filled yet are never found.
        queries: [N, d] embeddings of any length.
        mesh: over whose axis `data` the queue's rows are split; None for one device.

    Returns:
        Rows [N, d] and their indices int32 [N], constants; zeros and -1 where the queue is empty.

    Raises:
        ValueError: the queue's rows do not divide over the mesh.
    """
    size, devices = len(queue.features), tiles.count_devices(mesh)
    if size % devices:
        raise ValueError(f"a queue of {size} rows does not divide over {devices} devices")
    # A power of two: a queue of the usual size is then cut without a padded copy of it.
    tile = 1 << (max(1, tiles.LARGEST_TILE // len(queries)).bit_length() - 1)
    rows = size // devices
    axes = None if mesh is None else tiles.batch_axes(mesh)
    tiling = Tiling(rows, min(tile, rows), axes)
    search = functools.partial(_search, tiling)
    if mesh is not None:
        split, whole = PartitionSpec(axes), PartitionSpec()
        search = jax.shard_map(
            search,
            mesh=mesh,
            in_specs=(Queue(split, whole, whole), whole),
            out_specs=(whole, whole),
            check_vma=False,  # It cannot see that all devices agree on the winner.
        )
    return search(*jax.lax.stop_gradient((queue, normalize(queries))))


class _Best(NamedTuple):
    """The best match of each query so far, [N] each."""

    cosine: jax.Array
    index: jax.Array  # int32, in the whole queue; -1 for none.


def _search(tiling: Tiling, queue: Queue, queries: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return `nearest` on the rows of this device; works inside `shard_map`."""

    def step(best: _Best, rows: Rows, features: jax.Array) -> tuple[_Best, None]:
        usable = rows.valid & (rows.index < queue.filled)
        cosines = jnp.where(usable[:, None], similarity(features, queries), -jnp.inf)
        # Two plain reductions, not argmax, whose reduction of pairs aborts the compiler for TPU v4
        # (libtpu 0.0.42). Of equals the lowest index wins in both.
        best_here = cosines.max(axis=0)
        index = jnp.where(cosines == best_here, rows.index[:, None].astype(jnp.int32), NO_ROW)
        here = _Best(best_here, index.min(axis=0))
        # Not >=: of equals the first one stays.
        better = here.cosine > best.cosine
        return jax.tree.map(lambda new, old: jnp.where(better, new, old), here, best), None

    nothing = _Best(
        cosine=jnp.full(len(queries), -jnp.inf, jnp.result_type(queue.features, queries)),
        index=jnp.full(len(queries), -1, jnp.int32),
    )
    (cosine, index), _ = tiles.scan(tiling, step, nothing, queue.features)
    first = 0
    if tiling.axis is not None:
        first = jax.lax.axis_index(tiling.axis) * tiling.rows
        wins = cosine == jax.lax.pmax(cosine, tiling.axis)
        index = jax.lax.pmin(jnp.where(wins, index, NO_ROW), tiling.axis)
    here = (index >= first) & (index < first + tiling.rows)
    found = queue.features[jnp.where(here, index - first, 0)]
    return tiles.total(jnp.where(here[:, None], found, 0), tiling.axis), index
