"""What the checkpoints of CLIP's text towers look like: names, and descriptions.

Read from transformers' folders (CLIP, SigLIP), and from files with both towers of OpenAI's CLIP,
open_clip and DeCLIP.
"""

from collections.abc import Mapping
from typing import Any

from otter_jax.models.descriptions import TRANSFORMERS_KEYS, Description, Guess, Keys, words
from otter_jax.models.transformer import (
    HUGGING_FACE_CLIP_BLOCKS,
    OPENAI_BLOCKS,
    array_named,
    block_fields,
    checkpoint_name,
    split_query_key_value,
)
from otter_jax.models.weights import CheckpointArrays, CheckpointLayout, Substitution

Fields = dict[str, Any]

# In config.json files older than transformers 4.31 the id of the end-of-text token is this wrong
# one; the highest id was taken for it, as in OpenAI's own code.
DEFAULT_EOS = 49407  # Of a CLIP whose config.json does not say.
WRONG_EOS_TOKEN_ID = 2
# Width -> attention heads, where all published text towers agree: they are 64 wide, but for
# SigLIP's, which are told by their names.
PUBLISHED_HEADS = {width: width // 64 for width in (256, 384, 512, 640, 768, 896, 1024, 1280)}
SIGLIP_FORM = {"causal": False, "pooling": "last", "cleaning": "canonical"}

HUGGING_FACE_NAMES = (
    (r"^token_embeddings", "embeddings.token_embedding"),
    (r"^position_embeddings", "embeddings.position_embedding.weight"),
    (r"^final_norm", "final_layer_norm"),
    *HUGGING_FACE_CLIP_BLOCKS,
)
OPENAI_NAMES = (
    (r"^token_embeddings", "token_embedding"),
    (r"^position_embeddings", "positional_embedding"),
    (r"^final_norm", "ln_final"),
    *OPENAI_BLOCKS,
)

CLIP_KEYS = TRANSFORMERS_KEYS.extended(
    fields={
        name: name
        for name in (
            *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
            *("num_attention_heads", "max_position_embeddings", "hidden_act", "layer_norm_eps"),
            "eos_token_id",
        )
    }
    | {"attention_dropout": "attention_probs_dropout_prob"},
    defaults={
        "num_attention_heads": 8,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
        "eos_token_id": DEFAULT_EOS,
    },
    only={"dropout": (0.0,)},
    harmless=("projection_dim",),
)
SIGLIP_KEYS = CLIP_KEYS.extended(
    defaults={
        "num_attention_heads": 12,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
    },
    harmless=("projection_size",),
)
MODEL_TYPES: Mapping[str, Keys] = {
    "clip_text_model": CLIP_KEYS,
    "clipseg_text_model": CLIP_KEYS,
    "siglip_text_model": SIGLIP_KEYS,
}
# open_clip, whose entries these are after `open_clip_files` has joined them.
OPEN_CLIP_KEYS = Keys(
    fields={"hidden_act": "hidden_act", "eps": "layer_norm_eps", "heads": "num_attention_heads"},
    defaults={"heads": 8, "eps": 1e-5},
    only={
        "embed_cls": (False,),
        "final_ln_after_pool": (False, True),  # One position's norm is its own either way.
        "output_tokens": (False, True),  # Only what else the model returns.
        "block_type": (None, "default", "custom"),
        "hf_model_name": (None, ""),
        **dict.fromkeys(("qk_norm", "scaled_cosine_attn", "scale_heads"), (False,)),
        **dict.fromkeys(("scale_attn_inner", "scale_attn", "scale_fc"), (False,)),
    },
    # The tokenizer's, what the weights tell as well, and what `_openai_fields` looks at.
    harmless=words(
        """context_length vocab_size hf_tokenizer_name tokenizer_mode tokenizer_kwargs width layers
        mlp_ratio ls_init_value pad_id eos_id no_causal_mask pool_type proj_bias proj_type
        hf_model_pretrained hf_proj_type hf_pooler_type"""
    ),
)


def _shape_fields(arrays: CheckpointArrays, names: tuple[Substitution, ...]) -> Fields:
    """Return the fields of `ClipTextConfig` that the arrays' shapes tell."""
    tokens = array_named(arrays, checkpoint_name("token_embeddings.weight", names))
    positions = array_named(arrays, checkpoint_name("position_embeddings", names))
    return {
        **block_fields(arrays, names),
        "vocab_size": len(tokens),
        "max_position_embeddings": len(positions),
    }


def _guesses(shape: Fields) -> Fields:
    heads = PUBLISHED_HEADS.get(shape["hidden_size"])
    return {"num_attention_heads": Guess(heads), "hidden_act": Guess("quick_gelu")}


def _hugging_face_fields(saved: Description, arrays: CheckpointArrays) -> Fields:
    shape = _shape_fields(arrays, HUGGING_FACE_NAMES)
    if not saved:
        return shape | _guesses(shape)
    fields = shape | MODEL_TYPES[saved["model_type"]].read(saved, "config.json")
    if saved["model_type"] == "siglip_text_model":
        return fields | SIGLIP_FORM | {"eos_token_id": None}
    if fields["eos_token_id"] == WRONG_EOS_TOKEN_ID:
        fields["eos_token_id"] = None
    # A text is told by its end; one that no token can be would make all texts alike.
    end, size = fields["eos_token_id"], shape["vocab_size"]
    if end is not None and not 0 <= end < size:
        raise ValueError(
            f"config.json says eos_token_id={end} (unless it says so, {DEFAULT_EOS}), which a "
            f"vocabulary of {size} does not have"
        )
    return fields


def _openai_fields(saved: Description, arrays: CheckpointArrays) -> Fields:
    shape = _shape_fields(arrays, OPENAI_NAMES)
    if not saved:
        return shape | _guesses(shape)
    source = "open_clip_config.json's text_cfg"
    fields = OPEN_CLIP_KEYS.read(saved, source)
    pool = saved.get("pool_type", "argmax")
    if pool not in ("argmax", "eos", "last", "first"):
        raise ValueError(
            f"{source} says pool_type={pool!r}; only 'argmax', 'eos', 'last' or 'first' is "
            "supported"
        )
    return (
        shape
        | fields
        | {
            "causal": not saved.get("no_causal_mask", False),
            "pooling": "eos" if pool == "argmax" else pool,
            "eos_token_id": saved.get("eos_id", 2) if pool == "eos" else None,
        }
    )


HUGGING_FACE_LAYOUT = CheckpointLayout(
    recognised_by="embeddings.token_embedding.weight",
    names=HUGGING_FACE_NAMES,
    ignored=("embeddings.position_ids", "head.*"),  # The latter is SigLIP's projection.
    fields=_hugging_face_fields,
)
OPENAI_LAYOUT = CheckpointLayout(
    recognised_by="token_embedding.weight",
    names=OPENAI_NAMES,
    ignored=("attn_mask",),
    prepare=split_query_key_value,
    fields=_openai_fields,
)
LAYOUTS = (HUGGING_FACE_LAYOUT, OPENAI_LAYOUT)
