"""open_clip's model configurations, with one block each, as folders of its own kind."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import open_clip
import open_clip.factory
import open_clip.hf_model
import open_clip.timm_model
import torch
import transformers
from safetensors.torch import save_file

from tests.oracle.comparing import Case, Reference, images, randomise, texts
from tests.oracle.timm_cases import SMALL, small_model

VOCABULARY = 300  # Instead of up to 900,000.
CLIP_END = VOCABULARY - 1
# What the Hub says of the text towers that are not open_clip's own, one layer each.
HUB_CONFIGS = {
    "roberta-base": lambda: transformers.RobertaConfig(
        **_SMALL, vocab_size=VOCABULARY, type_vocab_size=1, layer_norm_eps=1e-5
    ),
    "xlm-roberta-base": lambda: transformers.XLMRobertaConfig(
        **_SMALL, vocab_size=VOCABULARY, type_vocab_size=1, layer_norm_eps=1e-5
    ),
    "xlm-roberta-large": lambda: transformers.XLMRobertaConfig(
        **_LARGE, **_SMALL, vocab_size=VOCABULARY, type_vocab_size=1, layer_norm_eps=1e-5
    ),
    "google/mt5-base": lambda: transformers.MT5Config(num_layers=1, vocab_size=VOCABULARY),
}
_LARGE = {"hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 4096}
_SMALL = {"num_hidden_layers": 1, "max_position_embeddings": 514}
# Changes of ViT-B-32's configuration that the file tells.
CHANGES = (
    {"vision_cfg": {"pool_type": "avg"}},
    {"vision_cfg": {"pool_type": "none"}},
    {"vision_cfg": {"pool_type": "avg", "final_ln_after_pool": True}},
    {"vision_cfg": {"head_width": 32}},
    {"vision_cfg": {"no_ln_pre": True}},
    {"vision_cfg": {"ls_init_value": 0.1}},
    {"vision_cfg": {"norm_kwargs": {"eps": 1e-3}}},
    {"vision_cfg": {"act_kwargs": {"approximate": "tanh"}}},
    {"vision_cfg": {"qk_norm": True}},
    {"vision_cfg": {"attentional_pool": True}},
    {"vision_cfg": {"pos_embed_type": "sin_cos_2d"}},
    {"text_cfg": {"pool_type": "last"}},
    {"text_cfg": {"pool_type": "first"}},
    {"text_cfg": {"pool_type": "eos", "eos_id": 7}},
    {"text_cfg": {"no_causal_mask": True}},
    {"text_cfg": {"heads": 4}},
    {"text_cfg": {"ls_init_value": 0.1}},
    {"text_cfg": {"proj_bias": True}, "custom_text": True},
    {"text_cfg": {"proj_type": "none"}, "custom_text": True},
    {"text_cfg": {"embed_cls": True}},
    {"text_cfg": {"norm_kwargs": {"eps": 1e-3}}},
    {"quick_gelu": True},
)


def cases() -> Iterator[Case]:
    """Yield a case for every configuration, and some with changes."""
    for name in open_clip.list_models():
        yield case(name)
    for change in CHANGES:
        yield case("ViT-B-32", change)


def case(name: str, change: dict | None = None) -> Case:
    """Return one configuration's case."""
    title = f"{name}, {json.dumps(change)}" if change else name
    return Case("open_clip", title, lambda folder: write(folder, name, change or {}))


def write(folder: Path, name: str, change: dict) -> Reference:
    """Save a model and return its embeddings, not normalised."""
    config = small_config(name)
    for part, value in change.items():
        config[part] = {**config[part], **value} if isinstance(value, dict) else value
    model = build(config)
    randomise(model)
    model.eval()
    save_file({k: v.contiguous() for k, v in model.state_dict().items()},
              folder / "open_clip_model.safetensors")  # fmt: skip
    described = {"model_cfg": config, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(described))
    with torch.no_grad():
        return reference(model, config)


def small_config(name: str) -> dict:
    """Return a configuration with one block in each tower, and few words."""
    config = copy.deepcopy(open_clip.get_model_config(name))
    vision, text = config["vision_cfg"], config["text_cfg"]
    if "layers" in vision:
        vision["layers"] = [1, 1, 1, 1] if isinstance(vision["layers"], list) else 1
    text |= {"layers": 1} | ({} if "hf_model_name" in text else {"vocab_size": VOCABULARY})
    return config


def build(config: dict) -> torch.nn.Module:
    """Return the model, its parts of other libraries' with one block, too, and no downloads."""
    timm = mock.Mock(wraps=open_clip.timm_model.timm)
    timm.create_model = lambda name, **kw: small_model(name, SMALL, **kw)
    settings = {k: v for k, v in config.items() if k != "custom_text"}
    kinds = (open_clip.CoCa, open_clip.CustomTextCLIP, open_clip.CLIP)
    custom = config.get("custom_text", False) or "hf_model_name" in config["text_cfg"]
    kind = kinds[0] if "multimodal_cfg" in config else kinds[1] if custom else kinds[2]
    with (
        mock.patch.object(open_clip.timm_model, "timm", timm),
        mock.patch.object(
            open_clip.hf_model.AutoConfig, "from_pretrained", lambda name, **_: HUB_CONFIGS[name]()
        ),
    ):
        config["text_cfg"].pop("hf_model_pretrained", None)
        settings["text_cfg"] = dict(config["text_cfg"])
        if "hf_model_name" in settings["text_cfg"]:
            settings["text_cfg"]["hf_model_pretrained"] = False
        return kind(**settings)


def reference(model: torch.nn.Module, config: dict) -> Reference:
    """Return images, texts and their embeddings."""
    pixels = images(model.visual.image_size)
    text = config["text_cfg"]
    length = text.get("context_length", 77)
    if "hf_model_name" in text:
        tokens, mask = texts(VOCABULARY, 12, padding=1, last=2)
    else:
        last = text.get("eos_id", 2) if text.get("pool_type") == "eos" else CLIP_END
        tokens, mask = texts(VOCABULARY, length, padding=0, last=last)
    encoded = [model.encode_image(pixels), model.encode_text(torch.from_numpy(tokens).long())]
    image, embedded = (np.asarray(part) for part in encoded)
    return Reference((pixels.numpy(), image), (tokens, mask, embedded), projected=True)
