"""The queue against a Python deque, the search against brute force, eight devices against one."""

import collections
import functools
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh

from otter_jax import sharding
from otter_jax.objectives import tiles
from otter_jax.objectives.nearest_neighbor import Queue, enqueue, make_queue, nearest


def unit_rows(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def search(
    queue: Queue, queries: np.ndarray, mesh: Mesh | None = None
) -> tuple[jax.Array, jax.Array]:
    """`nearest`, compiled anew, since the tests change the size of tiles."""
    return jax.jit(functools.partial(nearest, mesh=mesh))(queue, queries)


def split_queue(queue: Queue) -> Queue:
    mesh = sharding.make_mesh()
    whole = sharding.replicated(mesh)
    return jax.device_put(queue, Queue(sharding.split_rows(mesh), whole, whole))


def filled_queue(rows: np.ndarray, size: int) -> Queue:
    return enqueue(make_queue(size, rows.shape[1]), jnp.asarray(rows))


add = jax.jit(enqueue)  # Compiled once for all examples of one shape.


def in_order(queue: Queue) -> np.ndarray:
    """The rows that can be found, the oldest first."""
    position, filled = int(queue.position), int(queue.filled)
    order = np.roll(np.arange(len(queue.features)), -position)[-filled:] if filled else []
    return np.asarray(queue.features)[order]


@settings(max_examples=25, deadline=None)
@given(
    size=st.sampled_from([1, 5, 9]),
    counts=st.lists(st.sampled_from([1, 3, 4, 12]), max_size=5),
    seed=st.integers(0, 99),
)
def test_queue_is_first_in_first_out(size: int, counts: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    queue, wanted = make_queue(size, 3), collections.deque(maxlen=size)
    for count in counts:
        rows = rng.normal(size=(count, 3)).astype(np.float32)
        queue = add(queue, rows)
        wanted.extend(unit_rows(rows))
        assert int(queue.filled) == len(wanted)
        np.testing.assert_allclose(in_order(queue), np.stack(wanted), atol=1e-6)
    assert queue.position.dtype == queue.filled.dtype == jnp.int32


def test_entries_are_unit_rows_in_float32() -> None:
    queue = enqueue(make_queue(4, 2), jnp.array([[3, 4], [0, 0.5]], jnp.bfloat16))
    np.testing.assert_allclose(queue.features, [[0.6, 0.8], [0, 1], [0, 0], [0, 0]], atol=1e-6)
    assert queue.features.dtype == jnp.float32


@pytest.mark.parametrize("largest_tile", [9 * 3, 2**22])  # 2 rows, the last one alone; all.
@pytest.mark.parametrize("filled", [5, 19, 40])
def test_nearest_is_that_of_brute_force(
    random_rows, monkeypatch: pytest.MonkeyPatch, filled: int, largest_tile: int
) -> None:
    monkeypatch.setattr(tiles, "LARGEST_TILE", largest_tile)
    queue = filled_queue(random_rows(filled, 6), size=19)
    queries = random_rows(9, 6, seed=1)
    features = np.asarray(queue.features, np.float64)[: min(filled, 19)]
    index = np.argmax(unit_rows(queries.astype(np.float64)) @ features.T, axis=1)
    found, places = search(queue, queries)
    np.testing.assert_array_equal(places, index)
    np.testing.assert_array_equal(found, np.asarray(queue.features)[index])
    assert places.dtype == jnp.int32


@pytest.mark.parametrize("largest_tile", [4, 2**22])
def test_of_equals_the_lowest_index_is_found(
    monkeypatch: pytest.MonkeyPatch, largest_tile: int
) -> None:
    """In tiles of one row or of all, on one device or eight; the products are exact."""
    monkeypatch.setattr(tiles, "LARGEST_TILE", largest_tile)
    rows = np.tile(np.eye(4, dtype=np.float32), (8, 1))[::-1]
    queue = filled_queue(rows, size=32)
    queries = np.eye(4, dtype=np.float32)
    np.testing.assert_array_equal(search(queue, queries)[1], [3, 2, 1, 0])
    found = search(split_queue(queue), queries, sharding.make_mesh())
    np.testing.assert_array_equal(found[1], [3, 2, 1, 0])


def test_entries_that_are_not_filled_are_never_found() -> None:
    """A zero row would be nearer than any that points the other way."""
    queue = filled_queue(np.array([[-1.0, 0.0]], np.float32), size=8)
    query = np.array([[1.0, 0.0]], np.float32)
    for found, index in (
        search(queue, query),
        search(split_queue(queue), query, sharding.make_mesh()),
    ):
        np.testing.assert_array_equal(found, [[-1.0, 0.0]])
        np.testing.assert_array_equal(index, [0])


def test_a_tiles_padding_is_never_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three rows a device in tiles of two; the fourth has the number of the next device's first."""
    monkeypatch.setattr(tiles, "LARGEST_TILE", 2)
    queue = filled_queue(np.tile(np.array([[-1.0, 0.0]], np.float32), (24, 1)), size=24)
    query = np.array([[1.0, 0.0]], np.float32)
    found, index = search(split_queue(queue), query, sharding.make_mesh())
    np.testing.assert_array_equal(found, [[-1.0, 0.0]])
    np.testing.assert_array_equal(index, [0])


def test_an_empty_queue_says_so(random_rows) -> None:
    queries = random_rows(3, 4)
    for found, index in (
        search(make_queue(16, 4), queries),
        search(split_queue(make_queue(16, 4)), queries, sharding.make_mesh()),
    ):
        np.testing.assert_array_equal(found, np.zeros((3, 4)))
        np.testing.assert_array_equal(index, [-1, -1, -1])


def test_neighbors_are_constants(random_rows) -> None:
    queue = filled_queue(random_rows(8, 4), size=8)

    def total(features: jax.Array, queries: jax.Array) -> jax.Array:
        return search(queue._replace(features=features), queries)[0].sum()

    for gradient in jax.grad(total, (0, 1))(queue.features, random_rows(3, 4, seed=1)):
        np.testing.assert_array_equal(gradient, 0.0)


def enqueue_and_search(mesh: Mesh | None) -> Callable:
    return jax.jit(lambda queue, rows: (enqueue(queue, rows), nearest(queue, rows, mesh)))


@pytest.mark.parametrize("filled", [20, 90])
def test_devices_change_nothing(random_rows, filled: int) -> None:
    mesh = sharding.make_mesh()
    one = filled_queue(random_rows(filled, 6), size=64)
    many = split_queue(one)
    for seed in range(1, 4):
        rows = random_rows(24, 6, seed=seed)
        one, wanted = enqueue_and_search(None)(one, rows)
        many, found = enqueue_and_search(mesh)(
            many, jax.device_put(rows, sharding.split_rows(mesh))
        )
        np.testing.assert_array_equal(found[1], wanted[1])
        np.testing.assert_allclose(found[0], wanted[0], atol=1e-6)
        np.testing.assert_allclose(many.features, one.features, atol=1e-6)
        assert many.features.sharding.is_equivalent_to(sharding.split_rows(mesh), 2)


def test_only_queries_travel() -> None:
    mesh, size, count, dim = sharding.make_mesh(), 1024, 64, 16
    rows = jax.ShapeDtypeStruct((count, dim), jnp.float32, sharding=sharding.split_rows(mesh))
    queue = split_queue(make_queue(size, dim))
    program = enqueue_and_search(mesh).lower(queue, rows).compile().as_text()
    shapes = re.findall(r"f32\[(\d+),\d+\]", program)
    assert max(map(int, shapes)) == size // 8


def test_memory_does_not_grow_with_queue_times_batch() -> None:
    queue, queries = (
        jax.eval_shape(lambda: make_queue(65536, 32)),
        jax.ShapeDtypeStruct((4096, 32), jnp.float32),
    )
    used = jax.jit(nearest).lower(queue, queries).compile().memory_analysis().temp_size_in_bytes
    assert used <= 40 * 2**20  # The matrix would be 1,024 MiB.


def test_queue_must_divide_over_the_devices() -> None:
    with pytest.raises(ValueError, match="a queue of 12 rows does not divide over 8 devices"):
        nearest(make_queue(12, 4), jnp.ones((2, 4)), sharding.make_mesh())
