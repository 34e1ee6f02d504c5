"""Tests of the ViT tower against outputs of transformers, timm and open_clip.

`golden/towers/make_golden_transformers.py` wrote the reference data: a random network of odd sizes
in each library's own form.
"""

import json
import runpy
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from otter_jax.models import create_image_tower, from_pretrained
from otter_jax.models.transformer import ACTIVATIONS
from otter_jax.models.vit import PRESETS, ViT, ViTConfig
from otter_jax.models.vit_layouts import resample_positions
from otter_jax.models.weights import checkpoint_arrays, recognise_layout

GOLDEN = Path(__file__).parents[1] / "golden" / "towers"
REFERENCE = SimpleNamespace(**runpy.run_path(str(GOLDEN / "make_golden_transformers.py")))
IMAGES = REFERENCE.image_batch()
HEADS = {"num_attention_heads": 6}  # A state dict does not tell.
TIMM, OPEN_CLIP = GOLDEN / "small_timm_vit.safetensors", GOLDEN / "small_open_clip.safetensors"
SMALL = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "intermediate_size": 40,
    "image_size": 12,
    "patch_size": 4,
}
TINY = {**SMALL, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}


@pytest.fixture(scope="module")
def small() -> ViT:
    return from_pretrained(GOLDEN / "small_vit")


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN / "small_vit.npz"))


def rewritten(path: Path, source: Path, rename: Any, config: dict[str, Any] | None = None) -> Path:
    """Copy a checkpoint with other names, and with other fields in its config.json if asked."""
    arrays = load_file(source / "model.safetensors" if source.is_dir() else source)
    arrays = {rename(name): array for name, array in arrays.items()}
    if not source.is_dir():
        save_file(arrays, path / "renamed.safetensors")
        return path / "renamed.safetensors"
    fields = json.loads((source / "config.json").read_text()) | (config or {})
    (path / "config.json").write_text(json.dumps(fields))
    save_file(arrays, path / "model.safetensors")
    return path


def gradients_of_cubes(tower: nnx.Module, *inputs: np.ndarray) -> nnx.Module:
    """Return a tower that holds, in place of each parameter, its gradient."""
    graph, params = nnx.split(tower, nnx.Param)

    @jax.jit
    def gradients(params: nnx.State) -> nnx.State:
        return jax.grad(lambda p: jnp.sum(nnx.merge(graph, p)(*inputs).pooled ** 3))(params)

    return nnx.merge(graph, gradients(params))


def assert_same_gradients(tower: nnx.Module, golden: dict[str, np.ndarray], *inputs: np.ndarray):
    prefix = "gradient/"
    expected = {n.removeprefix(prefix): a for n, a in golden.items() if n.startswith(prefix)}
    layout = recognise_layout(type(tower), expected)
    expected = layout.respell(expected)
    gradients = checkpoint_arrays(gradients_of_cubes(tower, *inputs), layout.names)
    for name, gradient in gradients.items():
        # A key's bias adds the same to all scores of a query, which the softmax takes out again.
        tolerance = 1e-3 * expected[name][0] + 1e-4
        difference = np.abs(REFERENCE.summary(gradient) - expected[name])
        assert difference.max() < tolerance, name


@pytest.mark.parametrize(
    ("folder", "outputs"), [("small_vit", "small_vit"), ("small_clip", "small_clip_vision")]
)
def test_outputs_and_gradients_are_those_of_transformers(folder: str, outputs: str):
    tower = from_pretrained(GOLDEN / folder, tower="image")
    golden = dict(np.load(GOLDEN / f"{outputs}.npz"))
    pooled, sequence = tower(IMAGES)
    assert pooled.shape == (3, tower.width) and pooled.dtype == jnp.float32
    np.testing.assert_allclose(pooled, golden["pooled"], atol=1e-5)
    np.testing.assert_allclose(sequence, golden["sequence"], atol=1e-5)
    assert_same_gradients(tower, golden, IMAGES)


def test_outputs_are_those_of_timm():
    tower, golden = from_pretrained(TIMM, **HEADS), np.load(GOLDEN / "small_timm_vit.npz")
    assert tower.mean == (0.5, 0.5, 0.5) and tower.config.layer_norm_eps == 1e-6
    pooled, sequence = tower(IMAGES)
    np.testing.assert_allclose(pooled, golden["pooled"], atol=1e-5)
    np.testing.assert_allclose(sequence, golden["sequence"], atol=1e-5)


def test_projected_outputs_are_those_of_open_clip():
    tower = from_pretrained(OPEN_CLIP, tower="image", **HEADS)
    assert tower.config.pre_norm and not tower.config.patch_bias
    assert tower.config.hidden_act == "quick_gelu" and tower.mean[0] == 0.48145466
    projected = tower(IMAGES).pooled @ load_file(OPEN_CLIP)["visual.proj"].astype(np.float32)
    np.testing.assert_allclose(
        projected, np.load(GOLDEN / "small_open_clip.npz")["image"], atol=1e-5
    )


def test_names_of_declips_release_are_read(tmp_path: Path):
    def rename(name: str) -> str:
        is_visual = name.startswith(("visual.", "logit_scale"))
        return f"module.{name}" if is_visual else f"module.encode_text.{name}"

    tower = from_pretrained(rewritten(tmp_path, OPEN_CLIP, rename), tower="image", **HEADS)
    original = from_pretrained(OPEN_CLIP, tower="image", **HEADS)
    np.testing.assert_array_equal(tower(IMAGES).pooled, original(IMAGES).pooled)
    # Its images are normalised with ImageNet's statistics, unlike CLIP's.
    assert tower.mean == (0.485, 0.456, 0.406)


def transformers_5_name(name: str) -> str:
    """The name in the state dict of a ViT in transformers 5."""
    for old, new in (
        ("encoder.layer.", "layers."),
        ("attention.attention.query", "attention.q_proj"),
        ("attention.attention.key", "attention.k_proj"),
        ("attention.attention.value", "attention.v_proj"),
        ("attention.output.dense", "attention.o_proj"),
        ("intermediate.dense", "mlp.fc1"),
        ("output.dense", "mlp.fc2"),
    ):
        name = name.replace(old, new)
    return name


@pytest.mark.parametrize(
    "rename", ["vit.{}".format, transformers_5_name], ids=["classifier", "transformers 5"]
)
def test_other_spellings_of_hugging_face_are_read(
    tmp_path: Path, golden: dict[str, np.ndarray], rename: Any
):
    tower = from_pretrained(rewritten(tmp_path, GOLDEN / "small_vit", rename))
    np.testing.assert_allclose(tower(IMAGES).pooled, golden["pooled"], atol=1e-5)


@pytest.mark.parametrize("prefix", ["", "vision_model."])
def test_vision_half_of_clip_may_stand_alone(tmp_path: Path, prefix: str):
    whole = load_file(GOLDEN / "small_clip" / "model.safetensors")
    half = {name: a for name, a in whole.items() if name.startswith("vision_model.")}
    save_file(
        {name.replace("vision_model.", prefix): array for name, array in half.items()},
        tmp_path / "model.safetensors",
    )
    saved = json.loads((GOLDEN / "small_clip" / "config.json").read_text())["vision_config"]
    (tmp_path / "config.json").write_text(json.dumps(saved))
    golden = np.load(GOLDEN / "small_clip_vision.npz")
    pooled = from_pretrained(tmp_path)(IMAGES).pooled
    np.testing.assert_allclose(pooled, golden["pooled"], atol=1e-5)


@pytest.mark.parametrize(
    ("folder", "eps"), [("small_vit", 3e-4), ("small_clip", 2e-3)], ids=["vit", "clip"]
)
def test_shape_of_a_lone_file_is_read_from_its_arrays(tmp_path: Path, folder: str, eps: float):
    shutil.copy(GOLDEN / folder / "model.safetensors", tmp_path / "lone.safetensors")
    lone, settings_ = tmp_path / "lone.safetensors", {"layer_norm_eps": eps, **HEADS}
    tower = from_pretrained(lone, tower="image", **settings_)
    assert tower.config == from_pretrained(GOLDEN / folder, tower="image").config


def test_heads_of_a_lone_file_are_64_channels_wide():
    names = {
        "cls_token": (1, 1, 192),
        "pos_embed": (1, 5, 192),
        "patch_embed.proj.weight": (192, 3, 8, 8),
        "blocks.0.mlp.fc1.weight": (10, 192),
        "blocks.11.mlp.fc1.weight": (10, 192),
    }
    arrays = {name: np.zeros(shape, np.float32) for name, shape in names.items()}
    layout = recognise_layout(ViT, arrays)
    fields = layout.fields({}, layout.respell(arrays))
    assert (fields["num_attention_heads"].value, fields["num_hidden_layers"]) == (3, 2)
    assert (fields["image_size"], fields["patch_size"], fields["qkv_bias"]) == (16, 8, False)


def test_timms_clip_form_is_recognised():
    arrays = {**load_file(TIMM), "norm_pre.weight": np.ones(48, np.float32)}
    layout = recognise_layout(ViT, arrays)
    for suffix, activation in (("_quickgelu", "quick_gelu"), ("", "gelu")):
        saved = {"architecture": f"vit_base_patch32_clip{suffix}_224"}
        config = ViTConfig(**layout.fields(saved, layout.respell(arrays)))
        assert config.pre_norm and config.hidden_act == activation
        assert config.mean[0] == 0.48145466 and config.layer_norm_eps == 1e-5


@pytest.mark.parametrize("size", [3, 4, 10, 16])
def test_resampled_positions_are_those_of_pytorch(size: int):
    golden = np.load(GOLDEN / "positions.npz")
    resampled = resample_positions(golden["table"], size)
    np.testing.assert_array_equal(resampled[0], golden["table"][0])
    np.testing.assert_allclose(resampled[1:], golden[f"grid_{size}"], atol=1e-5)


def test_positions_of_the_same_grid_stay_as_they_are():
    table = np.load(GOLDEN / "positions.npz")["table"]
    assert resample_positions(table, 7) is table


def test_tower_loaded_for_other_images_is_timms():
    size = REFERENCE.OTHER_IMAGE_SIZE
    tower = from_pretrained(TIMM, image_size=size, **HEADS)
    pooled = tower(REFERENCE.image_batch(size=size)).pooled
    golden = np.load(GOLDEN / "small_timm_vit.npz")["pooled_at_other_size"]
    np.testing.assert_allclose(pooled, golden, atol=1e-5)


def test_remainder_of_pixels_is_cut_off(golden: dict[str, np.ndarray]):
    tower = from_pretrained(GOLDEN / "small_vit", image_size=15)
    padded = np.pad(IMAGES, ((0, 0), (0, 3), (0, 3), (0, 0)), constant_values=7.0)
    np.testing.assert_allclose(tower(padded).pooled, golden["pooled"], atol=1e-5)


@settings(max_examples=8, deadline=None)
@given(order=st.permutations(range(9)))
def test_patches_are_told_apart_by_their_positions_only(order: list[int]):
    """Without position embeddings, a ViT sees a bag of patches."""
    tower = from_pretrained(GOLDEN / "small_vit")
    patches = IMAGES.reshape(3, 3, 4, 3, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(3, 9, 4, 4, 3)
    shuffled = patches[:, order].reshape(3, 3, 3, 4, 4, 3).transpose(0, 1, 3, 2, 4, 5)
    shuffled = shuffled.reshape(IMAGES.shape)
    if order != sorted(order):
        assert np.abs(tower(shuffled).pooled - tower(IMAGES).pooled).max() > 1e-4
    tower.position_embeddings[...] = jnp.zeros((10, 48))
    pooled, sequence = tower(IMAGES)
    np.testing.assert_allclose(tower(shuffled).pooled, pooled, atol=1e-5)
    np.testing.assert_allclose(
        tower(shuffled).sequence[:, 1:], sequence[:, 1:][:, order], atol=1e-5
    )


@pytest.mark.parametrize(
    "rate", ["hidden_dropout_prob", "attention_probs_dropout_prob", "stochastic_depth_rate"]
)
def test_dropout_needs_training_a_key_and_a_rate(rate: str, golden: dict[str, np.ndarray]):
    key = jax.random.key(0)
    tower = from_pretrained(GOLDEN / "small_vit", **{rate: 0.5})
    for arguments in ({"dropout_key": key}, {"train": True}):
        np.testing.assert_allclose(tower(IMAGES, **arguments).pooled, golden["pooled"], atol=1e-5)
    dropped = tower(IMAGES, train=True, dropout_key=key).pooled
    assert np.abs(dropped - golden["pooled"]).max() > 0.01
    np.testing.assert_array_equal(dropped, tower(IMAGES, train=True, dropout_key=key).pooled)
    other = tower(IMAGES, train=True, dropout_key=jax.random.key(1)).pooled
    assert np.abs(dropped - other).max() > 0.01


def test_stochastic_depth_drops_whole_examples_at_its_rate():
    """Of a single block at rate 0.5, each of the two branches is added twofold or not at all."""
    fields = {**TINY, "num_hidden_layers": 2, "stochastic_depth_rate": 0.5}
    tower = ViT(ViTConfig(**fields), rngs=nnx.Rngs(0))
    assert [block.drop_rate for block in tower.blocks] == [0.0, 0.5]
    images = np.repeat(IMAGES[:1], 400, axis=0)
    pooled = np.asarray(tower(images, train=True, dropout_key=jax.random.key(0)).pooled)
    kinds, counts = np.unique(pooled.round(4), axis=0, return_counts=True)
    assert len(kinds) == 4 and np.all(np.abs(counts - 100) < 40)


def test_remat_saves_memory_where_layers_are_a_loop():
    def temporaries(*, remat: bool) -> int:
        shape = {"hidden_size": 32, "num_hidden_layers": 6, "num_attention_heads": 2}
        config = ViTConfig(
            image_size=64,
            patch_size=4,
            intermediate_size=128,
            remat=remat,
            scan_layers=True,
            **shape,
        )
        graph, parameters = nnx.split(ViT(config, rngs=nnx.Rngs(0)))

        def loss(parameters: nnx.State, images: jax.Array) -> jax.Array:
            return jnp.sum(nnx.merge(graph, parameters)(images, train=True).pooled ** 2)

        images = jax.ShapeDtypeStruct((4, 64, 64, 3), jnp.uint8)
        program = jax.jit(jax.grad(loss)).lower(parameters, images).compile()
        return program.memory_analysis().temp_size_in_bytes

    assert temporaries(remat=True) < 0.5 * temporaries(remat=False)


def test_remat_changes_no_numbers(small: ViT):
    kept = gradients_of_cubes(small, IMAGES)
    again = gradients_of_cubes(from_pretrained(GOLDEN / "small_vit", remat=True), IMAGES)
    for first, second in zip(
        jax.tree.leaves(nnx.state(kept)), jax.tree.leaves(nnx.state(again)), strict=True
    ):
        np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-4)


def test_bfloat16_computes_nearby_with_float32_parameters(golden: dict[str, np.ndarray]):
    tower = from_pretrained(GOLDEN / "small_vit", dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(tower))} == {jnp.dtype("float32")}
    pooled, sequence = tower(IMAGES)
    assert pooled.dtype == jnp.float32 and sequence.dtype == jnp.bfloat16
    assert 1e-5 < np.abs(pooled - golden["pooled"]).max() < 0.2


def test_activations_follow_their_definitions():
    x = np.linspace(-4, 4, 33)
    cubic = x + 0.044715 * x**3
    np.testing.assert_allclose(
        ACTIVATIONS["quick_gelu"](x), x / (1 + np.exp(-1.702 * x)), atol=1e-6
    )
    for name in ("gelu_new", "gelu_pytorch_tanh"):
        expected = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * cubic))
        np.testing.assert_allclose(ACTIVATIONS[name](x), expected, atol=1e-6)


# Counts of timm's networks without head, and of OpenAI's image towers without projection.
@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("vit_s16", 21_665_664),
        ("vit_b32", 87_455_232),
        ("vit_b16", 85_798_656),
        ("vit_l14", 303_178_752),
        ("clip_vit_b32", 87_849_216 - 768 * 512),
        ("clip_vit_l14", 303_966_208 - 1024 * 768),
    ],
)
def test_presets_have_the_published_number_of_parameters(name: str, count: int):
    preset = PRESETS[name]
    tower = nnx.eval_shape(lambda: preset.tower(ViTConfig(**preset.fields), rngs=nnx.Rngs(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(tower, nnx.Param))) == count


def test_presets_are_made_by_name():
    tower = create_image_tower("clip_vit_b16", rngs=nnx.Rngs(0), **TINY)
    assert isinstance(tower, ViT) and tower.embeddings_norm is not None
    assert tower(IMAGES).sequence.shape == (3, 10, 16)


def test_images_of_another_size_are_refused(small: ViT):
    with pytest.raises(ValueError, match=r"images are 12 x 16 pixels; .* 12 x 12 .*image_size="):
        small(np.zeros((1, 12, 16, 3), np.float32))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_act": "silu"}, r"ViTConfig's hidden_act is 'silu'; it must be one of \['gelu'"),
        ({"num_attention_heads": 5}, "hidden_size 768 does not divide into 5 attention heads"),
        ({"image_size": 16}, "image_size 16 holds no patch of 32 pixels"),
        ({"patch_size": 0}, "image_size 224 holds no patch of 0 pixels"),
    ],
)
def test_what_no_vit_has_is_refused(fields: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        ViTConfig(**fields)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        # Of two norms, some positions, a single layer scale, distillation: no network of timm's.
        ({"norm.weight": None, "fc_norm.weight": (48,)}, r"norm.bias +\(48,\) +unexpected"),
        ({"reg_token": (1, 4, 48)}, "10 position embeddings; this ViT needs one for 5 tokens"),
        ({"blocks.0.ls1.gamma": (48,)}, r"blocks.0.ls2.gamma +missing"),
        ({"dist_token": (1, 1, 48)}, "distilled DeiTs are not supported"),
        ({"blocks.0.attn.q_norm.weight": (8,)}, r"q_norm.weight +\(8,\) +unexpected"),
        ({"pos_embed": (1, 8, 48)}, "8 position embeddings; this ViT needs one for the class"),
        ({"pos_embed": None}, "the checkpoint has no 'pos_embed', which tells"),
        ({"blocks.0.mlp.fc1.weight": None}, "the checkpoint has no 'blocks.0.mlp.fc1.weight'"),
    ],
)
def test_other_networks_of_timm_are_refused(
    tmp_path: Path, changed: dict[str, tuple[int, ...] | None], message: str
):
    arrays = load_file(TIMM)
    for name, shape in changed.items():
        arrays.pop(name, None)
        if shape is not None:
            arrays[name] = np.zeros(shape, np.float32)
    save_file(arrays, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=message):
        from_pretrained(tmp_path / "other.safetensors", **HEADS)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"image_size": 16}, "image_size is 16; the position embeddings are those of 12 pixels"),
        ({"image_size": [12, 16]}, r"image_size is \[12, 16\]; this ViT needs a square"),
        ({"num_hidden_layers": 2}, r"encoder.layer.2.* +unexpected"),
    ],
)
def test_config_json_that_contradicts_the_weights_is_refused(
    tmp_path: Path, config: dict[str, Any], message: str
):
    folder = rewritten(tmp_path, GOLDEN / "small_vit", str, config)
    with pytest.raises(ValueError, match=message):
        from_pretrained(folder)


@pytest.mark.oracle
@pytest.mark.parametrize(
    "overrides",
    [
        {"hidden_act": "gelu_new", "layer_norm_eps": 1e-12, "image_size": 15},
        {"hidden_act": "quick_gelu", "qkv_bias": False, "num_attention_heads": 3},
    ],
)
def test_vits_saved_by_live_transformers_are_the_same(tmp_path: Path, overrides: dict[str, Any]):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    network = REFERENCE.hugging_face_vit(**overrides)
    network.save_pretrained(tmp_path)
    images = REFERENCE.image_batch(size=overrides.get("image_size", 12))
    golden, tower = REFERENCE.hugging_face_image_outputs(network, images), from_pretrained(tmp_path)
    np.testing.assert_allclose(tower(images).pooled, golden["pooled"], atol=1e-5)
    np.testing.assert_allclose(tower(images).sequence, golden["sequence"], atol=1e-5)
    assert_same_gradients(tower, golden, images)


@pytest.mark.oracle
@pytest.mark.parametrize("half", ["vision_model", None], ids=["vision half", "both halves"])
def test_clips_saved_by_live_transformers_are_the_same(tmp_path: Path, half: str | None):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    network = REFERENCE.hugging_face_clip({"hidden_act": "gelu", "intermediate_size": 72}, {})
    (getattr(network, half) if half else network).save_pretrained(tmp_path)
    golden = REFERENCE.hugging_face_image_outputs(network.vision_model, IMAGES)
    tower = from_pretrained(tmp_path, tower="image")
    np.testing.assert_allclose(tower(IMAGES).pooled, golden["pooled"], atol=1e-5)
    np.testing.assert_allclose(tower(IMAGES).sequence, golden["sequence"], atol=1e-5)
    assert_same_gradients(tower, golden, IMAGES)
