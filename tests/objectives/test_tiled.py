"""The tiled loss against the dense one: values, gradients, memory, devices."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh

from otter_jax import objectives, sharding
from otter_jax.objectives import losses, targets, tiled_sinkhorn, tiles

NUM_PAIRS, WIDTH = 48, 10
METHODS = {
    "infonce": {},
    "label_smoothing": {},
    "kd": {},
    "kd as released": {"image_weight": 1.0, "text_weight": 1.0},
    "sigmoid": {},
    "otter": {},
    "otter in the log domain": {"epsilon": 0.03},
    "otter with given pairs": {"remove_diagonal": False, "image_weight": 0.3, "cross_weight": 0.5},
    "otter mixed": {"mixed_target": True, "alpha": 0.3},
    "otter stopped": {"stop_gradient_keys": True},
    "otter estimated": {"alpha": "estimated", "pair_weight": "estimated"},
    "otter mixed estimated": {"mixed_target": True, "alpha": "estimated"},
    "label_smoothing weighted": {"pair_weight": "estimated"},
    "sigmoid weighted": {"pair_weight": "estimated"},
}


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    return sharding.make_mesh()


def embeddings(seed: int, num_pairs: int = NUM_PAIRS) -> objectives.Embeddings:
    rows = np.random.default_rng(seed).normal(size=(2, num_pairs, WIDTH)).astype(np.float32)
    return objectives.Embeddings(*map(jnp.asarray, rows))


def some_trust(num_pairs: int) -> jax.Array:
    """Between 0 and 1, both of which occur."""
    trust = np.random.default_rng(2).random(num_pairs).astype(np.float32)
    return jnp.asarray(np.round(trust, 1))


def options_of(method: str, tile: int) -> objectives.Method:
    return objectives.make_method(method.split()[0], tile=tile, **METHODS[method])


def compute(
    options: objectives.Method,
    num_pairs: int = NUM_PAIRS,
    mesh: Mesh | None = None,
    dtype: jnp.dtype = jnp.float32,
):
    """Loss, metrics and gradients of a batch whose rows are split over the mesh."""

    def loss(student, log_scales, teacher, trust):
        value, metrics = objectives.total_loss(options, student, teacher, log_scales, mesh, trust)
        return 3.0 * value, metrics  # Not 1: a cotangent that got lost would show.

    student, teacher = (
        jax.tree.map(lambda x: x.astype(dtype), embeddings(seed, num_pairs)) for seed in (0, 1)
    )
    trust = some_trust(num_pairs).astype(dtype)
    if mesh is not None:
        split = sharding.split_rows(mesh)
        student, teacher, trust = jax.device_put((student, teacher, trust), split)
    log_scales = objectives.LogScales(*(jnp.asarray(x, dtype) for x in (3.2, 2.5, -3.0)))
    gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    (value, metrics), gradients = gradient(
        student,
        log_scales,
        teacher if options.uses_teacher else None,
        trust if options.uses_trust else None,
    )
    if mesh is not None and mesh.devices.size > 1:
        assert len(gradients[0].image.sharding.device_set) == mesh.devices.size
    return value, metrics, jax.tree.leaves(gradients)


def assert_same(found: tuple, wanted: tuple) -> None:
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-6)
    for name, value in wanted[1].items():
        np.testing.assert_allclose(found[1][name], value, rtol=2e-5, atol=2e-6, err_msg=name)
    for one, other in zip(found[2], wanted[2], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * np.abs(other).max())


@pytest.mark.parametrize("method", METHODS)
def test_tiles_change_nothing(method: str, mesh: Mesh) -> None:
    wanted = compute(options_of(method, NUM_PAIRS))
    assert_same(compute(options_of(method, 7)), wanted)  # Does not divide the batch.
    assert_same(compute(options_of(method, 4), mesh=mesh), wanted)  # Nor a device's six rows.


@pytest.mark.parametrize(("tile", "devices"), [(9, 2), (NUM_PAIRS, 2), (NUM_PAIRS, 8), (47, 8)])
def test_devices_change_nothing(tile: int, devices: int) -> None:
    some = Mesh(np.array(jax.devices()[:devices]), ("data",))
    found = compute(options_of("otter", tile), mesh=some)
    assert_same(found, compute(options_of("otter", NUM_PAIRS)))


@settings(max_examples=6, deadline=None)
@given(
    data=st.data(),
    num_pairs=st.integers(3, 20),
    iterations=st.integers(1, 6),
    epsilon=st.sampled_from([0.02, 0.15, 1.0]),
)
def test_any_size_any_tile(data, num_pairs: int, iterations: int, epsilon: float) -> None:
    tile = data.draw(st.integers(1, num_pairs - 1))
    options = {"iterations": iterations, "epsilon": epsilon}
    dense = objectives.make_method("otter", tile=num_pairs, **options)
    in_tiles = objectives.make_method("otter", tile=tile, **options)
    assert_same(compute(in_tiles, num_pairs), compute(dense, num_pairs))


@functools.cache
def gradient_by_trust_and_tile(method: str, tile: int):
    """The compiled loss of six pairs and its gradient, for any trust in them."""
    options = options_of(method, tile)
    student = embeddings(0, 6)
    teacher = embeddings(1, 6) if options.uses_teacher else None

    def loss(student, trust):
        scales = objectives.LogScales(3.2, 2.5, -3.0)
        return objectives.total_loss(options, student, teacher, scales, None, trust)

    gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))
    return lambda trust: gradient(student, jnp.asarray(trust, jnp.float32))


@settings(max_examples=30, deadline=None)
@given(
    trust=st.lists(st.sampled_from([0.0, 1e-6, 0.5, 1.0]) | st.floats(0, 1, width=32), min_size=6,
                   max_size=6),
    method=st.sampled_from(["otter estimated", "otter mixed estimated", "sigmoid weighted"]),
)  # fmt: skip
def test_any_trust(trust: list[float], method: str) -> None:
    (value, metrics), gradients = gradient_by_trust_and_tile(method, 6)(trust)
    (found, others), slopes = gradient_by_trust_and_tile(method, 4)(trust)
    assert np.isfinite(value)
    np.testing.assert_allclose(found, value, rtol=1e-5, atol=1e-6)
    for name, metric in metrics.items():
        np.testing.assert_allclose(others[name], metric, rtol=2e-5, atol=5e-6, err_msg=name)
    for one, other in zip(slopes, gradients, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "options", [{"epsilon": 0.15}, {"epsilon": 0.005}, METHODS["otter estimated"]]
)
def test_tiles_in_float64(options: dict) -> None:
    with jax.enable_x64(True):
        found, wanted = (
            compute(objectives.make_method("otter", tile=tile, **options), dtype=jnp.float64)
            for tile in (7, NUM_PAIRS)
        )
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-12)
    for one, other in zip(found[2], wanted[2], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-11 * np.abs(other).max())


@pytest.mark.parametrize("epsilon", [0.15, 0.02])
def test_potentials_are_those_of_the_dense_targets(epsilon: float) -> None:
    unit = objectives.Embeddings(*map(objectives.normalize, embeddings(3)))
    options = objectives.make_method("otter", epsilon=epsilon)
    wanted = objectives.soft_targets(options, unit, NUM_PAIRS)
    features = targets.teacher_features(*unit, image_weight=1.0, text_weight=1.0)
    potentials = tiled_sinkhorn.plan_potentials(
        tiles.make_tiling(NUM_PAIRS, 10),
        tiled_sinkhorn.TeacherFeatures(*features),
        targets.Transported(epsilon, options.iterations, options.bound),
        True,
    )
    logits = features[0] @ features[1].T / epsilon - 200 / epsilon * np.eye(NUM_PAIRS)
    for k, (target, flip) in enumerate(zip(wanted, (False, True), strict=True)):
        plan = np.exp(logits + potentials.rows[:, k, None] + potentials.columns[None, :, k])
        np.testing.assert_allclose(plan.T if flip else plan, target, atol=3e-5)


def test_whole_matrices_or_tiles_by_size(mesh: Mesh) -> None:
    automatic = objectives.make_method("otter")
    assert losses.tile_rows(automatic, 1024) is None
    assert losses.tile_rows(automatic, 1025) == losses.DEFAULT_TILE
    assert losses.tile_rows(automatic, 2048, mesh) is None
    assert losses.tile_rows(automatic, 4096, mesh) is None  # 512 rows a device.
    assert losses.tile_rows(automatic, 4104, mesh) == losses.DEFAULT_TILE
    assert losses.tile_rows(options_of("otter", 64), 64) is None
    assert losses.tile_rows(options_of("otter", 63), 64) == 63


def test_tiles_stay_small_in_large_batches() -> None:
    assert tiles.make_tiling(4096, 1024).tile == 1024
    assert tiles.make_tiling(65536, 1024).tile == 64
    assert tiles.make_tiling(2**23, 1024).tile == 1
    assert tiles.make_tiling(4096, 1024, ("data",), devices=8).tile == 512


def compiled(num_pairs: int, width: int, tile: int, mesh: Mesh | None = None):
    """The compiled OTTER loss, value and gradient."""
    options = objectives.make_method("otter", tile=tile)
    split = None if mesh is None else sharding.split_rows(mesh)
    rows = jax.ShapeDtypeStruct((num_pairs, width), jnp.float32, sharding=split)
    pairs, scalar = objectives.Embeddings(rows, rows), jax.ShapeDtypeStruct((), jnp.float32)

    def loss(student, teacher, *scales):
        log_scales = objectives.LogScales(*scales)
        return objectives.total_loss(options, student, teacher, log_scales, mesh)

    gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 2, 3), has_aux=True))
    return gradient.lower(pairs, pairs, scalar, scalar).compile()


def temporary_mebibytes(*arguments, **options) -> float:
    return compiled(*arguments, **options).memory_analysis().temp_size_in_bytes / 2**20


@pytest.mark.parametrize(("num_pairs", "limit"), [(16384, 350), (65536, 1536)])
def test_memory_grows_with_the_batch_not_its_square(num_pairs: int, limit: int) -> None:
    assert temporary_mebibytes(num_pairs, 256, tile=1024) <= limit


def largest_array(program: str) -> int:
    """Elements of the largest array in a compiled program's text."""
    shapes = re.findall(r"\b(?:f|bf|s|u|pred)\d*\[([\d,]+)\]", program)
    return max(math.prod(map(int, shape.split(","))) for shape in shapes)


@pytest.mark.parametrize(("tile", "devices"), [(2048, 8), (256, 8), (256, 1)])
def test_no_device_holds_the_matrix(tile: int, devices: int) -> None:
    mesh = Mesh(np.array(jax.devices()[:devices]), ("data",))
    program = compiled(2048, 64, tile=tile, mesh=mesh).as_text()
    assert 2048 * 64 <= largest_array(program) <= 2048 * 256  # A tile, or a device's rows.
    assert largest_array(compiled(256, 8, tile=256).as_text()) >= 256**2  # It sees one.


def test_dense_memory_is_shared_by_the_devices(mesh: Mesh) -> None:
    one = temporary_mebibytes(2048, 64, tile=2048)
    assert temporary_mebibytes(2048, 64, tile=2048, mesh=mesh) <= 1.2 * one / 8


@pytest.mark.parametrize("name", ["infonce", "label_smoothing"])
def test_no_device_holds_the_whole_identity(mesh: Mesh, name: str) -> None:
    options = objectives.make_method(name, tile=512)
    rows = jax.ShapeDtypeStruct((512, 8), jnp.float32, sharding=sharding.split_rows(mesh))

    def loss(image: jax.Array, text: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        student, scale = objectives.Embeddings(image, text), jnp.float32(3.0)
        scales = objectives.LogScales(scale, scale)
        return objectives.total_loss(options, student, None, scales, mesh)

    gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    assert largest_array(gradient.lower(rows, rows).compile().as_text()) <= 512**2 // 8
