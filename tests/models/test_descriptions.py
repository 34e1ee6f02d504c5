"""Tests of what descriptions mean: nothing passed over in silence, transformers' own defaults."""

import contextlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from models.test_export import TOWERS, dual_encoder, random_tower
from safetensors.numpy import save_file

from otter_jax.models import (
    bert_layouts,
    clip_text_layouts,
    convnext,
    deberta,
    from_pretrained,
    modernbert,
    open_clip_files,
    resnet_layouts,
    timm_names,
    two_tower_configs,
    vit_layouts,
)
from otter_jax.models.descriptions import KINDS_OF_ENTRIES, Guess, Keys, split_guesses, words
from otter_jax.models.export import export_dual_encoder, export_tower
from otter_jax.models.weights import CheckpointLayout

KEYS = Keys(
    fields={"heads": "num_attention_heads"},
    defaults={"heads": 12},
    only={"dropout": (0.0,), "is_decoder": (False,)},
    harmless=words("note model_type"),
)
MODEL_TYPES = {
    **vit_layouts.MODEL_TYPES,
    **clip_text_layouts.MODEL_TYPES,
    **bert_layouts.MODEL_TYPES,
    "resnet": resnet_layouts.HUGGING_FACE_KEYS,
    "convnext": convnext.HUGGING_FACE_KEYS,
    "convnextv2": convnext.HUGGING_FACE_KEYS,
    "deberta-v2": deberta.KEYS,
    "modernbert": modernbert.KEYS,
}


def test_entries_are_honoured_by_our_names() -> None:
    assert KEYS.read({"heads": 3, "note": "x", "dropout": 0.0}, "f") == {"num_attention_heads": 3}
    assert KEYS.read({}, "f") == {"num_attention_heads": 12}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"window": 7}, "config.json says window=7, which this package does not know"),
        ({"dropout": 0.1}, "config.json says dropout=0.1; only 0.0 is supported"),
        ({"is_decoder": 0}, "config.json says is_decoder=0; only False is supported"),
        ({"window": "x" * 99}, r"says window='x{50,}\.\.\., which"),
    ],
)
def test_everything_else_is_refused_by_name(entries: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KEYS.read(entries, "config.json")


@given(st.text(st.characters(categories=["L"]), min_size=1), st.none() | st.booleans())
def test_no_unknown_entry_passes(name: str, value: bool | None) -> None:
    known = {*KEYS.fields, *KEYS.only, *KEYS.harmless}
    if name not in known:
        with pytest.raises(ValueError, match="does not know"):
            KEYS.read({name: value}, "config.json")


def test_guesses_are_told_from_what_is_known() -> None:
    fields = {"a": 1, "b": Guess("gelu"), "c": Guess(None)}
    with pytest.raises(ValueError, match=r"file does not tell c, and its .*; say c=\.\.\."):
        split_guesses(fields, {}, "file")
    assert split_guesses(fields, {"c": 5}, "file") == ({"a": 1, "b": "gelu"}, {"b": "gelu"})
    assert split_guesses(fields, {"b": 0, "c": 5}, "file") == ({"a": 1}, {})


@pytest.mark.parametrize("model_type", sorted(MODEL_TYPES))
def test_every_entry_of_transformers_is_known_with_its_default(model_type: str) -> None:
    """A config.json with transformers' defaults is read, and one without them means the same."""
    from transformers import CONFIG_MAPPING

    if model_type == "clipseg_text_model" or model_type == "clipseg_vision_model":
        pytest.skip("has CLIP's settings; transformers keeps it inside of a model's")
    keys, saved = MODEL_TYPES[model_type], CONFIG_MAPPING[model_type]().to_dict()
    entries = {k: v for k, v in saved.items() if k != "max_relative_positions"}
    found = keys.read(entries, "config.json")
    for name, value in keys.defaults.items():
        if name in saved and name not in ("layer_types", "eos_token_id"):
            assert found[keys.fields[name]] == value, name


@pytest.mark.parametrize("model_type", two_tower_configs.MODEL_TYPES)
def test_every_entry_of_two_towers_is_known(model_type: str) -> None:
    from transformers import CONFIG_MAPPING

    saved = CONFIG_MAPPING[model_type]().to_dict()
    for kind, name in (("image", "vision"), ("text", "text")):
        entries = two_tower_configs.describe(kind, saved)
        assert entries["model_type"] == f"{model_type}_{name}_model"
        MODEL_TYPES[entries["model_type"]].read(entries, "config.json")


def write_vit(folder: Path, width: int = 48, **description: Any) -> Path:
    """Write a ViT of timm's with one block and a description."""
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 5, width),
        "patch_embed.proj.weight": (width, 3, 4, 4),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
        **{f"blocks.0.norm{n}.{part}": (width,) for n in (1, 2) for part in ("weight", "bias")},
        "blocks.0.attn.qkv.weight": (3 * width, width),
        "blocks.0.attn.qkv.bias": (3 * width,),
        "blocks.0.attn.proj.weight": (width, width),
        "blocks.0.attn.proj.bias": (width,),
        "blocks.0.mlp.fc1.weight": (64, width),
        "blocks.0.mlp.fc1.bias": (64,),
        "blocks.0.mlp.fc2.weight": (width, 64),
        "blocks.0.mlp.fc2.bias": (width,),
    }
    arrays = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    save_file(arrays, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(description))
    return folder


@pytest.mark.parametrize(
    ("description", "settings"),
    [
        ({}, {"num_attention_heads": 12, "pooling": "cls", "hidden_act": "gelu"}),
        ({"global_pool": "avg"}, {"pooling": "mean", "norm_after_pooling": False}),
        ({"model_args": {"num_heads": 4}}, {"num_attention_heads": 4}),
        ({"model_args": {"act_layer": "gelu_tanh"}}, {"hidden_act": "gelu_pytorch_tanh"}),
        ({"architecture": "vit_huge_patch14_224"}, {"num_attention_heads": 16}),
        ({"architecture": "vit_base_patch32_clip_quickgelu_224.x"}, {"hidden_act": "quick_gelu"}),
        (
            {"pretrained_cfg": {"mean": [0.1] * 3, "crop_pct": 0.9, "interpolation": "bilinear"}},
            {"mean": (0.1, 0.1, 0.1), "resize": ("shortest", 0.9, "bilinear")},
        ),
    ],
)
def test_timms_descriptions_are_honoured(
    tmp_path: Path, description: dict[str, Any], settings: dict[str, Any]
) -> None:
    folder = write_vit(tmp_path, **{"architecture": "vit_base_patch16_224", **description})
    config = from_pretrained(folder).config
    assert {name: getattr(config, name) for name in settings} == settings


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({"architecture": None}, "says neither a model_type, .* nor an architecture"),
        ({"architecture": "vit_odd_224"}, "architecture='vit_odd_224', which ViT does not compute"),
        ({"global_pool": "max"}, "global_pool='max'; this ViT pools by token or avg"),
        ({"model_args": {"qk_norm": True}}, "model_args says qk_norm=True; only False"),
        ({"model_args": {"act_layer": "silu"}}, "act_layer='silu'; only 'gelu' or"),
        ({"model_args": {"novel": 1}}, "model_args says novel=1, which this package does not know"),
        ({"pretrained_cfg": {"crop_mode": "border"}}, "crop_mode='border'; only 'center'"),
        ({"labels": []}, r"config.json says labels=\[\], which this package does not know"),
    ],
)
def test_timms_other_descriptions_are_refused(
    tmp_path: Path, description: dict[str, Any], message: str
) -> None:
    entries = {"architecture": "vit_base_patch16_224", **description}
    folder = write_vit(tmp_path, **{k: v for k, v in entries.items() if v is not None})
    with pytest.raises(ValueError, match=message) as refusal:
        from_pretrained(folder)
    assert "\n" not in str(refusal.value) and str(tmp_path) in str(refusal.value)


def test_a_lone_file_says_what_it_is_taken_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights = write_vit(tmp_path, width=192) / "model.safetensors"
    assert from_pretrained(weights).config.num_attention_heads == 3
    (line,) = caplog.messages
    assert "taken to have pooling='cls', num_attention_heads=3, hidden_act='gelu'" in line
    caplog.clear()
    from_pretrained(weights, num_attention_heads=6, hidden_act="gelu", pooling="mean")
    assert not caplog.messages


KINDS_OF_FOLDERS = ("bert", "distilbert", "mpnet", "vit", "clip text", "resnet", "clip", "timm")
WRONG = (None, "x", -1, 0, 1.5, [], {}, True, 10**12, [1], ["a"], {"a": 1}, float("nan"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of each kind, with what describes its images or sentences beside it."""
    root = tmp_path_factory.mktemp("kinds")
    pixels = {"image_mean": [0.5] * 3, "crop_size": {"height": 24, "width": 24}, "resample": 3}
    pixels |= {"size": {"shortest_edge": 24}, "do_center_crop": True, "rescale_factor": 1 / 255}
    for kind in KINDS_OF_FOLDERS:
        if kind == "timm":
            (root / kind).mkdir()
            arguments = {"num_heads": 4, "act_layer": "gelu"}
            write_vit(root / kind, architecture="vit_base_patch16_224", model_args=arguments)
        elif kind == "clip":
            model = dual_encoder("clip vit", "clip text", "linear_no_bias")
            export_dual_encoder(model, root / kind)
            config = json.loads((root / kind / "config.json").read_text())
            del config["otter_jax"]  # As transformers writes it.
            (root / kind / "config.json").write_text(json.dumps(config))
        else:
            export_tower(random_tower(*TOWERS[kind]), root / kind)
        if kind in ("vit", "clip"):
            (root / kind / "preprocessor_config.json").write_text(json.dumps(pixels))
    return {kind: root / kind for kind in KINDS_OF_FOLDERS}


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """The way to every entry of what JSON holds."""
    if not isinstance(value, dict | list):
        return [path]
    below = value.items() if isinstance(value, dict) else enumerate(value)
    return [path, *(place for key, each in below for place in places(each, (*path, key)))]


def changed(value: Any, path: tuple, new: Any) -> Any:
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = changed(copy[path[0]], path[1:], new)
    return copy


@settings(
    max_examples=100,
    derandomize=True,  # The same cases everywhere.
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.data(), st.sampled_from(KINDS_OF_FOLDERS), st.sampled_from(WRONG))
def test_wrong_entries_are_refused_in_words(
    folders: dict[str, Path], data: st.DataObject, kind: str, new: Any
) -> None:
    names = ("*config.json", "modules.json", "*/config.json")
    files = [file for name in names for file in sorted(folders[kind].glob(name))]
    file = data.draw(st.sampled_from(files))
    written = file.read_text()
    path = data.draw(st.sampled_from(places(json.loads(written))))
    try:
        file.write_text(json.dumps(changed(json.loads(written), path, new)))
        with contextlib.suppress(ValueError, FileNotFoundError):
            from_pretrained(folders[kind])
    finally:
        file.write_text(written)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"num_attention_heads": None}, "num_attention_heads=null, which says nothing"),
        ({"num_attention_heads": "4"}, "says num_attention_heads='4'; it must be a whole number"),
        ({"num_hidden_layers": 10**12}, "must be a whole number from 1 to 1000"),
        ({"layer_norm_eps": float("nan")}, "says layer_norm_eps=nan; it must be a number"),
        ({"layer_norm_eps": -1e-6}, "layer_norm_eps=-1e-06; it must be a number of at least 0"),
        ({"hidden_dropout_prob": 1.5}, "hidden_dropout_prob=1.5; it must be a number from 0 to 1"),
        ({"hidden_act": {}}, "says hidden_act={}; it must be a text"),
    ],
)
def test_entries_of_another_kind_are_named(entry: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bert_layouts.BERT_KEYS.read(entry, "config.json")


@pytest.mark.parametrize("model_type", sorted(MODEL_TYPES))
def test_no_variance_is_lowered(model_type: str) -> None:
    keys = MODEL_TYPES[model_type]
    for name in {"layer_norm_eps", "norm_eps"}.intersection(keys.fields):
        with pytest.raises(ValueError, match=f"says {name}=-1e-05; it must be a number of at le"):
            keys.read({name: -1e-5}, "config.json")


@pytest.mark.parametrize(
    ("layout", "entries", "message"),
    [
        (
            modernbert.LAYOUT,
            {"rope_parameters": {"full_attention": {"rope_theta": None}}},
            "rope_parameters.full_attention says rope_theta=null, which says nothing",
        ),
        (
            modernbert.LAYOUT,
            {"rope_parameters": {"sliding_attention": None}},
            "rope_parameters says sliding_attention=null, which says nothing",
        ),
        (
            modernbert.LAYOUT,
            {"rope_parameters": {"sliding_attention": {"rope_theta": -1e4}}},
            "says rope_theta=-10000.0; it must be a number above 0",
        ),
        (
            modernbert.LAYOUT,
            {"rope_parameters": {"rope_theta": 1e4}},
            "rope_parameters says rope_theta=10000.0, which this package does not know",
        ),
        (modernbert.LAYOUT, {"global_rope_theta": None}, "global_rope_theta=null, which says"),
        (modernbert.LAYOUT, {"global_attn_every_n_layers": None}, "every_n_layers=null, which"),
        (deberta.LAYOUT, {"max_relative_positions": None}, "max_relative_positions=null, which"),
    ],
)
def test_nulls_and_negatives_deep_down_are_named(
    layout: CheckpointLayout, entries: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        layout.fields({"num_hidden_layers": 4, **entries}, {})


def test_types_of_layers_that_are_null_follow_the_period() -> None:
    saved = {"num_hidden_layers": 4, "layer_types": None, "global_attn_every_n_layers": 2}
    fields = modernbert.LAYOUT.fields(saved, {})
    assert fields["layer_types"] == [modernbert.FULL, modernbert.LOCAL] * 2


def test_every_setting_has_its_kind() -> None:
    known = {*KINDS_OF_ENTRIES, "classifier_dropout"}
    for model_type, keys in MODEL_TYPES.items():
        assert not set(keys.fields) - known, model_type


def test_sentences_are_lowered_as_their_folder_says(tmp_path: Path) -> None:
    export_tower(random_tower(*TOWERS["bert"]), tmp_path)
    sentences = tmp_path / "sentence_bert_config.json"
    sentences.write_text(json.dumps({"max_seq_length": 256, "do_lower_case": False}))
    assert from_pretrained(tmp_path).config.cleaning == "none"
    sentences.write_text(json.dumps({"max_seq_length": 256, "do_lower_case": True}))
    assert from_pretrained(tmp_path).config.cleaning == "small"
    sentences.write_text(json.dumps({"transformer_task": "text-generation"}))
    with pytest.raises(ValueError, match="transformer_task='text-generation'; only 'feature-extr"):
        from_pretrained(tmp_path)


def open_clip(kind: str, **entries: Any) -> Any:
    model = {"vision_cfg": {}, "text_cfg": {}, **entries}
    return open_clip_files.describe(kind, {"model_cfg": model})


def test_open_clips_descriptions_are_brought_into_each_librarys_form() -> None:
    saved, settings = open_clip("image", vision_cfg={"width": 8}, quick_gelu=True)
    assert saved == {"width": 8, "hidden_act": "quick_gelu"} and settings == {}
    timm = {"timm_model_name": "vit_x", "timm_pool": "map", "image_size": 224}
    saved, _ = open_clip("image", vision_cfg=timm, quick_gelu=True)
    assert saved["architecture"] == "vit_x" and saved["global_pool"] == "map"
    timm_names.TOP_KEYS.read(saved, "f")
    of_hub = {"hf_model_name": "roberta-base", "hf_tokenizer_name": "roberta-base"}
    saved, settings = open_clip("text", text_cfg=of_hub)
    assert saved == {} and settings["pooling"] == "mean"
    assert settings["cleaning"] == "whitespace"
    tanh = {"act_kwargs": {"approximate": "tanh"}, "norm_kwargs": {"eps": 1e-6}}
    saved, settings = open_clip(
        "text", text_cfg={**tanh, "tokenizer_kwargs": {"clean": "canonicalize"}}
    )
    assert (saved["hidden_act"], saved["eps"]) == ("gelu_pytorch_tanh", 1e-6)
    assert settings["cleaning"] == "canonical"


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"multimodal_cfg": {"width": 1}}, "model_cfg says multimodal_cfg="),
        ({"text_cfg": {"norm_kwargs": {"bias": 0}}}, "norm_kwargs says bias=0, which"),
        ({"text_cfg": {"act_kwargs": {"approximate": "sigmoid"}}}, "only {'approximate': 'tanh'}"),
        ({"text_cfg": {"hf_model_name": "x", "hf_pooler_type": "cls_pooler"}}, "'cls_pooler'; onl"),
        ({"text_cfg": {"tokenizer_kwargs": {"clean": "x"}}}, "says clean='x'; only 'lower' or"),
        ({"novel_cfg": {}}, "model_cfg says novel_cfg={}, which this package does not know"),
        ({"text_cfg": None}, "has no text_cfg"),
    ],
)
def test_open_clips_other_descriptions_are_refused(entries: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_clip("text", **entries)
