"""k-nearest-neighbour classification by cosine similarity, in blocks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from otter_jax import sharding

QUERY_BLOCK, KEY_BLOCK = 1024, 16384
TEMPERATURE = 0.07  # Of a neighbour's vote, exp(similarity / temperature); Wu et al. 2018.


def classify(
    train: np.ndarray,
    labels: np.ndarray,
    test: np.ndarray,
    num_classes: int,
    k: int = 20,
    *,
    mesh: Mesh | None = None,
) -> np.ndarray:
    """Return the class to which each test image's k nearest training images give most.

    A neighbour's vote weighs exp(similarity / 0.07) (Wu et al. 2018, Unsupervised Feature Learning
    via Non-Parametric Instance Discrimination); of equally similar ones the lower number is nearer.

    Args:
        train: float [n, d]; rows are made unit.
        labels: int [n].
        test: float [m, d]; rows are made unit.
        num_classes: number of classes.
        k: neighbours; all where there are fewer.
        mesh: devices to split the test images over; all of them if not given.

    Returns:
        int [m].
    """
    mesh = mesh or sharding.make_mesh()
    similar, nearest = nearest_rows(_unit(test), _unit(train), min(k, len(train)), mesh)
    votes = np.zeros((len(test), num_classes))
    weights = np.exp((similar.astype(np.float64) - 1.0) / TEMPERATURE)
    np.add.at(votes, (np.arange(len(test))[:, None], labels[nearest]), weights)
    return votes.argmax(axis=1)


def nearest_rows(
    queries: np.ndarray, keys: np.ndarray, k: int, mesh: Mesh
) -> tuple[np.ndarray, np.ndarray]:
    """Return the k most similar keys of every query: similarities and numbers, [n, k], best first."""
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
    """Jit, once a mesh: the best k of those found so far and of one more block of keys."""

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


def _unit(rows: np.ndarray) -> np.ndarray:
    rows = np.asarray(rows, np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
