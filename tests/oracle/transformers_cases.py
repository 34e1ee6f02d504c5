"""Models of transformers by their classes, small ones, as `save_pretrained` writes them."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers

from tests.oracle.comparing import Case, Reference, images, randomise, texts

VOCABULARY = 200
TEXT = {
    "vocab_size": VOCABULARY, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 64, "max_position_embeddings": 40,
}  # fmt: skip
IMAGE = {
    "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip
CLIP_TEXT = {**TEXT, "max_position_embeddings": 16, "eos_token_id": VOCABULARY - 1}
STAGES = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 2]}
DEBERTA = {
    "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8,
    "norm_rel_ebd": "layer_norm", "share_att_key": True, "position_biased_input": False,
}  # fmt: skip
ALBERT = {"embedding_size": 16}
MODERN = {"pad_token_id": 0, "bos_token_id": 1, "cls_token_id": 1, "eos_token_id": 2,
          "sep_token_id": 2}  # fmt: skip


def mean(output: Any, mask: torch.Tensor) -> torch.Tensor:
    """Return the mean over the tokens of each text."""
    weights = mask[:, :, None].float()
    return (output.last_hidden_state * weights).sum(1) / weights.sum(1)


def first(output: Any, mask: torch.Tensor) -> torch.Tensor:
    """Return the first token's state."""
    return output.last_hidden_state[:, 0]


def last(output: Any, mask: torch.Tensor) -> torch.Tensor:
    """Return the last position's state."""
    return output.last_hidden_state[:, -1]


def pooled(output: Any, mask: torch.Tensor) -> torch.Tensor:
    """Return what the model itself pools."""
    return output.pooler_output.flatten(1)


Pool = Callable[[Any, torch.Tensor], torch.Tensor]


def cases() -> Iterator[Case]:
    """Yield every class's cases."""
    for name, fields in TEXTS:
        yield text_case(name, fields)
    for name, fields in IMAGES:
        yield image_case(name, fields)
    for name, fields in TWO_TOWERS:
        yield two_tower_case(name, fields)


TEXTS: tuple[tuple[str, dict], ...] = (
    ("Bert", {}),
    ("Bert", {"hidden_act": "relu"}),
    ("Bert", {"hidden_act": "gelu_new", "layer_norm_eps": 1e-3}),
    ("Bert", {"hidden_act": "silu"}),
    ("Bert", {"is_decoder": True}),
    ("Bert", {"type_vocab_size": 3, "pad_token_id": 5}),
    ("Roberta", {}),
    ("Roberta", {"type_vocab_size": 1, "layer_norm_eps": 1e-5}),
    ("XLMRoberta", {}),
    ("Camembert", {}),
    ("DistilBert", {}),
    ("DistilBert", {"sinusoidal_pos_embds": True}),
    ("MPNet", {}),
    ("Electra", {}),
    ("Electra", {"embedding_size": 48}),
    ("Albert", ALBERT),
    ("Albert", {**ALBERT, "num_hidden_groups": 2}),
    ("Albert", {**ALBERT, "hidden_act": "relu"}),
    ("ModernBert", MODERN),
    ("ModernBert", {**MODERN, "local_attention": 4, "num_hidden_layers": 4}),
    ("ModernBert", {**MODERN, "attention_bias": True, "mlp_bias": True, "norm_bias": True}),
    ("DebertaV2", DEBERTA),
    ("DebertaV2", {**DEBERTA, "share_att_key": False}),
    ("DebertaV2", {**DEBERTA, "pos_att_type": ["c2p"]}),
    ("DebertaV2", {}),
    ("Ernie", {}),
    ("Data2VecText", {}),
    ("RobertaPreLayerNorm", {}),
    ("MegatronBert", {}),
    ("XLMRobertaXL", {}),
    ("CLIPText", {}),
    ("CLIPText", {"hidden_act": "gelu", "eos_token_id": 2}),
    ("SiglipText", {}),
    ("ChineseCLIPText", {}),
    ("GPT2", {}),
    ("Xmod", {}),
    ("ConvBert", {}),
    ("Nystromformer", {}),
    ("Funnel", {}),
    ("Esm", {}),
)
IMAGES: tuple[tuple[str, dict], ...] = (
    ("ViT", {}),
    ("ViT", {"qkv_bias": False, "hidden_act": "gelu_new", "layer_norm_eps": 1e-3}),
    ("CLIPVision", {}),
    ("CLIPVision", {"hidden_act": "gelu", "num_attention_heads": 12}),
    ("SiglipVision", {}),
    ("SiglipVision", {"vision_use_head": False}),
    ("Siglip2Vision", {}),
    ("Dinov2", {}),
    ("Dinov2", {"use_swiglu_ffn": True}),
    ("Dinov2WithRegisters", {"num_register_tokens": 3}),
    ("Dinov2", {"image_size": 36, "patch_size": 8}),
    ("ChineseCLIPVision", {}),
    ("DeiT", {}),
    ("ViTMSN", {}),
    ("ViTMAE", {}),
    ("Beit", {}),
    ("DINOv3ViT", {}),
    ("Ijepa", {}),
    ("ResNet", {}),
    ("ResNet", {"layer_type": "basic"}),
    ("ResNet", {"downsample_in_bottleneck": True, "downsample_in_first_stage": True}),
    ("ResNet", {"hidden_act": "gelu"}),
    ("ConvNext", {}),
    ("ConvNext", {"hidden_act": "gelu_new"}),
    ("ConvNext", {"patch_size": 2}),
    ("ConvNextV2", {}),
    ("RegNet", {}),
    ("MobileNetV2", {}),
    ("EfficientNet", {}),
    ("Swin", {}),
)
TWO_TOWERS: tuple[tuple[str, dict], ...] = (
    ("CLIP", {}),
    ("CLIP", {"vision_config": {"hidden_act": "gelu"}, "text_config": {"hidden_act": "gelu"}}),
    ("CLIP", {"text_config": {"eos_token_id": 2}}),
    ("Siglip", {}),
    ("ChineseCLIP", {}),
    ("AltCLIP", {"text_config": {"max_position_embeddings": 40}}),
    ("Blip", {}),
    ("GroupViT", {}),
    ("OwlViT", {}),
    ("XCLIP", {}),
    ("MetaClip2", {}),
    ("Siglip2", {}),
    ("VisionTextDualEncoder", {}),
)


def title(name: str, fields: dict) -> str:
    """Return a class's name with what is not usual about it."""
    return ", ".join([name, *(f"{k}={v!r}" for k, v in fields.items())])


def make(name: str, config: Any) -> torch.nn.Module:
    """Return a model with weights that all count, in evaluation mode."""
    model = getattr(transformers, f"{name}Model")(config)
    randomise(model)
    return model.eval()


def config_of(name: str, fields: dict, usual: dict) -> Any:
    """Return a class's configuration; fields that it does not have are left out."""
    config_class = getattr(transformers, f"{name}Config")
    known = config_class().to_dict() | dict.fromkeys(getattr(config_class, "attribute_map", {}))
    return config_class(**{k: v for k, v in usual.items() if k in known} | fields)


def text_case(name: str, fields: dict) -> Case:
    """Return the case of a text model."""

    def write(folder: Path) -> Reference:
        usual = CLIP_TEXT if name in ("CLIPText", "SiglipText") else TEXT
        model = make(name, config_of(name, fields, usual))
        padding = getattr(model.config, "pad_token_id", 0) or 0
        tokens, mask = texts(VOCABULARY, 16, padding=padding, last=VOCABULARY - 1)
        arguments = {"attention_mask": torch.from_numpy(mask).long()}
        pool: Pool = {"CLIPText": pooled, "SiglipText": last, "ChineseCLIPText": first}.get(
            name, mean
        )
        if name == "SiglipText":
            arguments = {}
        with torch.no_grad():
            output = model(torch.from_numpy(tokens).long(), **arguments)
            features = pool(output, torch.from_numpy(mask))
        model.save_pretrained(folder)
        return Reference(text=(tokens, mask, features.numpy()))

    return Case("transformers", title(name, fields), write)


def image_case(name: str, fields: dict) -> Case:
    """Return the case of an image model."""

    def write(folder: Path) -> Reference:
        usual = STAGES if name in ("ResNet", "ConvNext", "ConvNextV2", "RegNet") else IMAGE
        model = make(name, config_of(name, fields, usual))
        pixels = images(getattr(model.config, "image_size", 64) if usual is IMAGE else 64)
        with torch.no_grad():
            output = model(pixels)
        features = first(output, None) if name in ("ViT", "Dinov2") else pooled(output, None)
        model.save_pretrained(folder)
        return Reference(image=(pixels.numpy(), features.numpy()))

    return Case("transformers", title(name, fields), write)


def two_tower_case(name: str, fields: dict) -> Case:
    """Return the case of a model with both."""

    def write(folder: Path) -> Reference:
        model = _two_towers(name, fields)
        text = model.config.text_config
        padding = getattr(text, "pad_token_id", 0) or 0
        tokens, mask = texts(VOCABULARY, 16, padding=padding, last=VOCABULARY - 1)
        pixels, ids = images(32), torch.from_numpy(tokens).long()
        arguments = {} if name == "Siglip" else {"attention_mask": torch.from_numpy(mask).long()}
        with torch.no_grad():
            image = _features(model.get_image_features(pixels))
            embedded = _features(model.get_text_features(ids, **arguments))
        model.save_pretrained(folder)
        return Reference(
            (pixels.numpy(), image.numpy()), (tokens, mask, embedded.numpy()), projected=True
        )

    return Case("transformers", title(name, fields), write)


def _features(output: Any) -> torch.Tensor:
    return output if isinstance(output, torch.Tensor) else output.pooler_output


def _two_towers(name: str, fields: dict) -> torch.nn.Module:
    if name == "VisionTextDualEncoder":
        config = transformers.VisionTextDualEncoderConfig.from_vision_text_configs(
            transformers.ViTConfig(**IMAGE), transformers.BertConfig(**TEXT)
        )
    else:
        config = getattr(transformers, f"{name}Config")(
            vision_config={**IMAGE, **fields.get("vision_config", {})},
            text_config={**CLIP_TEXT, **fields.get("text_config", {})},
        )
    return make(name, config)
