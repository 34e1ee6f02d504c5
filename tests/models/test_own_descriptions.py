"""Tests of reading what this package wrote about towers: all of it, of its kind, or not at all."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
from models.test_export import dual_encoder

from otter_jax.models import blueprint, pretrained
from otter_jax.models.export import export_dual_encoder, is_exported, load_dual_encoder
from otter_jax.models.own_descriptions import HOW_IT_RUNS, SINCE_0_1_0

CLASSES = {
    preset.tower.__name__: preset.tower
    for preset in (*pretrained.IMAGE_TOWERS.values(), *pretrained.TEXT_TOWERS.values())
}
# The settings that every configuration had in version 0.1.0.
OF_0_1_0 = {
    "BertConfig": """vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size
        max_position_embeddings type_vocab_size hidden_act position_embedding_type is_decoder
        layer_norm_eps hidden_dropout_prob attention_probs_dropout_prob initializer_range
        pad_token_id positions_after_padding relative_attention_num_buckets drop_attended pooling
        mlm_head mlm_act tie_word_embeddings remat""",
    "ClipTextConfig": """hidden_size num_hidden_layers num_attention_heads intermediate_size
        hidden_act layer_norm_eps hidden_dropout_prob attention_probs_dropout_prob
        stochastic_depth_rate remat vocab_size max_position_embeddings eos_token_id""",
    "ViTConfig": """hidden_size num_hidden_layers num_attention_heads intermediate_size hidden_act
        layer_norm_eps hidden_dropout_prob attention_probs_dropout_prob stochastic_depth_rate remat
        image_size patch_size pre_norm patch_bias qkv_bias mean std""",
    "ResNetConfig": """block stem_width stage_widths depths downsample_in_first_stage
        downsample_in_bottleneck batch_norm_momentum batch_norm_epsilon zero_init_residual remat
        mean std""",
}


def write(value: Any) -> Any:
    """What comes back of a value by way of a file."""
    return json.loads(json.dumps(value))


def described(name: str) -> dict[str, Any]:
    config = CLASSES[name].config_class()
    return write({"tower": name, "config": dataclasses.asdict(config)})


def read(description: Any) -> Any:
    tower_class, fields = pretrained.read_description(description, "f")
    return pretrained.make_config(tower_class, fields, {})


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_every_towers_settings_come_back(name: str) -> None:
    config = read(described(name))
    assert config == CLASSES[name].config_class() and hash(config)


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_no_setting_takes_its_default_in_silence(name: str) -> None:
    later = SINCE_0_1_0.get(name, {})
    for field in described(name)["config"]:
        damaged = described(name)
        del damaged["config"][field]
        if field in HOW_IT_RUNS:  # The tower is the same without.
            assert read(damaged) == read(described(name))
            continue
        if len(later) == 1 and field in later:  # Then it is a whole description of 0.1.0.
            continue
        with pytest.raises(ValueError, match=f"^f.config lacks '{field}'$"):
            read(damaged)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("Bert", "BertConfig"),
        ("MPNet", "BertConfig"),
        ("ClipText", "ClipTextConfig"),
        ("ViT", "ViTConfig"),
        ("ResNet", "ResNetConfig"),
    ],
)
def test_descriptions_of_the_first_version_are_whole(name: str, config: str) -> None:
    whole = described(name)["config"]
    first = {field: whole[field] for field in OF_0_1_0[config].split()}
    found = read({"tower": name, "config": first})
    # Captions went to the tokenizer as they were.
    assert found == dataclasses.replace(
        CLASSES[name].config_class(), **({"cleaning": "none"} if "cleaning" in whole else {})
    )


@pytest.mark.parametrize(
    ("name", "entry", "message"),
    [
        ("ViT", {"hidden_size": "16"}, "f.config says hidden_size='16'; it must be a whole number"),
        ("ViT", {"hidden_size": 16.0}, "hidden_size=16.0; it must be a whole number"),
        ("ViT", {"hidden_size": None}, "hidden_size=None; it must be a whole number"),
        ("ViT", {"hidden_size": True}, "hidden_size=True; it must be a whole number"),
        ("ViT", {"hidden_size": -768}, "hidden_size=-768; it must be a whole number above 0"),
        ("ViT", {"num_hidden_layers": 10**12}, "must be a whole number from 1 to 1000"),
        ("ConvNext", {"depths": [1, 10**12, 1, 1]}, "a list of whole numbers from 1 to 1000"),
        ("ViT", {"gated": 1}, "gated=1; it must be true or false"),
        ("ViT", {"pooling": []}, "pooling=[]; it must be one of ['cls', 'mean', 'map']"),
        ("ViT", {"mean": [0.5, 0.5]}, "mean=[0.5, 0.5]; it must be a list of a number, a number"),
        ("ViT", {"std": [0.5, 0, 1]}, "std=[0.5, 0, 1]; it must be three numbers above 0"),
        ("ViT", {"resize": ["fit", 1.0, "box"]}, "resize=['fit', 1.0, 'box']; it must be a list"),
        ("ViT", {"layer_norm_eps": -1e-6}, "layer_norm_eps=-1e-06; it must be a number of at le"),
        ("ConvNext", {"last_norm_eps": -1e-6}, "last_norm_eps=-1e-06; it must be a number of at"),
        ("ResNet", {"mean": [0.5]}, "mean=[0.5]; it must be three numbers"),
        ("ResNet", {"depths": [3, "4"]}, "depths=[3, '4']; it must be a list, each entry a whole"),
        ("ResNet", {"batch_norm_epsilon": -1.0}, "must be a number of at least 0"),
        ("EfficientNetLite0", {"width": 0}, "width=0; it must be a whole number above 0"),
        ("ModernBert", {"full_rope_theta": -1.0}, "full_rope_theta=-1.0; it must be a number abo"),
        ("Deberta", {"norm_rel_ebd": "layer_norm"}, "it must be true or false"),
        ("Bert", {"mlm_act": 3}, "mlm_act=3; it must be a text or null"),
        ("Bert", {"window": 7}, "f.config has 'window', which this version does not know"),
    ],
)
def test_other_kinds_of_settings_are_named(name: str, entry: dict[str, Any], message: str) -> None:
    description = described(name)
    description["config"] |= entry
    with pytest.raises(ValueError, match=re.escape(message)):
        read(description)


@pytest.mark.parametrize(
    ("description", "message"),
    [
        (None, "f is None; it must be an object"),
        ({}, "f lacks 'tower'"),
        ({"tower": ["ViT"]}, "there is no tower class ['ViT']"),
        ({"tower": "ViT"}, "f lacks 'config'"),
        ({"tower": "ViT", "config": []}, "f.config is []; it must be an object"),
    ],
)
def test_what_is_no_description_is_named(description: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        read(description)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("embed_dim",), "10", "model says embed_dim='10'; it must be a whole number above 0"),
        (("has_bias",), None, "says has_bias=None; it must be true or false"),
        (("image",), None, "says image=None; it must be an object"),
        (("heads",), {"simsiam": True}, "model.heads lacks 'simclr'"),
        (("text", "projection"), [], "model.text says projection=[]; it must be a text"),
        (("text", "projection_settings"), {"bias": 1}, "projection_settings has 'bias', which"),
        (("image", "projection"), "perceptron", "image.projection_settings lacks 'hidden'"),
        (("text", "config", "hidden_act"), 7, "model.text.config says hidden_act=7; it must be"),
    ],
)
def test_blueprints_are_read_by_kind(path: tuple[str, ...], value: Any, message: str) -> None:
    written = write(blueprint.describe(dual_encoder("resnet", "clip text", "linear")))
    place = written
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    with pytest.raises(ValueError, match=re.escape(message)):
        blueprint.build(written)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own") / "model"
    export_dual_encoder(dual_encoder("resnet", "clip text", "linear"), folder, {"note": "kept"})
    return folder


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("image", ..., "config.json's otter_jax lacks 'image'"),
        ("text", "x", "config.json's otter_jax.text is 'x'; it must be an object"),
        ("distillation_log_scale", ..., "config.json's otter_jax lacks 'distillation_log_scale'"),
        ("distillation_log_scale", "x", "says distillation_log_scale='x'; it must be a number"),
        ("data", [], "says data=[]; it must be an object"),
    ],
)
def test_folders_are_read_by_kind(folder: Path, name: str, value: Any, message: str) -> None:
    file = folder / "config.json"
    written = file.read_text()
    config = json.loads(written)
    config["otter_jax"] |= {name: value}
    if value is ...:
        del config["otter_jax"][name]
    try:
        file.write_text(json.dumps(config))
        assert is_exported(folder)
        with pytest.raises(ValueError, match=re.escape(message)):
            load_dual_encoder(folder)
    finally:
        file.write_text(written)
    assert load_dual_encoder(folder)[1] == {"note": "kept"}
