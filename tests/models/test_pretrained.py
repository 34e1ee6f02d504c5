"""Tests of making towers by name and of finding and reading pretrained ones."""

import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from otter_jax.models import (
    create_image_tower,
    create_text_tower,
    from_pretrained,
)
from otter_jax.models.bert import Bert
from otter_jax.models.efficientnet import EfficientNetLite0

GOLDEN = Path(__file__).parents[1] / "golden" / "towers"
SMALL_BERT, SMALL_EFFICIENTNET = GOLDEN / "small_bert", GOLDEN / "small_efficientnet.pth"
EFFICIENTNET_SHAPE = {"num_stages": 2, "width_multiplier": 0.25}
BERT_SHAPE = {
    "vocab_size": 20,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 12,
}


@pytest.fixture
def bert_folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(SMALL_BERT, tmp_path / "bert"))


def same_weights(first: nnx.Module, second: nnx.Module) -> bool:
    states = [nnx.to_flat_state(nnx.state(tower)) for tower in (first, second)]
    return all(
        path == other and np.array_equal(value[...], twin[...])
        for (path, value), (other, twin) in zip(*states, strict=True)
    )


def test_random_towers_take_their_shape_from_overrides():
    image = create_image_tower(
        "efficientnet_lite0", rngs=nnx.Rngs(0), num_stages=1, stem_width=8, width=12
    )
    assert isinstance(image, EfficientNetLite0) and image.width == 12
    assert image(jnp.ones((2, 16, 16, 3))).pooled.shape == (2, 12)
    text = create_text_tower("bert", rngs=nnx.Rngs(0), **BERT_SHAPE)
    assert isinstance(text, Bert) and text.width == 8
    assert text(jnp.ones((2, 5), jnp.int32), jnp.ones((2, 5), bool)).pooled.shape == (2, 8)


def test_random_towers_depend_on_the_seed_alone():
    first, second, other = (
        create_text_tower("bert", rngs=nnx.Rngs(seed), **BERT_SHAPE) for seed in (1, 1, 2)
    )
    assert same_weights(first, second) and not same_weights(first, other)


def test_created_pretrained_towers_have_the_weights():
    tower = create_text_tower(
        "bert", str(SMALL_BERT), rngs=nnx.Rngs(5), dtype=jnp.bfloat16, hidden_dropout_prob=0.3
    )
    assert same_weights(tower, from_pretrained(SMALL_BERT))
    assert tower.config.hidden_dropout_prob == 0.3 and tower.config.hidden_size == 32
    states = tower.encode_tokens(jnp.ones((1, 3), jnp.int32), jnp.ones((1, 3), bool))
    assert states.dtype == jnp.bfloat16
    image = create_image_tower(
        "efficientnet_lite0", str(SMALL_EFFICIENTNET), rngs=nnx.Rngs(0), **EFFICIENTNET_SHAPE
    )
    stem = np.load(GOLDEN / "small_efficientnet.npz")["stem_mean"]
    assert image.stem.norm.mean.shape == stem.shape


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"no image tower 'vgg'; there are: .*efficientnet_lite0"):
        create_image_tower("vgg", rngs=nnx.Rngs(0))
    with pytest.raises(
        ValueError, match="no text tower 'efficientnet_lite0'; there are: albert, bert, "
    ):
        create_text_tower("efficientnet_lite0", rngs=nnx.Rngs(0))


def test_unknown_settings_are_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"Bert has no setting depth, size; it has: vocab_size, "):
        create_text_tower("bert", rngs=nnx.Rngs(0), size=1, depth=2)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"pack_heads": 3}, "pack_heads=3; it must be true or false"),
        ({"vocab_size": "many"}, "vocab_size='many'; it must be a whole number"),
        ({"hidden_dropout_prob": None}, "hidden_dropout_prob=None; it must be a number"),
        ({"hidden_size": 64.0}, r"hidden_size=64\.0; it must be a whole number"),
    ],
)
def test_settings_of_another_kind_are_refused(settings: dict, said: str) -> None:
    with pytest.raises(ValueError, match=f"an override of Bert says {said}"):
        create_text_tower("bert", rngs=nnx.Rngs(0), **settings)
    with pytest.raises(ValueError, match=f"an override of Bert says {said}"):
        create_text_tower("bert", str(SMALL_BERT), rngs=nnx.Rngs(0), **settings)


def test_settings_may_be_numbers_of_numpy() -> None:
    settings = {"hidden_size": np.int64(8), "num_attention_heads": np.int32(2), "vocab_size": 9}
    tower = create_text_tower(
        "bert", rngs=nnx.Rngs(0), hidden_dropout_prob=np.float32(0.25), **settings
    )
    assert (tower.config.hidden_size, tower.config.hidden_dropout_prob) == (8, 0.25)


def test_weights_of_another_tower_are_refused():
    with pytest.raises(ValueError, match="small_bert holds a Bert, which is no image tower"):
        create_image_tower("efficientnet_lite0", str(SMALL_BERT), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="small_bert holds a Bert; 'roberta' is a Roberta"):
        create_text_tower("roberta", str(SMALL_BERT), rngs=nnx.Rngs(0))
    with pytest.raises(
        ValueError, match=r"basic.pth holds a ResNet with stage_widths .*; resnet18 has .*64, 128"
    ):
        create_image_tower("resnet18", str(GOLDEN / "small_resnet_basic.pth"), rngs=nnx.Rngs(0))


def test_what_may_be_missing_is_drawn_at_random(bert_folder: Path):
    arrays = load_file(bert_folder / "model.safetensors")
    lost = "encoder.layer.1.output.dense.weight"
    del arrays[lost]
    save_file(arrays, bert_folder / "model.safetensors")
    with pytest.raises(ValueError, match=rf"1 names differ\n.*\n  {lost}  missing"):
        from_pretrained(bert_folder)
    tower = create_text_tower(
        "bert", str(bert_folder), rngs=nnx.Rngs(3), allow_missing=["*.1.output.dense.*"]
    )
    drawn = np.asarray(tower.layers[1].output.kernel[...])
    assert 0.01 < drawn.std() < 0.03  # BERT's initial deviation is 0.02.
    kept = from_pretrained(SMALL_BERT).layers[0].output.kernel[...]
    np.testing.assert_array_equal(tower.layers[0].output.kernel[...], kept)


def test_lone_files_are_recognised_by_their_names(tmp_path: Path):
    tower = from_pretrained(SMALL_EFFICIENTNET, **EFFICIENTNET_SHAPE)
    assert isinstance(tower, EfficientNetLite0)
    unknown = tmp_path / "unknown.safetensors"
    save_file({"layer.weight": np.zeros(3, np.float32)}, unknown)
    with pytest.raises(
        ValueError, match=r"unknown.safetensors is a checkpoint of none of: .*EfficientNetLite0, "
    ):
        from_pretrained(unknown)


def test_prefixed_names_and_heads_are_understood(bert_folder: Path):
    arrays = load_file(bert_folder / "model.safetensors")
    renamed = {
        f"bert.{name}".replace("LayerNorm.weight", "LayerNorm.gamma"): array
        for name, array in arrays.items()
    }
    renamed["cls.predictions.bias"] = np.zeros(100, np.float32)
    renamed["bert.embeddings.position_ids"] = np.arange(24)[None]
    save_file(renamed, bert_folder / "model.safetensors")
    assert same_weights(from_pretrained(bert_folder), from_pretrained(SMALL_BERT))


def test_weights_that_do_not_fit_are_listed_with_the_file():
    with pytest.raises(ValueError) as refusal:
        from_pretrained(SMALL_BERT, num_hidden_layers=3, vocab_size=99)
    heading, *table = str(refusal.value).splitlines()
    assert heading.endswith("small_bert: the checkpoint does not fit Bert: 17 names differ")
    assert "  embeddings.word_embeddings.weight                  (100, 32)   (99, 32)" in table
    assert "  encoder.layer.2.intermediate.dense.weight          missing     (64, 32)" in table


def test_folders_without_weights_are_refused(bert_folder: Path):
    (bert_folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"bert should have config\.json and model.safe"):
        from_pretrained(bert_folder)


def test_damaged_or_foreign_files_are_refused_in_one_line(tmp_path: Path, bert_folder: Path):
    (tmp_path / "weights.npz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"weights.npz should end in one of .safetensors, .pth"):
        from_pretrained(tmp_path / "weights.npz")
    with pytest.raises(ValueError, match=r"torch_zip.pth is not a state dict"):
        from_pretrained(GOLDEN / "torch_zip.pth")
    content = (bert_folder / "model.safetensors").read_bytes()
    (bert_folder / "model.safetensors").write_bytes(content[:-10])
    with pytest.raises(ValueError, match=r"model.safetensors is not a whole safetensors file"):
        from_pretrained(bert_folder)
    (bert_folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json is not JSON"):
        from_pretrained(bert_folder)


def test_models_of_unknown_type_are_refused(bert_folder: Path):
    (bert_folder / "config.json").write_text(json.dumps({"model_type": "t5"}))
    with pytest.raises(ValueError, match=r"holds a model of type 't5'; known are: .*bert"):
        from_pretrained(bert_folder)


def test_a_checkpoint_of_another_size_than_its_name_is_refused():
    with pytest.raises(ValueError, match=r"holds a ResNet with .*; resnet50 has \(256, 512, 1024"):
        create_image_tower("resnet50", str(GOLDEN / "small_resnet"), rngs=nnx.Rngs(0))
