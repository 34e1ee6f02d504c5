"""Tests of the ResNet towers against outputs of PyTorch networks.

`golden/towers/make_golden_resnet.py` wrote the reference data: timm's ResNets of both blocks,
Hugging Face's, and open_clip's modified ResNet, all small with random weights.
"""

import json
import math
import runpy
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from otter_jax.models.layers import TowerOutput
from otter_jax.models.pretrained import create_image_tower, from_pretrained
from otter_jax.models.resnet import ClipResNetConfig, ResNet, ResNetConfig
from otter_jax.models.torch_files import read_torch_file
from otter_jax.models.weights import load_weights

GOLDEN = Path(__file__).parents[1] / "golden" / "towers"
REFERENCE = SimpleNamespace(**runpy.run_path(str(GOLDEN / "make_golden_resnet.py")))
# File or folder of the weights, size of the images, fields that the file does not tell.
CASES = {
    "basic": ("small_resnet_basic.pth", 49, {}),
    "bottleneck": ("small_resnet_bottleneck.pth", 50, {}),
    "hugging_face": ("small_resnet", 49, {}),
    "clip": ("small_clip_resnet.pth", REFERENCE.IMAGE_SIZE, {"num_heads": 4}),
}


def load(case: str, **overrides: object) -> nnx.Module:
    path, _, fields = CASES[case]
    return from_pretrained(GOLDEN / path, **(fields | overrides))


def golden(case: str) -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN / f"{Path(CASES[case][0]).stem}.npz"))


def images(case: str) -> np.ndarray:
    return REFERENCE.synthetic_images(3, CASES[case][1])


@nnx.jit
def evaluate(tower: nnx.Module, batch: np.ndarray) -> TowerOutput:
    return tower(batch)


def train_once(tower: nnx.Module, batch: np.ndarray) -> tuple[jax.Array, nnx.State, nnx.State]:
    """Return the features, the gradients of their sum of squares, and the running statistics."""
    graph, params, statistics = nnx.split(tower, nnx.Param, nnx.BatchStat)

    @jax.jit
    def step(params: nnx.State, statistics: nnx.State):
        def loss(params: nnx.State):
            tower = nnx.merge(graph, params, statistics, copy=True)
            features = tower(batch, train=True).pooled
            return jnp.sum(features**2), (features, nnx.state(tower, nnx.BatchStat))

        return jax.grad(loss, has_aux=True)(params)

    gradients, (features, statistics) = step(params, statistics)
    return features, gradients, statistics


@pytest.mark.parametrize("case", CASES)
def test_features_are_those_of_the_original(case: str):
    output = evaluate(load(case), images(case))
    assert output.pooled.dtype == jnp.float32
    np.testing.assert_allclose(output.pooled, golden(case)["pooled"], atol=1e-5)
    np.testing.assert_allclose(output.sequence, golden(case)["sequence"], atol=1e-5)


@pytest.mark.parametrize(("case", "remat"), [*((case, False) for case in CASES), ("basic", True)])
def test_a_training_step_is_that_of_the_original(case: str, remat: bool):
    tower, expected = load(case, remat=remat), golden(case)
    features, gradients, statistics = train_once(tower, images(case))
    np.testing.assert_allclose(features, expected["trained"], atol=1e-4)
    # PyTorch's gradients and statistics, loaded like weights, stand where ours should be.
    after = {k.removeprefix("after/"): v for k, v in expected.items() if k.startswith("after/")}
    load_weights(tower, after)
    for kind, ours in ((nnx.Param, gradients), (nnx.BatchStat, statistics)):
        theirs = jax.tree.leaves(nnx.state(tower, kind))
        for (path, value), wanted in zip(nnx.to_flat_state(ours), theirs, strict=True):
            tolerance = 1e-3 * float(jnp.abs(wanted).max()) + 1e-6
            np.testing.assert_allclose(value[...], wanted, atol=tolerance, err_msg=str(path))


def test_evaluation_leaves_the_running_statistics():
    tower = load("basic")
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(tower)))
    evaluate(tower, images("basic"))
    jax.tree.map(np.testing.assert_array_equal, before, nnx.to_pure_dict(nnx.state(tower)))


def test_bfloat16_computes_nearby_with_float32_parameters():
    tower = load("bottleneck", dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(tower))} == {jnp.dtype("float32")}
    features, expected = (
        evaluate(tower, images("bottleneck")).pooled,
        golden("bottleneck")["pooled"],
    )
    assert features.dtype == jnp.float32
    assert 1e-5 < np.abs(features - expected).max() < 0.05 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("resnet18", 11_176_512),
        ("resnet34", 21_284_672),
        ("resnet50", 23_508_032),
        ("resnet101", 42_500_160),
        ("clip_resnet50", 38_316_896),
    ],
)
def test_presets_have_the_published_number_of_parameters(name: str, count: int):
    tower = nnx.eval_shape(lambda: create_image_tower(name, rngs=nnx.Rngs(0)))
    parameters = jax.tree.leaves(nnx.state(tower, nnx.Param))
    assert sum(math.prod(leaf.shape) for leaf in parameters) == count
    assert tower.width == {"resnet18": 512, "resnet34": 512, "clip_resnet50": 1024}.get(name, 2048)


def test_normalisation_is_that_of_the_data_sets_and_may_be_overridden():
    assert ResNetConfig().mean == (0.485, 0.456, 0.406)
    assert ClipResNetConfig().std == (0.26862954, 0.26130258, 0.27577711)
    tower = load("clip", mean=[0.5, 0.5, 0.4])
    assert tower.mean == (0.5, 0.5, 0.4) and hash(tower.config) == hash(tower.config)


def saved_arrays(case: str) -> dict[str, np.ndarray]:
    path = GOLDEN / CASES[case][0]
    return load_file(path / "model.safetensors") if path.is_dir() else read_torch_file(path)


@pytest.mark.parametrize(
    ("case", "prefix", "others"),
    [
        ("basic", "", ("fc.weight", "bn1.num_batches_tracked")),
        ("hugging_face", "resnet.", ("classifier.1.weight",)),
        ("clip", "visual.", ("visual.fc.bias", "token_embedding.weight", "logit_scale")),
    ],
)
def test_prefixes_and_other_parts_of_a_checkpoint_are_understood(
    case: str, prefix: str, others: tuple[str, ...]
):
    arrays = {f"{prefix}{name}": array for name, array in saved_arrays(case).items()}
    arrays |= {name: np.zeros(3, np.float32) for name in others}
    loaded = load(case)
    tower = nnx.eval_shape(lambda: type(loaded)(loaded.config, rngs=nnx.Rngs(0)))
    load_weights(tower, arrays)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(tower), nnx.state(loaded))
    with pytest.raises(ValueError, match=r"surprise\.weight .*unexpected"):
        load_weights(tower, arrays | {"surprise.weight": np.zeros(3, np.float32)})


def test_attention_pool_interpolates_positions_for_other_sizes():
    tower = load("clip")
    table = np.linspace(0.0, 1.0, 4 * 64).reshape(2, 2, 64)
    tower.attnpool.positional_embedding[...] = np.concatenate(
        [np.ones((1, 64)), table.reshape(4, 64)]
    )
    same = tower.attnpool._positions(2, 2)
    wider = np.asarray(tower.attnpool._positions(2, 4))
    np.testing.assert_array_equal(wider[0], same[0])
    grid = wider[1:].reshape(2, 4, 64)
    # Symmetric about the middle, where a linear ramp stays what it is.
    np.testing.assert_allclose(grid.mean(1), table.mean(1), atol=1e-5)
    assert (np.diff(grid, axis=1) > 0).all()
    output = evaluate(tower, REFERENCE.synthetic_images(1, 96))
    assert output.pooled.shape == (1, 20) and output.sequence.shape == (1, 9, 64)


def test_zero_init_starts_residual_branches_at_zero():
    config = ResNetConfig(stage_widths=(8,), depths=(1,), zero_init_residual=True)
    (block,) = nnx.jit(lambda: ResNet(config, rngs=nnx.Rngs(0)))().layer1
    assert not block.bn3.scale[...].any() and block.bn2.scale[...].all()


@pytest.mark.parametrize(
    ("config_class", "fields", "message"),
    [
        (ResNetConfig, {"block": "dense"}, "block is 'dense'; it must be 'basic' or 'bottleneck'"),
        (ResNetConfig, {"depths": (1, 2)}, r"depths \(1, 2\) must have one number a stage"),
        (ResNetConfig, {"depths": (3, 4, 0, 3)}, r"depths is \(3, 4, 0, 3\); it must be positive"),
        (ResNetConfig, {"stem_width": 0}, "stem_width is 0; it must be positive"),
        (ResNetConfig, {"stage_widths": (6, 8, 8, 8)}, "positive multiples of 4"),
        (ClipResNetConfig, {"base_width": 3}, "base_width is 3; it must be even"),
        (ClipResNetConfig, {"num_heads": 5}, "num_heads is 5; it must divide its 2048 channels"),
        (ClipResNetConfig, {"image_size": 100}, "image_size is 100; it must be a multiple of 32"),
    ],
)
def test_impossible_shapes_are_refused(config_class: type, fields: dict, message: str):
    with pytest.raises(ValueError, match=message):
        config_class(**fields)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("hidden_act", "gelu", "hidden_act='gelu'; only 'relu' is supported"),
        ("num_channels", 4, "num_channels=4; only 3 is supported"),
    ],
)
def test_hugging_face_networks_of_another_kind_are_refused(
    tmp_path: Path, field: str, value: object, message: str
):
    shutil.copytree(GOLDEN / "small_resnet", tmp_path, dirs_exist_ok=True)
    saved = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(saved | {field: value}))
    with pytest.raises(ValueError, match=message):
        from_pretrained(tmp_path)


@pytest.mark.oracle
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"layer_type": "basic"},
        {"downsample_in_bottleneck": True, "downsample_in_first_stage": True},
        {"depths": [2, 1, 1, 2], "hidden_sizes": [8, 20, 12, 36], "embedding_size": 7},
    ],
)
@pytest.mark.parametrize("size", [45, 64])
def test_features_equal_the_live_original(tmp_path: Path, fields: dict, size: int):
    network = REFERENCE.small_hugging_face_resnet(**fields)
    network.save_pretrained(tmp_path)
    batch = REFERENCE.synthetic_images(2, size)
    expected = REFERENCE.reference(network, REFERENCE.hugging_face_outputs, batch)
    output = evaluate(from_pretrained(tmp_path), batch)
    np.testing.assert_allclose(output.pooled, expected["pooled"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(output.sequence, expected["sequence"], rtol=1e-5, atol=1e-5)
