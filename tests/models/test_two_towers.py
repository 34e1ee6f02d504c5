"""Tests of files with two towers: every family's names, from arrays that are known."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from otter_jax.models import (
    clip_text,
    clip_text_layouts,
    from_pretrained,
    resnet,
    resnet_layouts,
    vit,
    vit_layouts,
)
from otter_jax.models.bert import Bert
from otter_jax.models.clip_text import ClipText
from otter_jax.models.dual_encoder import DualEncoder
from otter_jax.models.pretrained import create_image_tower, create_tower, make_abstract
from otter_jax.models.resnet import ClipResNet, ResNet
from otter_jax.models.two_towers import CLIP_STATISTICS, IMAGENET_STATISTICS, find_half
from otter_jax.models.vit import ViT
from otter_jax.models.weights import checkpoint_arrays

Arrays = dict[str, np.ndarray]

WIDTH, EMBED_DIM, LAYERS = 256, 12, 1  # A width whose number of heads is known.


def draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def random_tower(tower_class: type[nnx.Module], config: Any) -> nnx.Module:
    """A tower with weights drawn by NumPy, which compiles nothing."""
    tower = make_abstract(tower_class, config)
    for _, variable in nnx.to_flat_state(nnx.state(tower, (nnx.Param, nnx.BatchStat))):
        variable.set_value(jnp.asarray(draw(*variable.shape)))
    return tower


def transformer_arrays(prefix: str, width: int = WIDTH) -> Arrays:
    """A block with OpenAI's names."""
    block = f"{prefix}transformer.resblocks.0."
    return {
        f"{block}attn.in_proj_weight": draw(3 * width, width),
        f"{block}attn.in_proj_bias": draw(3 * width),
        f"{block}attn.out_proj.weight": draw(width, width),
        f"{block}attn.out_proj.bias": draw(width),
        f"{block}ln_1.weight": draw(width),
        f"{block}ln_1.bias": draw(width),
        f"{block}ln_2.weight": draw(width),
        f"{block}ln_2.bias": draw(width),
        f"{block}mlp.c_fc.weight": draw(4 * width, width),
        f"{block}mlp.c_fc.bias": draw(4 * width),
        f"{block}mlp.c_proj.weight": draw(width, 4 * width),
        f"{block}mlp.c_proj.bias": draw(width),
    }


def vit_arrays() -> Arrays:
    """An image tower with OpenAI's names, and the matrix behind it."""
    return transformer_arrays("visual.") | {
        "visual.class_embedding": draw(WIDTH),
        "visual.positional_embedding": draw(5, WIDTH),
        "visual.conv1.weight": draw(WIDTH, 3, 4, 4),
        "visual.ln_pre.weight": draw(WIDTH),
        "visual.ln_pre.bias": draw(WIDTH),
        "visual.ln_post.weight": draw(WIDTH),
        "visual.ln_post.bias": draw(WIDTH),
        "visual.proj": draw(WIDTH, EMBED_DIM),
    }


def text_arrays(prefix: str = "") -> Arrays:
    """A text tower with OpenAI's names."""
    return transformer_arrays(prefix) | {
        f"{prefix}token_embedding.weight": draw(30, WIDTH),
        f"{prefix}positional_embedding": draw(9, WIDTH),
        f"{prefix}ln_final.weight": draw(WIDTH),
        f"{prefix}ln_final.bias": draw(WIDTH),
    }


def openai() -> Arrays:
    return vit_arrays() | text_arrays() | {
        "text_projection": draw(WIDTH, EMBED_DIM),
        "logit_scale": np.float32(4.5),
        "input_resolution": np.array(8),
        "context_length": np.array(9),
        "vocab_size": np.array(30),
    }  # fmt: skip


def open_clip_custom() -> Arrays:
    projection = {"text.text_projection": draw(WIDTH, EMBED_DIM)}
    return vit_arrays() | text_arrays("text.") | projection | {"logit_scale": np.float32(4.5)}


def declip() -> Arrays:
    arrays = vit_arrays() | text_arrays("encode_text.") | {
        "encode_text.text_projection.weight": draw(EMBED_DIM, WIDTH),
        "encode_text.text_projection.bias": draw(EMBED_DIM),
        "logit_scale": np.float32([4.5]),
        "projector.linear1.weight": draw(6, EMBED_DIM),
        "predictor.layer2.bias": draw(6),
        "text_label_predictor.weight": draw(30, WIDTH),
    }  # fmt: skip
    return {f"module.{name}": array for name, array in arrays.items()}


FAMILIES = {"openai": openai, "open_clip": open_clip_custom, "declip": declip}


def save(folder: Path, arrays: Arrays) -> Path:
    path = folder / "model.safetensors"
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path)
    return path


@pytest.mark.parametrize("family", FAMILIES)
def test_both_towers_with_projections_and_scale(tmp_path: Path, family: str):
    arrays = FAMILIES[family]()
    model = from_pretrained(save(tmp_path, arrays))
    assert isinstance(model, DualEncoder) and model.embed_dim == EMBED_DIM
    assert (type(model.image), type(model.text)) == (ViT, ClipText)
    assert float(model.log_scale[...]) == 4.5
    assert model.image.config.image_size == 8 and model.text.config.vocab_size == 30
    features = draw(2, WIDTH)
    image = features @ vit_arrays()["visual.proj"]
    np.testing.assert_allclose(model.image_projection(features), image, rtol=1e-5, atol=1e-5)
    if family == "declip":
        weight, bias = draw(EMBED_DIM, WIDTH), draw(EMBED_DIM)
        text = features @ weight.T + bias
    else:
        text = features @ draw(WIDTH, EMBED_DIM)
    np.testing.assert_allclose(model.text_projection(features), text, rtol=1e-5, atol=1e-5)
    tokens = np.asarray(model.text.token_embeddings.embedding[...])
    np.testing.assert_array_equal(tokens, draw(30, WIDTH))
    kernel = np.asarray(model.image.blocks[0].attention.key.kernel[...])
    np.testing.assert_array_equal(kernel, draw(3 * WIDTH, WIDTH)[WIDTH : 2 * WIDTH].T)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_tower_of_two(tmp_path: Path, family: str):
    path = save(tmp_path, FAMILIES[family]())
    image = from_pretrained(path, tower="image", hidden_dropout_prob=0.3)
    assert isinstance(image, ViT) and image.config.hidden_dropout_prob == 0.3
    assert isinstance(from_pretrained(path, tower="text"), ClipText)
    statistics = IMAGENET_STATISTICS if family == "declip" else CLIP_STATISTICS
    assert {"mean": image.mean, "std": image.std} == statistics
    tower, projection = create_tower(
        "text",
        "clip_text",
        str(path),
        rngs=nnx.Rngs(0),
        **{"hidden_size": WIDTH, "num_attention_heads": 4, "intermediate_size": 1024},
    )
    assert isinstance(tower, ClipText) and projection.out_features == EMBED_DIM


def test_settings_of_one_tower_need_its_name(tmp_path: Path):
    path = save(tmp_path, openai())
    with pytest.raises(ValueError, match=r"two towers: settings .*\(remat\) need tower='image'"):
        from_pretrained(path, remat=True)
    with pytest.raises(ValueError, match="tower is 'both'; it must be 'image', 'text' or None"):
        from_pretrained(path, tower="both")


def test_another_tower_than_the_name_says_is_refused_with_the_difference(tmp_path: Path):
    path = save(tmp_path, openai())
    with pytest.raises(ValueError, match=r"holds a ViT with hidden_size 256; clip_vit_b32 has 768"):
        create_image_tower("clip_vit_b32", str(path), rngs=nnx.Rngs(0))


def test_a_file_with_one_side_has_no_other(tmp_path: Path):
    path = save(tmp_path, vit_arrays())
    assert isinstance(from_pretrained(path), ViT)
    with pytest.raises(ValueError, match="holds an image tower, and no text tower"):
        from_pretrained(path, tower="text")
    assert find_half("image", {"layer1.0.conv1.weight": draw(1)}) is None


def test_missing_weights_of_a_half_are_listed(tmp_path: Path):
    arrays = openai()
    del arrays["ln_final.bias"], arrays["visual.ln_post.bias"]
    with pytest.raises(
        ValueError, match=r"ViT: 1 names differ\n.*\n  visual.ln_post.bias  missing"
    ):
        from_pretrained(save(tmp_path, arrays))
    with pytest.raises(ValueError, match=r"ClipText: 1 names differ\n.*\n  ln_final.bias  missing"):
        from_pretrained(tmp_path / "model.safetensors", tower="text")


def test_declip_resnet_has_embeddings_for_features(tmp_path: Path):
    config = resnet.ClipResNetConfig(base_width=16, depths=(1, 1, 1, 1), width=10, num_heads=8,
                                     image_size=32)  # fmt: skip
    image = checkpoint_arrays(random_tower(ClipResNet, config), resnet_layouts.CLIP_LAYOUT.names)
    arrays = {f"module.visual.{name}": array for name, array in image.items()} | {
        f"module.{name}": array for name, array in text_arrays("encode_text.").items()
    }
    arrays |= {
        "module.encode_text.text_projection.weight": draw(10, WIDTH),
        "module.encode_text.text_projection.bias": draw(10),
        "module.logit_scale": np.float32([4.5]),
    }
    model = from_pretrained(save(tmp_path, arrays))
    assert isinstance(model.image, ClipResNet) and model.embed_dim == 10
    assert model.image.mean == IMAGENET_STATISTICS["mean"]
    x = draw(2, 10)
    np.testing.assert_array_equal(model.image_projection(x), x)


@pytest.mark.parametrize("projected", [True, False])
def test_otter_distillation_file_is_its_student(tmp_path: Path, projected: bool):
    image = random_tower(ResNet, resnet.ResNetConfig(block="basic", stage_widths=(8,), depths=(1,)))
    settings = {"vocab_size": 20, "num_hidden_layers": 1, "intermediate_size": 16}
    text = random_tower(Bert, Bert.config_class(**settings, max_position_embeddings=12))
    embed_dim = 12 if projected else 768
    student = {
        **{f"image_encoder.model.{k}": v for k, v in torch_arrays(image).items()},
        **{f"text_encoder.model.{k}": v for k, v in torch_arrays(text).items()},
        "text_encoder.model.embeddings.position_ids": np.arange(12)[None],
        "text_encoder.model.pooler.dense.bias": draw(768),
        "image_encoder.model.fc.weight": draw(embed_dim, 8),
        "image_encoder.model.fc.bias": draw(embed_dim),
        "contrastive_loss.T": np.float32(4.25),
    }
    if projected:
        student["text_encoder.fc.weight"], student["text_encoder.fc.bias"] = draw(12, 768), draw(12)
    arrays = {f"student.{name}": array for name, array in student.items()}
    arrays |= {f"teacher.{name}": np.zeros_like(array) for name, array in student.items()}
    arrays["dist_loss.T_s"] = np.float32(4.125)
    model = from_pretrained(save(tmp_path, arrays))
    assert (type(model.image), type(model.text)) == (ResNet, Bert)
    assert model.embed_dim == embed_dim
    assert float(model.log_scale[...]) == 4.25
    assert float(model.distillation_log_scale[...]) == 4.125
    assert model.image.mean == CLIP_STATISTICS["mean"]
    features = draw(2, 8)
    wanted = features @ draw(embed_dim, 8).T + draw(embed_dim)
    np.testing.assert_allclose(model.image_projection(features), wanted, rtol=1e-5, atol=1e-5)
    found = np.asarray(model.text.layers[0].output.kernel[...])
    np.testing.assert_array_equal(found, np.asarray(text.layers[0].output.kernel[...]))


def torch_arrays(tower: nnx.Module) -> Arrays:
    return checkpoint_arrays(tower, tower.checkpoint_layouts[0].names)


def test_scales_that_no_file_has_are_the_usual_ones(tmp_path: Path):
    model = from_pretrained(save(tmp_path, openai()))
    assert float(model.distillation_log_scale[...]) == jnp.float32(3.9)


def test_hugging_face_folders_of_two_towers(tmp_path: Path):
    image = vit.ViTConfig(**vit.CLIP_FORM, **SHAPE, image_size=8, patch_size=4)
    text = clip_text.ClipTextConfig(**SHAPE, vocab_size=30)
    towers = {
        "vision_model.": (random_tower(ViT, image), vit_layouts.HUGGING_FACE_CLIP_LAYOUT),
        "text_model.": (random_tower(ClipText, text), clip_text_layouts.HUGGING_FACE_LAYOUT),
    }
    arrays = {
        f"{prefix}{name}": array
        for prefix, (tower, layout) in towers.items()
        for name, array in checkpoint_arrays(tower, layout.names).items()
    }
    arrays |= {
        "visual_projection.weight": draw(EMBED_DIM, WIDTH),
        "text_projection.weight": draw(EMBED_DIM, WIDTH),
        "logit_scale": np.float32(4.5),
    }
    save(tmp_path, arrays)
    config = '{"model_type": "clip", "vision_config": {"num_attention_heads": 2, "image_size": 8, '
    config += '"patch_size": 4}, "text_config": {"num_attention_heads": 4, "eos_token_id": 29}}'
    (tmp_path / "config.json").write_text(config)
    model = from_pretrained(tmp_path)
    assert model.image.config.num_attention_heads == 2
    assert model.text.config.num_attention_heads == 4 and model.text.config.eos_token_id == 29
    wanted = draw(2, WIDTH) @ draw(EMBED_DIM, WIDTH).T
    np.testing.assert_allclose(model.text_projection(draw(2, WIDTH)), wanted, rtol=1e-5, atol=1e-5)


SHAPE = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 1,
    "intermediate_size": 4 * WIDTH,
}


@pytest.mark.parametrize("eos", [None, -1, 97, 49407])
def test_an_end_of_text_that_no_token_can_be_is_refused(tmp_path: Path, eos: int | None) -> None:
    """Every text would be pooled at its first token; without a word, CLIP's own is meant."""
    folder = tmp_path / "clip"
    shutil.copytree(Path(__file__).parents[1] / "golden" / "towers" / "small_clip", folder)
    saved = json.loads((folder / "config.json").read_text())
    saved["text_config"].pop("eos_token_id", None)
    if eos is not None:
        saved["text_config"]["eos_token_id"] = eos
    (folder / "config.json").write_text(json.dumps(saved))
    with pytest.raises(ValueError, match="which a vocabulary of 97 does not have"):
        from_pretrained(folder)
