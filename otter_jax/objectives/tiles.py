"""Going through an N x N matrix one block of rows at a time, on one device or on many.

A tile is a block of rows with all of its columns. Vectors over rows fall out of a tile at once;
vectors over columns (a log-sum-exp down each column) are accumulated from tile to tile, and under
`shard_map`, where each device has rows of its own, combined across the devices at the end.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from otter_jax.sharding import DATA, FSDP

AXIS = (
    DATA  # Of every mesh; it splits the batch, and FSDP, where there are groups, does so further.
)
Axes = tuple[str, ...]
# 16 MiB of float32: a handful of such arrays is all that a loss holds beside its N x d features.
LARGEST_TILE = 2**22


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How this device goes through its rows.

    Attributes:
        rows: rows that this device has.
        tile: rows in a tile.
        axis: names of the mesh's axes over which the rows are split; None on one device.
    """

    rows: int
    tile: int
    axis: Axes | None = None

    @property
    def count(self) -> int:
        """Number of tiles; the last may be padded."""
        return -(-self.rows // self.tile)


def batch_axes(mesh: Mesh) -> Axes:
    """Return the axes of a mesh that split a batch between them, in the order of the rows."""
    return (AXIS, FSDP) if FSDP in mesh.shape else (AXIS,)


def count_devices(mesh: Mesh | None) -> int:
    """Return over how many devices a batch is split; None is one device."""
    return 1 if mesh is None else math.prod(mesh.shape[axis] for axis in batch_axes(mesh))


def is_split(mesh: Mesh | None) -> bool:
    """Return whether a batch over this mesh lies on more than one device."""
    return count_devices(mesh) > 1


class Rows(NamedTuple):
    """Which rows of the matrix a tile holds, [tile] each."""

    index: jax.Array  # int32, in the whole matrix.
    valid: jax.Array  # bool: False for padding.


def is_given(rows: Rows, tile: jax.Array) -> jax.Array:
    """Return where a tile holds a given pair, bool [tile, N]."""
    return rows.index[:, None] == jnp.arange(tile.shape[1])[None, :]


def make_tiling(num_pairs: int, tile: int, axis: Axes | None = None, devices: int = 1) -> Tiling:
    """Return tiles of at most `tile` rows, fewer where one would exceed `LARGEST_TILE`."""
    rows = num_pairs // devices
    return Tiling(rows, max(1, min(tile, rows, LARGEST_TILE // num_pairs)), axis)


def scan(
    tiling: Tiling, function: Callable[..., tuple[Any, Any]], carry: Any, arrays: Any
) -> tuple[Any, Any]:
    """Return `carry, outputs = function(carry, rows, tile of arrays)` for every tile, in order.

    Args:
        tiling: how to go.
        function: what to do with a tile; its outputs have the tile's rows first.
        carry: what goes from tile to tile.
        arrays: pytree of arrays [rows, ...], padded with zeros in the last tile.

    Returns:
        The last carry, and the outputs [rows, ...] of all tiles without the padding.
    """
    count, tile = tiling.count, tiling.tile
    padding = count * tile - tiling.rows
    first = 0 if tiling.axis is None else jax.lax.axis_index(tiling.axis) * tiling.rows

    def split(x: jax.Array) -> jax.Array:
        padded = jnp.pad(x, [(0, padding)] + [(0, 0)] * (x.ndim - 1))
        return padded.reshape(count, tile, *x.shape[1:])

    def step(carry: Any, inputs: tuple[jax.Array, Any]) -> tuple[Any, Any]:
        numbers, tiles = inputs
        return function(carry, Rows(first + numbers, numbers < tiling.rows), tiles)

    numbers = jnp.arange(count * tile).reshape(count, tile)
    carry, outputs = jax.lax.scan(step, carry, (numbers, jax.tree.map(split, arrays)))
    return carry, jax.tree.map(
        lambda x: x.reshape(count * tile, *x.shape[2:])[: tiling.rows], outputs
    )


class ColumnSum(NamedTuple):
    """log of a sum of exponentials down each column so far: peak + log(total), [N] each."""

    peak: jax.Array
    total: jax.Array


def empty_sum(columns: int, dtype: jnp.dtype) -> ColumnSum:
    """Return the sum over no rows."""
    return ColumnSum(jnp.full(columns, -jnp.inf, dtype), jnp.zeros(columns, dtype))


def add_rows(sum_: ColumnSum, logits: jax.Array) -> ColumnSum:
    """Add the exponentials of [tile, N]; padding is -inf."""
    peak = jnp.maximum(sum_.peak, logits.max(axis=0))
    # Where a column has no entry yet, peak is -inf and its difference to itself not a number.
    shift = jnp.where(jnp.isfinite(peak), peak, 0.0)
    total = sum_.total * jnp.exp(sum_.peak - shift) + jnp.exp(logits - shift).sum(axis=0)
    return ColumnSum(peak, total)


def log_of_sum(sum_: ColumnSum, axis: Axes | None) -> jax.Array:
    """Return [N] the log-sum-exp over all rows of all devices."""
    peak, total = sum_
    if axis is not None:
        peak = jax.lax.pmax(sum_.peak, axis)
        total = jax.lax.psum(total * jnp.exp(sum_.peak - peak), axis)
    return peak + jnp.log(total)


def gather(x: jax.Array, axis: Axes | None) -> jax.Array:
    """Return all devices' rows of [rows, ...]."""
    return x if axis is None else jax.lax.all_gather(x, axis, tiled=True)


def total(x: jax.Array, axis: Axes | None) -> jax.Array:
    """Sum over all devices."""
    return x if axis is None else jax.lax.psum(x, axis)
