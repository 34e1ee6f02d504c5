"""Writes a CLIP as open_clip's own kind of folder, which `local-dir:FOLDER` there names.

open_clip (Ilharco et al. 2021) reads transformers' weights no more than transformers reads its, so
that a folder for both holds the weights twice.
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from otter_jax.models.clip_text import ClipText
from otter_jax.models.clip_text_layouts import OPENAI_NAMES as TEXT_NAMES
from otter_jax.models.dual_encoder import DualEncoder
from otter_jax.models.vit import ViT
from otter_jax.models.vit_layouts import OPENAI_NAMES as IMAGE_NAMES
from otter_jax.models.weights import checkpoint_arrays

NamedArrays = dict[str, np.ndarray]

# Our settings' values -> open_clip's.
ACTIVATIONS = {"gelu": {}, "quick_gelu": {}, "gelu_pytorch_tanh": {"approximate": "tanh"}}
IMAGE_POOLS = {"cls": "tok", "mean": "avg"}
TEXT_POOLS = {"last": "last", "first": "first"}
CLEANINGS = {"canonical": "canonicalize", "lower": "lower"}


def export_open_clip(module: DualEncoder, folder: Path, preprocess: Mapping[str, Any]) -> bool:
    """Write open_clip_config.json and open_clip_model.safetensors beside what a folder has.

    Args:
        module: a dual encoder.
        folder: where the tokenizer lies.
        preprocess: what open_clip is to do to images besides mean and deviation.

    Returns:
        Whether open_clip has such a network at all; nothing is written if not.
    """
    if not _is_clip(module):
        return False
    image = module.image.config
    statistics = {"mean": list(image.mean), "std": list(image.std), **preprocess}
    described = {"model_cfg": _describe(module), "preprocess_cfg": statistics}
    (folder / "open_clip_config.json").write_text(json.dumps(described, indent=2) + "\n")
    weights = folder / "open_clip_model.safetensors"
    save_file(_arrays(module), weights, metadata={"format": "pt"})
    weights.chmod((folder / "open_clip_config.json").stat().st_mode)
    return True


def _describe(module: DualEncoder) -> dict[str, Any]:
    """Return the network in open_clip's words."""
    image, text = module.image.config, module.text.config
    act = ACTIVATIONS[image.hidden_act]
    return {
        "embed_dim": module.embed_dim,
        "quick_gelu": image.hidden_act == "quick_gelu",
        "vision_cfg": {
            **_shape(image),
            "image_size": image.image_size,
            "patch_size": image.patch_size,
            "head_width": image.hidden_size // image.num_attention_heads,
            "pool_type": IMAGE_POOLS[image.pooling],
            "final_ln_after_pool": image.norm_after_pooling,
            "no_ln_pre": not image.pre_norm,
            **({"act_kwargs": act} if act else {}),
        },
        "text_cfg": {
            **_shape(text),
            "heads": text.num_attention_heads,
            "context_length": text.max_position_embeddings,
            "vocab_size": text.vocab_size,
            "no_causal_mask": not text.causal,
            "hf_tokenizer_name": "tokenizer.json",  # Of this folder, whatever the name.
            "tokenizer_kwargs": {
                "clean": CLEANINGS.get(text.cleaning, "whitespace"),
                **({"strip_sep_token": True} if text.strip_separator else {}),
            },
            **_text_pool(text),
            **({"act_kwargs": act} if act else {}),
        },
    }


def _is_clip(module: DualEncoder) -> bool:
    if not isinstance(module.image, ViT) or not isinstance(module.text, ClipText):
        return False
    image, text = module.image.config, module.text.config
    projections = (module.image_projection, module.text_projection)
    return (
        all(isinstance(each, nnx.Linear) and not each.use_bias for each in projections)
        and image.hidden_act == text.hidden_act
        and image.hidden_act in ACTIVATIONS
        and image.pooling in IMAGE_POOLS
        and (image.class_token, image.register_tokens, image.prefix_positions) == (True, 0, 1)
        and image.qkv_bias
        and not (image.patch_bias or image.gated or text.gated)
        and not hasattr(module, "logit_bias")
    )


def _shape(config: Any) -> dict[str, Any]:
    return {
        "width": config.hidden_size,
        "layers": config.num_hidden_layers,
        "mlp_ratio": _ratio(config.intermediate_size, config.hidden_size),
        "norm_kwargs": {"eps": config.layer_norm_eps},
        **({"ls_init_value": 1e-5} if config.layer_scale else {}),
    }


def _ratio(product: int, factor: int) -> float:
    """Return what a factor is multiplied by, to give the product once it is rounded down."""
    ratio = product / factor
    return ratio if int(factor * ratio) == product else math.nextafter(ratio, math.inf)


def _text_pool(config: Any) -> dict[str, Any]:
    if config.pooling != "eos":
        return {"pool_type": TEXT_POOLS[config.pooling]}
    if config.eos_token_id is None:
        return {"pool_type": "argmax"}
    return {"pool_type": "eos", "eos_id": config.eos_token_id}


def _arrays(module: DualEncoder) -> NamedArrays:
    image = _fused(checkpoint_arrays(module.image, IMAGE_NAMES))
    text = _fused(checkpoint_arrays(module.text, TEXT_NAMES))
    return {
        **image,
        **text,
        "visual.proj": np.asarray(module.image_projection.kernel[...]),
        "text_projection": np.asarray(module.text_projection.kernel[...]),
        "logit_scale": np.asarray(module.log_scale[...]),
    }


def _fused(arrays: NamedArrays) -> NamedArrays:
    """Put queries, keys and values below each other, as PyTorch has them."""
    fused = {}
    for name, array in arrays.items():
        part = re.fullmatch(r"(.*\.attn\.)(query|key|value)\.(weight|bias)", name)
        if part is None:
            fused[name] = array
        elif part[2] == "query":
            parts = [arrays[f"{part[1]}{each}.{part[3]}"] for each in ("query", "key", "value")]
            fused[f"{part[1]}in_proj_{part[3]}"] = np.concatenate(parts)
    return fused
