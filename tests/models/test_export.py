"""Tests of writing models: what is written comes back bit for bit, and transformers reads it."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from otter_jax.models import bert, clip_text, efficientnet, from_pretrained, lora, resnet, vit
from otter_jax.models.dual_encoder import DualEncoder
from otter_jax.models.export import (
    export_dual_encoder,
    export_tower,
    hugging_face_form,
    is_exported,
    load_dual_encoder,
)
from otter_jax.models.pretrained import make_abstract
from otter_jax.models.projections import make_projection

BERT_SHAPE = {
    "vocab_size": 97,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "intermediate_size": 40,
    "layer_norm_eps": 1e-6,
}
BLOCKS = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "intermediate_size": 40,
}
RESNET_SHAPE = {"stem_width": 10, "stage_widths": (24, 40), "depths": (1, 2)}
VIT_SHAPE = BLOCKS | {"image_size": 24, "patch_size": 8}
CLIP_SHAPE = VIT_SHAPE | {"pre_norm": True, "patch_bias": False, "hidden_act": "quick_gelu"}
TEXT_SHAPE = BLOCKS | {"vocab_size": 97, "max_position_embeddings": 20}

TOWERS = {
    "bert": (bert.Bert, BERT_SHAPE),
    "bert with head": (bert.Bert, BERT_SHAPE | {"mlm_head": True, "pooling": "cls"}),
    "roberta": (bert.Roberta, BERT_SHAPE),
    "distilbert": (bert.DistilBert, BERT_SHAPE | {"layer_norm_eps": 1e-12}),
    "mpnet": (bert.MPNet, BERT_SHAPE),
    "vit": (vit.ViT, VIT_SHAPE | {"hidden_act": "gelu_new"}),
    "clip vit": (vit.ViT, CLIP_SHAPE | {"mean": (0.4, 0.5, 0.6)}),
    "clip text": (clip_text.ClipText, TEXT_SHAPE | {"eos_token_id": 96}),
    "resnet": (resnet.ResNet, RESNET_SHAPE | {"mean": (0.4, 0.5, 0.6)}),
    "basic resnet": (resnet.ResNet, RESNET_SHAPE | {"block": "basic"}),
}
# What transformers has no class for.
OTHERS = {
    "clip resnet": (
        resnet.ClipResNet,
        {"base_width": 4, "depths": (1, 1, 1, 1), "width": 10, "num_heads": 2, "image_size": 32},
    ),
    "efficientnet": (efficientnet.EfficientNetLite0, {"num_stages": 2, "width": 12}),
    "unusual distilbert": (bert.DistilBert, BERT_SHAPE),
    "bert of narrow embeddings": (bert.Bert, BERT_SHAPE | {"embedding_size": 16}),
    "bert of one layer": (bert.Bert, BERT_SHAPE | {"shared_layer": True}),
    "roberta of plain positions": (bert.Roberta, BERT_SHAPE | {"positions_after_padding": False}),
    "mpnet of plain positions": (bert.MPNet, BERT_SHAPE | {"positions_after_padding": False}),
    "unusual vit": (vit.ViT, VIT_SHAPE | {"pre_norm": True}),
}


def random_tower(tower_class: type[nnx.Module], settings: dict[str, Any]) -> nnx.Module:
    """A tower with weights drawn by NumPy, which compiles nothing."""
    tower = make_abstract(tower_class, tower_class.config_class(**settings))
    generator = np.random.default_rng(0)
    for path, variable in nnx.to_flat_state(nnx.state(tower, (nnx.Param, nnx.BatchStat))):
        values = generator.normal(scale=0.2, size=variable.shape)
        positive = path[-1] in ("var", "scale")
        variable.set_value(jnp.asarray(1 + abs(values) if positive else values, jnp.float32))
    return tower


def assert_same(found: nnx.Module, wanted: nnx.Module) -> None:
    states = [nnx.to_flat_state(nnx.state(module)) for module in (found, wanted)]
    for (path, value), (other, twin) in zip(*states, strict=True):
        assert path == other
        np.testing.assert_array_equal(value[...], twin[...], err_msg=str(path))


def dual_encoder(image: str, text: str, kind: str) -> DualEncoder:
    everything = TOWERS | OTHERS
    towers = [random_tower(*everything[name]) for name in (image, text)]
    projections = [make_projection(kind, tower.width, 10, rngs=nnx.Rngs(0)) for tower in towers]
    model = DualEncoder(*towers, *projections)
    model.log_scale.set_value(jnp.float32(4.1))
    model.distillation_log_scale.set_value(jnp.float32(3.3))
    return model


@pytest.mark.parametrize("name", TOWERS | OTHERS)
def test_towers_come_back_bit_for_bit(tmp_path: Path, name: str):
    tower_class, settings = (TOWERS | OTHERS)[name]
    tower = random_tower(tower_class, settings)
    export_tower(tower, tmp_path / "out")
    head = {"mlm_head": True} if "head" in name else {}  # Else it is not wanted.
    again = from_pretrained(tmp_path / "out", **head)
    assert type(again) is tower_class and again.config == tower.config
    assert_same(again, tower)
    fields = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (fields["model_type"] == "otter_jax") == (name in OTHERS)
    assert (hugging_face_form(tower) is None) == (name in OTHERS)


@pytest.mark.parametrize(
    ("image", "text", "kind", "model_type"),
    [
        ("clip vit", "clip text", "linear_no_bias", "clip"),
        ("clip vit", "clip text", "linear", "otter_jax"),
        ("vit", "clip text", "linear_no_bias", "otter_jax"),
        ("resnet", "roberta", "linear", "otter_jax"),
        ("efficientnet", "distilbert", "mlp", "otter_jax"),
        ("clip resnet", "bert with head", "linear", "otter_jax"),
    ],
)
def test_dual_encoders_come_back_bit_for_bit(
    tmp_path: Path, image: str, text: str, kind: str, model_type: str
):
    model = dual_encoder(image, text, kind)
    export_dual_encoder(model, tmp_path / "out", {"image_size": 24, "note": "kept"})
    assert is_exported(tmp_path / "out")
    again, data = load_dual_encoder(tmp_path / "out")
    assert_same(again, model)
    assert (again.image.config, again.text.config) == (model.image.config, model.text.config)
    assert data == {"image_size": 24, "note": "kept"}
    fields = json.loads((tmp_path / "out" / "config.json").read_text())
    assert fields["model_type"] == model_type
    tower = from_pretrained(tmp_path / "out", tower="text")
    assert_same(tower, model.text)


@pytest.mark.parametrize(("image", "kind"), [("clip vit", "linear_no_bias"), ("resnet", "mlp")])
def test_the_bias_of_the_sigmoid_loss_comes_back(tmp_path: Path, image: str, kind: str):
    model = dual_encoder(image, "clip text", kind)
    model.logit_bias = nnx.Param(jnp.float32(-9.5))
    export_dual_encoder(model, tmp_path / "out")
    again, _ = load_dual_encoder(tmp_path / "out")
    assert float(again.logit_bias[...]) == -9.5
    assert_same(again, model)


def test_updates_of_a_lone_tower_are_merged(tmp_path: Path):
    tower = random_tower(*TOWERS["bert"])
    lora.add(tower, lora.Lora(rank=2), rngs=nnx.Rngs(0))
    layer = tower.layers[0].intermediate
    layer.lora_b.set_value(jnp.ones_like(layer.lora_b[...]))
    export_tower(tower, tmp_path / "out")
    assert_same(from_pretrained(tmp_path / "out"), lora.merge(tower))


def test_names_are_hugging_faces(tmp_path: Path):
    export_dual_encoder(dual_encoder("clip vit", "clip text", "linear_no_bias"), tmp_path / "clip")
    names = load_file(tmp_path / "clip" / "model.safetensors").keys()
    assert {
        "vision_model.encoder.layers.1.self_attn.q_proj.weight",
        "text_model.embeddings.position_embedding.weight",
        "visual_projection.weight",
        "logit_scale",
    } < names
    export_tower(random_tower(*TOWERS["vit"]), tmp_path / "vit")
    arrays = load_file(tmp_path / "vit" / "model.safetensors")
    assert arrays["embeddings.cls_token"].shape == (1, 1, 48)
    assert arrays["embeddings.patch_embeddings.projection.weight"].shape == (48, 3, 8, 8)


def test_normalisation_and_pooling_are_written_beside(tmp_path: Path):
    export_tower(random_tower(*TOWERS["resnet"]), tmp_path / "image")
    pixels = json.loads((tmp_path / "image" / "preprocessor_config.json").read_text())
    assert pixels["image_mean"] == [0.4, 0.5, 0.6]
    export_tower(random_tower(*TOWERS["bert with head"]), tmp_path / "text")
    pooling = json.loads((tmp_path / "text" / "1_Pooling" / "config.json").read_text())
    assert pooling["pooling_mode_cls_token"] and not pooling["pooling_mode_mean_tokens"]


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="should be a new or an empty folder"):
        export_tower(random_tower(*TOWERS["bert"]), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_what_is_no_exported_model_is_refused(tmp_path: Path):
    export_tower(random_tower(*TOWERS["bert"]), tmp_path / "bert")
    assert not is_exported(tmp_path / "bert") and not is_exported(tmp_path)
    with pytest.raises(ValueError, match="holds no exported image-text model"):
        load_dual_encoder(tmp_path / "bert")
    export_tower(random_tower(*OTHERS["efficientnet"]), tmp_path / "own")
    assert not is_exported(tmp_path / "own")
    config = tmp_path / "own" / "config.json"
    config.write_text(config.read_text().replace("EfficientNetLite0", "Vgg"))
    with pytest.raises(ValueError, match="there is no tower class 'Vgg'; there are: "):
        from_pretrained(tmp_path / "own")


def hidden_states(tower: nnx.Module, network: Any, torch: Any) -> tuple[np.ndarray, np.ndarray]:
    """Last hidden states of ours and of PyTorch's on the same random input."""
    generator = np.random.default_rng(1)
    if hasattr(tower, "mean"):
        images = generator.normal(size=(2, 24, 24, 3)).astype(np.float32)
        ours = tower(images).sequence
        given = {"pixel_values": torch.tensor(images.transpose(0, 3, 1, 2))}
    else:
        tokens = generator.integers(3, 96, size=(2, 9)).astype(np.int32)
        mask = np.ones((2, 9), bool)
        ours = tower(tokens, mask).sequence
        given = {"input_ids": torch.tensor(tokens), "attention_mask": torch.tensor(mask)}
    with torch.no_grad():
        theirs = network(**given).last_hidden_state.numpy()
    if theirs.ndim == 4:
        theirs = theirs.reshape(*theirs.shape[:2], -1).transpose(0, 2, 1)
    return np.asarray(ours), theirs


@pytest.mark.oracle
@pytest.mark.parametrize("name", TOWERS)
def test_transformers_gives_the_same_numbers(tmp_path: Path, name: str):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    tower = random_tower(*TOWERS[name])
    export_tower(tower, tmp_path / "out")
    network, report = transformers.AutoModel.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    lost = {key for key in report["missing_keys"] if "pooler" not in key}
    assert not {key for key in lost if "num_batches_tracked" not in key}
    ours, theirs = hidden_states(tower, network.eval(), torch)
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.oracle
def test_transformers_reads_a_whole_clip(tmp_path: Path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model = dual_encoder("clip vit", "clip text", "linear_no_bias")
    export_dual_encoder(model, tmp_path / "out", {"image_size": 24})
    network = transformers.AutoModel.from_pretrained(tmp_path / "out").eval()
    assert isinstance(network, transformers.CLIPModel)
    generator = np.random.default_rng(1)
    images = generator.normal(size=(2, 24, 24, 3)).astype(np.float32)
    tokens = generator.integers(3, 90, size=(2, 9)).astype(np.int32)
    tokens[:, 6] = 96
    with torch.no_grad():
        output = network(
            input_ids=torch.tensor(tokens), pixel_values=torch.tensor(images.transpose(0, 3, 1, 2))
        )
    image = np.asarray(model.image_projection(model.image(images).pooled))
    text = np.asarray(model.text_projection(model.text(tokens, tokens >= 0).pooled))
    image, text = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image, text))
    np.testing.assert_allclose(image, output.image_embeds.numpy(), atol=1e-5)
    np.testing.assert_allclose(text, output.text_embeds.numpy(), atol=1e-5)
    logits = np.exp(np.float32(4.1)) * image @ text.T
    np.testing.assert_allclose(logits, output.logits_per_image.numpy(), atol=1e-3)
