"""timm's models by their names, as its own `save_for_hf` writes them."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import timm
import torch
from timm.models import save_for_hf

from tests.oracle.comparing import Case, Reference, images, randomise

PATTERNS = (
    *("resnet*", "vit*", "deit*", "convnext*"),
    *("resnext*", "wide_resnet*", "regnet*", "eva*", "*mobileclip*", "swin_*", "beit*"),
)
# A block or a stage each, by the first of these arguments that a model takes.
SMALL = ({"depth": 1}, {"depths": (1, 1, 1, 1)}, {"layers": (1, 1, 1, 1)}, {})
LARGEST = 600e6  # Parameters, of models that none of these makes small.
# Arguments that change the numbers, and that config.json tells.
ARGUMENTS = (
    ("vit_base_patch16_224", {"global_pool": "avg", "fc_norm": False}),
    ("vit_base_patch16_224", {"global_pool": "avg"}),
    ("vit_base_patch16_224", {"global_pool": "max"}),
    ("vit_base_patch16_224", {"num_heads": 4}),
    ("vit_base_patch16_224", {"act_layer": "quick_gelu"}),
    ("vit_base_patch16_224", {"act_layer": "silu"}),
    ("vit_base_patch16_224", {"class_token": False, "global_pool": "avg"}),
    ("vit_base_patch16_224", {"reg_tokens": 3}),
    ("vit_base_patch16_224", {"no_embed_class": True}),
    ("vit_base_patch16_224", {"init_values": 1e-5}),
    ("vit_base_patch16_224", {"pre_norm": True}),
    ("vit_base_patch16_224", {"qkv_bias": False}),
    ("vit_base_patch16_224", {"qk_norm": True}),
    ("vit_base_patch16_224", {"final_norm": False}),
    ("vit_base_patch16_224", {"img_size": 256}),
    ("vit_base_patch16_224", {"img_size": (224, 160)}),
    ("vit_base_patch16_224", {"in_chans": 1}),
    ("vit_base_patch16_224", {"embed_dim": 192, "num_heads": 12}),
    ("vit_base_patch16_224", {"pool_include_prefix": True, "global_pool": "avg"}),
    ("vit_base_patch16_siglip_224", {"global_pool": "avg"}),
    ("resnet50", {"global_pool": "max"}),
    ("resnet50", {"global_pool": "avgmax"}),
    ("resnet50", {"output_stride": 8}),
    ("resnet50", {"avg_down": True}),
    ("resnet50", {"stem_type": "deep", "stem_width": 32}),
    ("resnet50", {"replace_stem_pool": True}),
    ("convnext_tiny", {"global_pool": "max"}),
    ("convnext_tiny", {"head_norm_first": True}),
    ("convnext_tiny", {"ls_init_value": None}),
    ("convnext_tiny", {"conv_mlp": True}),
    ("convnext_tiny", {"output_stride": 16}),
)


def cases() -> Iterator[Case]:
    """Yield a case for every name, and some with arguments."""
    names = sorted({name for pattern in PATTERNS for name in timm.list_models(pattern)})
    for name in names:
        yield case(name)
    for name, arguments in ARGUMENTS:
        yield case(name, **arguments)


def case(name: str, **arguments: object) -> Case:
    """Return one model's case."""
    title = ", ".join([name, *(f"{k}={v!r}" for k, v in arguments.items())])
    return Case("timm", title, lambda folder: write(folder, name, **arguments))


def write(folder: Path, name: str, **arguments: object) -> Reference:
    """Save a model and return its pooled features."""
    model = small_model(name, SMALL, **arguments)
    randomise(model)
    model.eval()
    channels, *size = model.pretrained_cfg["input_size"]
    # Convolutions take any size, and compile faster for small ones.
    fixed = hasattr(model, "patch_embed") or hasattr(model, "pos_embed")
    pixels = images(arguments.get("img_size", tuple(size) if fixed else 64))
    with torch.no_grad():
        features = model.forward_head(
            model.forward_features(pixels[:, : arguments.get("in_chans", channels)]),
            pre_logits=True,
        )
    save_for_hf(model, folder, safe_serialization=True)
    return Reference(image=(pixels.numpy(), features.numpy()))


def small_model(name: str, small: Sequence[dict], **arguments: object) -> torch.nn.Module:
    """Return a model with as few blocks as its arguments allow."""
    for fewer in small:
        try:
            with torch.device("meta"):
                sketch = timm.create_model(name, **fewer, **arguments)
        except TypeError:
            continue
        if sum(p.numel() for p in sketch.parameters()) > LARGEST:
            raise ValueError("too large")
        return timm.create_model(name, **fewer, **arguments)
    raise ValueError("no arguments fit")
