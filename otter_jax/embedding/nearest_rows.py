"""The most similar rows of a large table, a block at a time, on every device."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from otter_jax import sharding

QUERY_BLOCK, KEY_BLOCK = 1024, 16384


def nearest_rows(
    queries: np.ndarray, keys: np.ndarray, k: int, mesh: Mesh
) -> tuple[np.ndarray, np.ndarray]:
    """Return the k most similar keys of each query: similarities and numbers [n, k], best first."""
    parts = []
    for start in range(0, len(queries), QUERY_BLOCK):
        rows = queries[start : start + QUERY_BLOCK]
        size = min(QUERY_BLOCK, -(-len(queries) // mesh.devices.size) * mesh.devices.size)
        placed = sharding.put_rows(mesh, np.pad(rows, ((0, size - len(rows)), (0, 0))))
        found = (np.full((size, k), -np.inf, np.float32), np.zeros((size, k), np.int32))
        for first in range(0, len(keys), KEY_BLOCK):
            found = _merge(mesh)(placed, keys[first : first + KEY_BLOCK], first, *found)
        parts.append([np.asarray(part)[: len(rows)] for part in found])
    similar, numbers = (np.concatenate(part) for part in zip(*parts, strict=True))
    return similar, numbers


@functools.cache
def _merge(mesh: Mesh) -> jax.stages.Wrapped:
    """Compile, once for each mesh, the best k of those found so far and one more block of keys."""

    def merge(
        queries: jax.Array, keys: jax.Array, first: jax.Array, best: jax.Array, numbers: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        similar = jnp.matmul(queries, keys.T, precision="highest")
        count = best.shape[1]
        new, places = jax.lax.top_k(similar, min(count, similar.shape[1]))
        # Those found before come first, so that of equal ones the lower number stays.
        both = jnp.concatenate([best, new], axis=1)
        both_numbers = jnp.concatenate([numbers, places.astype(jnp.int32) + first], axis=1)
        kept, order = jax.lax.top_k(both, count)
        return kept, jnp.take_along_axis(both_numbers, order, axis=1)

    return jax.jit(merge, out_shardings=sharding.replicated(mesh))
