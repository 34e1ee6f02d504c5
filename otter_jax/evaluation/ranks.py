"""At which place does the best true key stand when keys are ranked by similarity?

Zero-shot classification and retrieval ask the same question: queries (images) against keys (class
names, captions) of which some are true. Hit@k and recall@k only need the place of the best true
key, and that is a count, not a sort: how many keys are more similar to the query than it. One sweep
over the keys gives the count for every k at once, and a query is out of the sweep as soon as it has
missed the largest k.

Float32 products on an accelerator, on eight devices or in another block differ in their last bits.
So the sweep counts only what is certain, with a margin for rounding; the few queries for which the
margin matters are counted again in float64. The result does not depend on device or block.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from otter_jax import sharding

QUERY_BLOCK = 2048
KEY_BLOCK = 2048
NOT_BEHIND = 2**16  # More than keys in a block.
AHEAD = NOT_BEHIND + 1
MISSING = -1  # Padding in lists of true keys.


def best_true_ranks(
    queries: np.ndarray,
    keys: np.ndarray,
    truth: np.ndarray,
    limit: int,
    *,
    mesh: Mesh | None = None,
) -> np.ndarray:
    """Return the rank, from 0, of each query's best true key, or `limit` where it is that or more.

    Keys are ranked by inner product, best first; of equal ones the lower number comes first. Equal
    is what rounding in float64 cannot tell apart.

    Args:
        queries: float [n, d], unit rows.
        keys: float [m, d], unit rows.
        truth: int [n, L], the numbers of each query's true keys, padded with -1.
        limit: ranks beyond are of no interest; the smaller, the faster.
        mesh: devices to split the queries over; all of them if not given.

    Returns:
        int32 [n]; `limit` for queries without a true key, and for all that are ranked later.

    Raises:
        ValueError: if rows are not unit rows, shapes do not fit, or a true key does not exist.
    """
    check_unit_rows("queries", queries)
    check_unit_rows("keys", keys)
    if queries.shape[1] != keys.shape[1]:
        raise ValueError(f"queries of width {queries.shape[1]}, keys of width {keys.shape[1]}")
    check_truth(truth, len(queries), len(keys))
    mesh = mesh or sharding.make_mesh()
    ahead, close, alive = _sweep(queries, keys, truth, limit, mesh)
    ranks = np.full(len(queries), limit, np.int32)
    # The best true key itself is always close; more than one means that rounding could decide.
    certain = alive[close[alive] <= 1]
    ranks[certain] = ahead[certain]
    doubtful = alive[close[alive] > 1]
    if len(doubtful):
        ranks[doubtful] = _exact_ranks(queries[doubtful], keys, truth[doubtful])
    return np.minimum(ranks, limit)


def _sweep(
    queries: np.ndarray, keys: np.ndarray, truth: np.ndarray, limit: int, mesh: Mesh
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Count, for each query, keys certainly ahead and keys too close to call.

    Also names the queries that may still rank below the limit. A part of the keys is every p-th of
    them, since neighbours in a list of classes are alike.
    """
    best = np.full(len(queries), np.nan, np.float32)
    ahead, close = (np.zeros(len(queries), np.int32) for _ in range(2))
    alive = np.flatnonzero((truth >= 0).any(axis=1))
    for rows in _blocks(alive, QUERY_BLOCK):
        best[rows] = _best_similarities(queries[rows], keys, truth[rows])
    margin = _rounding(queries.shape[1], np.float32)
    parts = -(-len(keys) // KEY_BLOCK)
    for part in range(parts):
        block = _padded(np.asarray(keys[part::parts], np.float32), -(-len(keys) // parts))
        on_devices = jax.make_array_from_callback(
            block.shape, sharding.replicated(mesh), lambda index, block=block: block[index]
        )
        padding = len(block) - len(range(part, len(keys), parts))
        for rows in _blocks(alive, QUERY_BLOCK):
            placed = _place(mesh, queries[rows], best[rows])
            more, level = _count(mesh)(*placed, on_devices, padding, margin)
            ahead[rows] += np.asarray(more)[: len(rows)]
            close[rows] += np.asarray(level)[: len(rows)]
        alive = alive[ahead[alive] < limit]
    return ahead, close, alive


@functools.cache
def _count(mesh: Mesh) -> jax.stages.Wrapped:
    """Compile, once for each mesh, the count of keys ahead of and level with a similarity."""

    def count(
        queries: jax.Array, best: jax.Array, keys: jax.Array, padding: jax.Array, margin: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        lowest, highest = (best - margin)[:, None], (best + margin)[:, None]

        def compare(similar: jax.Array) -> jax.Array:
            # Two counts in one number: each pass over the similarities costs a third of them.
            return jnp.where(similar > highest, AHEAD, jnp.where(similar >= lowest, NOT_BEHIND, 0))

        similar = jnp.matmul(queries, keys.T, precision="highest")
        # Rows of zeros that pad the keys have been compared as well.
        both = compare(similar).sum(axis=1) - padding * compare(jnp.zeros(()))[:, 0]
        ahead = both % NOT_BEHIND
        return ahead, both // NOT_BEHIND - ahead

    return jax.jit(count, out_shardings=sharding.replicated(mesh))


def _exact_ranks(queries: np.ndarray, keys: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return the ranks in float64, ties by number."""
    margin = _rounding(queries.shape[1], np.float64)
    ranks = np.zeros(len(queries), np.int64)
    for rows in _blocks(np.arange(len(queries)), QUERY_BLOCK):
        wide = queries[rows].astype(np.float64)
        similar = _true_similarities(wide, keys, truth[rows])
        best = similar.max(axis=1, keepdims=True)
        first = np.where(similar >= best - margin, truth[rows], len(keys)).min(axis=1)
        for start in range(0, len(keys), KEY_BLOCK):
            part = keys[start : start + KEY_BLOCK].astype(np.float64)
            difference = wide @ part.T - best
            earlier = np.arange(start, start + len(part)) < first[:, None]
            before = (difference > margin) | ((difference >= -margin) & earlier)
            ranks[rows] += before.sum(axis=1)
    return ranks


def _best_similarities(queries: np.ndarray, keys: np.ndarray, truth: np.ndarray) -> np.ndarray:
    return _true_similarities(np.asarray(queries, np.float32), keys, truth).max(axis=1)


def _true_similarities(queries: np.ndarray, keys: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return the similarity of each query to each of its true keys, [n, L]; -inf for padding."""
    similar = np.full(truth.shape, -np.inf, queries.dtype)
    for column in range(truth.shape[1]):
        rows = np.flatnonzero(truth[:, column] >= 0)
        true = keys[truth[rows, column]].astype(queries.dtype)
        similar[rows, column] = np.einsum("nd,nd->n", queries[rows], true)
    return similar


def _rounding(width: int, dtype: type) -> float:
    """Bound the rounding error of the difference of two inner products of unit rows.

    The bound for any order of summation is 2 d u. It is taken in float64; in float32, where it
    would send many queries the long way, 8 sqrt(d) u: the probabilistic bound, exceeded with
    probability 2 exp(-32) (Higham & Mary 2019, A New Approach to Probabilistic Rounding Error
    Analysis, theorem 2.4).
    """
    unit = float(np.finfo(dtype).eps) / 2
    return 2 * width * unit if dtype is np.float64 else 16 * np.sqrt(max(width, 16)) * unit


def _blocks(rows: np.ndarray, size: int) -> list[np.ndarray]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _place(mesh: Mesh, queries: np.ndarray, best: np.ndarray) -> list[jax.Array]:
    """Split a block of queries over the devices, padded to few sizes, so that few are compiled."""
    devices = mesh.devices.size
    size = next(QUERY_BLOCK // part for part in (16, 4, 1) if len(queries) <= QUERY_BLOCK // part)
    size = -(-size // devices) * devices
    columns = (np.asarray(queries, np.float32), best)
    return [sharding.put_rows(mesh, _padded(column, size)) for column in columns]


def _padded(rows: np.ndarray, size: int) -> np.ndarray:
    """Return the array with rows of zeros at its end, `size` rows in all."""
    return np.pad(rows, [(0, size - len(rows))] + [(0, 0)] * (rows.ndim - 1))


def check_unit_rows(name: str, rows: np.ndarray) -> None:
    """Refuse rows that are not of length 1 within 1e-3, NaN among them (ValueError)."""
    if rows.ndim != 2 or not len(rows):
        raise ValueError(f"{name} should be [n, d] with n > 0, found shape {rows.shape}")
    lengths = np.sqrt(np.einsum("nd,nd->n", rows, rows, dtype=np.float32))
    wrong = np.flatnonzero(~(np.abs(lengths - 1.0) < 1e-3))
    if len(wrong):
        raise ValueError(f"{name}: row {wrong[0]} has length {lengths[wrong[0]]}, expected 1")


def check_truth(truth: np.ndarray, num_queries: int, num_keys: int) -> None:
    """Refuse lists of true keys of the wrong shape, or that name keys which do not exist."""
    if truth.ndim != 2 or len(truth) != num_queries:
        raise ValueError(f"{num_queries} queries need labels [{num_queries}, L], not {truth.shape}")
    wrong = (truth < MISSING) | (truth >= num_keys)
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise ValueError(
            f"label {truth[row, column]} of query {row} is out of range: there are {num_keys}"
        )
