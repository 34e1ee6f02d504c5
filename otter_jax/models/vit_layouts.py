"""What the checkpoints of Vision Transformers look like: names, descriptions, position tables.

Read from timm's folders and state dicts, from transformers' (ViT, CLIP, SigLIP, DINOv2), and from
files with both towers of OpenAI's CLIP, open_clip and DeCLIP.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from otter_jax.models import timm_names
from otter_jax.models.descriptions import TRANSFORMERS_KEYS, Description, Guess, Keys, words
from otter_jax.models.preprocessing import CLIP_RESIZE, CLIP_STATISTICS
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
Names = tuple[Substitution, ...]

CLIP_FORM = {
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "pre_norm": True,
    "patch_bias": False,
    **CLIP_STATISTICS,
}
# Width -> attention heads, where all published image towers agree. At 1,536 they do not.
PUBLISHED_HEADS = {
    width: width // 64 for width in (192, 256, 320, 384, 512, 576, 640, 768, 832, 896, 1024)
} | dict.fromkeys((1152, 1280, 1408, 1664, 1792), 16)

TIMM_NAMES = (
    (r"^class_token", "cls_token"),
    (r"^register_tokens", "reg_token"),
    (r"^position_embeddings", "pos_embed"),
    (r"^patch_embedding", "patch_embed.proj"),
    (r"^embeddings_norm", "norm_pre"),
    (r"^final_norm", "norm"),
    (r"^pooled_norm", "fc_norm"),
    (r"^attention_pool\.probe", "attn_pool.latent"),
    (r"^attention_pool\.output", "attn_pool.proj"),
    (r"^attention_pool\.query", "attn_pool.q"),
    (r"^attention_pool\.", "attn_pool."),
    (r"attention\.output", "attn.proj"),
    (r"attention\.", "attn."),
    (r"scale([12])", r"ls\1.gamma"),
    (r"fc([12])", r"mlp.fc\1"),
)
HUGGING_FACE_NAMES = (
    (r"^class_token", "embeddings.cls_token"),
    (r"^position_embeddings", "embeddings.position_embeddings"),
    (r"^patch_embedding", "embeddings.patch_embeddings.projection"),
    (r"^final_norm", "layernorm"),
    (r"^blocks\.", "encoder.layer."),
    (r"attention\.(query|key|value)", r"attention.attention.\1"),
    (r"attention\.output", "attention.output.dense"),
    (r"norm1", "layernorm_before"),
    (r"norm2", "layernorm_after"),
    (r"fc1", "intermediate.dense"),
    (r"fc2", "output.dense"),
)
DINOV2_NAMES = (
    (r"^class_token", "embeddings.cls_token"),
    (r"^register_tokens", "embeddings.register_tokens"),
    (r"^position_embeddings", "embeddings.position_embeddings"),
    (r"^patch_embedding", "embeddings.patch_embeddings.projection"),
    (r"^final_norm", "layernorm"),
    (r"^blocks\.", "encoder.layer."),
    (r"attention\.(query|key|value)", r"attention.attention.\1"),
    (r"attention\.output", "attention.output.dense"),
    (r"scale([12])", r"layer_scale\1.lambda1"),
    (r"fc([12])", r"mlp.fc\1"),
)
HUGGING_FACE_CLIP_NAMES = (
    (r"^class_token", "embeddings.class_embedding"),
    (r"^position_embeddings", "embeddings.position_embedding.weight"),
    (r"^patch_embedding", "embeddings.patch_embedding"),
    (r"^embeddings_norm", "pre_layrnorm"),
    (r"^final_norm", "post_layernorm"),
    *HUGGING_FACE_CLIP_BLOCKS,
    (r"^attention_pool\.output", "head.attention.out_proj"),
    (r"^attention_pool\.(query|key|value)", r"head.attention.\1"),
    (r"^attention_pool\.norm", "head.layernorm"),
    (r"^attention_pool\.", "head."),
)
OPENAI_NAMES = (
    (r"^class_token", "class_embedding"),
    (r"^position_embeddings", "positional_embedding"),
    (r"^patch_embedding", "conv1"),
    (r"^embeddings_norm", "ln_pre"),
    (r"^(final|pooled)_norm", "ln_post"),
    *OPENAI_BLOCKS,
    (r"^", "visual."),
)


def resample_positions(positions: np.ndarray, grid_size: int, prefix_tokens: int = 1) -> np.ndarray:
    """Fit position embeddings to another number of patches, as timm and open_clip do.

    Args:
        positions: [prefix_tokens + old * old, width], those of the tokens before the patches first.
        grid_size: patches along each side of the new images.
        prefix_tokens: how many of those there are.

    Returns:
        [prefix_tokens + grid_size * grid_size, width], the first as they were, the others resampled
        by bicubic interpolation with antialiasing (`torch.nn.functional.interpolate`).

    Raises:
        ValueError: the others are not those of a square grid.
    """
    old_size = _grid_of(len(positions), prefix_tokens)
    if old_size == grid_size:
        return positions
    width = positions.shape[1]
    grid = jnp.asarray(positions[prefix_tokens:], jnp.float32).reshape(old_size, old_size, width)
    resampled = jax.image.resize(grid, (grid_size, grid_size, width), "cubic", antialias=True)
    return np.concatenate([positions[:prefix_tokens], np.asarray(resampled).reshape(-1, width)])


def _grid_of(positions: int, prefix_tokens: int) -> int:
    size = math.isqrt(max(positions - prefix_tokens, 0))
    if size < 1 or size * size != positions - prefix_tokens:
        before = "the class token" if prefix_tokens == 1 else f"{prefix_tokens} tokens"
        raise ValueError(
            f"the checkpoint has {positions} position embeddings; this ViT needs "
            f"{f'one for {before} and ' if prefix_tokens else ''}those of a square grid of patches"
        )
    return size


def _positions_before_patches(positions: int, class_token: bool, registers: int) -> int:
    """Return how many positions are those of tokens before the patches: all, the class token's, 0.

    Rows are left over for the patches, which make a square: that decides it.
    """
    for count in (class_token + registers, int(class_token)):
        if math.isqrt(max(positions - count, 0)) ** 2 == positions - count > 0:
            return count
    return 0 if math.isqrt(positions) ** 2 == positions else class_token + registers


def _shape_fields(arrays: CheckpointArrays, names: Names) -> Fields:
    """Return the fields of `ViTConfig` that the arrays' names and shapes tell."""

    def has(path: str) -> bool:
        return checkpoint_name(path, names) in arrays

    patches = array_named(arrays, checkpoint_name("patch_embedding.weight", names))
    positions = array_named(arrays, checkpoint_name("position_embeddings", names)).shape[-2]
    registers = checkpoint_name("register_tokens", names)
    fields = {
        **block_fields(arrays, names),
        "patch_size": patches.shape[-1],
        "pre_norm": has("embeddings_norm.weight"),
        "patch_bias": has("patch_embedding.bias"),
        "qkv_bias": has("blocks.0.attention.query.bias"),
        "class_token": has("class_token"),
        "register_tokens": arrays[registers].shape[-2] if registers in arrays else 0,
    }
    before = _positions_before_patches(positions, fields["class_token"], fields["register_tokens"])
    fields["prefix_positions"] = before
    fields["image_size"] = _grid_of(positions, before) * patches.shape[-1]
    if has("attention_pool.probe"):
        fields["pooling"] = "map"
    else:
        fields["pooling"] = "cls" if fields["class_token"] else "mean"
    return fields


def _guessed_heads(shape: Fields) -> Guess:
    return Guess(PUBLISHED_HEADS.get(shape["hidden_size"]))


# timm. Sizes of its models, the second word of their names -> attention heads.
TIMM_HEADS = {
    **{"tiny": 3, "xsmall": 4, "wee": 4, "little": 5, "small": 6, "medium": 8, "mediumd": 8},
    **{"betwixt": 10, "base": 12, "so150m2": 13, "so150m": 14, "large": 16, "so400m": 16},
    **{"huge": 16, "giant": 16, "giantopt": 16, "gigantic": 16},
}
_SIZE = f"({'|'.join(TIMM_HEADS)})"
_TANH = {"hidden_act": "gelu_pytorch_tanh"}
# Architectures -> what neither weights nor sizes tell; exceptions come first.
TIMM_ARCHITECTURES: Mapping[str, Fields] = {
    r"vit_base_patch16_gap_224": {"num_attention_heads": 16},
    r"vit_base_patch(16|32)_plus_(clip_)?\d+": {"num_attention_heads": 14},
    r"vit_giant_patch14_(reg\d_)?(dinov2|tipsv2)": {"num_attention_heads": 24, "gated": True},
    rf"vit_{_SIZE}_patch14_(reg\d_)?(dinov2|tipsv2)": {},
    r"vit_base_patch32_siglip_(gap_)?\d+": _TANH,
    r"vit_large_patch16_siglip_(gap_)?512": _TANH,
    r"vit_(giantopt|so400m)_patch16_siglip_(gap_)?\d+": _TANH,
    rf"vit_{_SIZE}_patch\d+_siglip_(gap_)?\d+": {},
    rf"vit_{_SIZE}_patch\d+_clip_quickgelu_\d+": {"hidden_act": "quick_gelu"},
    rf"vit_{_SIZE}_patch\d+_clip_\d+": {},
    rf"vit_{_SIZE}_patch\d+_(36x1_)?(reg\d_)?(gap_|map_)?\d+(_miil)?": {},
    rf"deit3?_{_SIZE}_patch\d+_\d+": {},
}
TIMM_POOLS = {"token": "cls", "avg": "mean", "map": "map"}
TIMM_ARGUMENTS = timm_names.COMMON_ARGUMENTS.extended(
    fields={
        "num_heads": "num_attention_heads",
        "pos_drop_rate": "hidden_dropout_prob",
        "attn_drop_rate": "attention_probs_dropout_prob",
    },
    only={
        "final_norm": (True,),
        "pool_include_prefix": (False,),
        "qk_norm": (False,),
        "scale_attn_norm": (False,),
        "scale_mlp_norm": (False,),
        "proj_bias": (True,),
        "pos_embed": ("learn",),
        "dynamic_img_pad": (False,),
        "norm_layer": (None,),
        "embed_norm_layer": (None,),
    },
    # What the weights themselves say, and what `_timm_fields` looks at.
    harmless=words("""img_size patch_size embed_dim depth mlp_ratio qkv_bias init_values class_token
    no_embed_class reg_tokens pre_norm fc_norm dynamic_img_size strict_img_size global_pool
    act_layer"""),
)


def _timm_fields(saved: Description, arrays: CheckpointArrays) -> Fields:
    # First, since other architectures may lack what tells the shape.
    facts = timm_names.architecture_of(saved, TIMM_ARCHITECTURES, "ViT") if saved else {}
    if "dist_token" in arrays:
        raise ValueError("the checkpoint has a 'dist_token': distilled DeiTs are not supported")
    after_pooling = "fc_norm.weight" in arrays
    shape = _shape_fields(arrays, TIMM_NAMES)
    # In timm all tokens before the patches have positions, or none has.
    before = shape["class_token"] + shape["register_tokens"]
    if shape["prefix_positions"] not in (0, before):
        found = array_named(arrays, "pos_embed").shape[-2]
        raise ValueError(
            f"the checkpoint has {found} position embeddings; this ViT needs one for {before} "
            "tokens and each patch, or for the patches alone"
        )
    shape |= {"norm_after_pooling": after_pooling}
    if shape["pre_norm"]:
        shape |= {"layer_norm_eps": 1e-5, **CLIP_STATISTICS}
    if not saved:
        if after_pooling:
            shape["pooling"] = "mean"
        guesses = {"num_attention_heads": _guessed_heads(shape), "hidden_act": Guess("gelu")}
        return shape | guesses | {"pooling": Guess(shape["pooling"])}
    if shape["gated"] and not facts.get("gated"):
        raise ValueError("the checkpoint has gated perceptrons, which its architecture has not")
    heads = TIMM_HEADS[saved["architecture"].split("_")[1]]
    fields = {"num_attention_heads": heads, "hidden_act": "gelu"} | facts
    fields |= timm_names.read_arguments(saved, TIMM_ARGUMENTS)
    arguments = saved.get("model_args") or {}
    fields |= timm_names.activation(arguments.get("act_layer"))
    size = arguments.get("img_size") or (saved.get("pretrained_cfg") or {}).get("input_size")
    fields |= _image_size(size, shape) | {"pooling": _timm_pooling(saved, shape)}
    return shape | fields


def _image_size(size: Any, shape: Fields) -> Fields:
    """Return the side of the images, which may have a rest that no patch covers (384 by 14)."""
    if size is None:
        return {}
    sides = set(np.ravel(size)[-2:].tolist())
    grid = shape["image_size"] // shape["patch_size"]
    if len(sides) == 1 and (side := sides.pop()) // shape["patch_size"] == grid:
        return {"image_size": side}
    return {}


def _timm_pooling(saved: Description, shape: Fields) -> str:
    pool = timm_names.global_pool_of(saved)
    if pool is None:
        return shape["pooling"]
    if pool not in TIMM_POOLS or (pool == "map") != (shape["pooling"] == "map"):
        raise ValueError(
            f"config.json says global_pool={pool!r}; this ViT pools by "
            f"{'map' if shape['pooling'] == 'map' else 'token or avg'}"
        )
    return TIMM_POOLS[pool]


# transformers.
TRANSFORMER_KEYS = TRANSFORMERS_KEYS.extended(
    fields={
        name: name
        for name in (
            *("hidden_size", "num_hidden_layers", "num_attention_heads", "hidden_act"),
            *("layer_norm_eps", "image_size", "patch_size"),
        )
    },
    defaults={"num_attention_heads": 12},
)
VIT_KEYS = TRANSFORMER_KEYS.extended(
    fields={
        "intermediate_size": "intermediate_size",
        "hidden_dropout_prob": "hidden_dropout_prob",
        "attention_probs_dropout_prob": "attention_probs_dropout_prob",
        "qkv_bias": "qkv_bias",
    },
    defaults={"hidden_act": "gelu", "layer_norm_eps": 1e-12},
    harmless=("encoder_stride", "pooler_output_size", "pooler_act"),
)
DINOV2_KEYS = TRANSFORMER_KEYS.extended(
    fields={
        "hidden_dropout_prob": "hidden_dropout_prob",
        "attention_probs_dropout_prob": "attention_probs_dropout_prob",
        "drop_path_rate": "stochastic_depth_rate",
        "qkv_bias": "qkv_bias",
        "use_swiglu_ffn": "gated",
        "num_register_tokens": "register_tokens",
    },
    defaults={"hidden_act": "gelu", "layer_norm_eps": 1e-6},
    harmless=(
        *("mlp_ratio", "layerscale_value", "apply_layernorm", "reshape_hidden_states"),
        *("use_mask_token", "interpolate_antialias", "interpolate_offset"),
    ),
)
CLIP_KEYS = TRANSFORMER_KEYS.extended(
    fields={
        "intermediate_size": "intermediate_size",
        "attention_dropout": "attention_probs_dropout_prob",
    },
    defaults={"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5},
    only={"dropout": (0.0,)},
    harmless=("projection_dim",),
)
SIGLIP_KEYS = CLIP_KEYS.extended(
    defaults={"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6},
    only={"vision_use_head": (True,)},
)
MODEL_TYPES: Mapping[str, Keys] = {
    "vit": VIT_KEYS,
    "dinov2": DINOV2_KEYS,
    "dinov2_with_registers": DINOV2_KEYS,
    "clip_vision_model": CLIP_KEYS,
    "chinese_clip_vision_model": CLIP_KEYS,
    "clipseg_vision_model": CLIP_KEYS,
    "siglip_vision_model": SIGLIP_KEYS,
}


def _transformers_fields(saved: Description, arrays: CheckpointArrays, names: Names) -> Fields:
    """Return what config.json says, as far as the weights agree, and what it leaves to them."""
    shape = _shape_fields(arrays, names)
    keys = MODEL_TYPES[saved["model_type"]]
    fields = keys.read(saved, "config.json")
    for name in ("image_size", "patch_size"):
        sides = np.ravel(fields.get(name) or shape[name]).tolist()
        if len(set(sides)) != 1:
            raise ValueError(f"config.json's {name} is {fields[name]}; this ViT needs a square")
        fields[name] = sides[0]
    if fields["image_size"] // fields["patch_size"] != shape["image_size"] // shape["patch_size"]:
        raise ValueError(
            f"config.json's image_size is {fields['image_size']}; the position embeddings are "
            f"those of {shape['image_size']} pixels"
        )
    return shape | fields


def _hugging_face_fields(saved: Description, arrays: CheckpointArrays) -> Fields:
    if not saved:
        shape = _shape_fields(arrays, HUGGING_FACE_NAMES)
        guesses = {"num_attention_heads": _guessed_heads(shape), "hidden_act": Guess("gelu")}
        return shape | guesses | {"layer_norm_eps": Guess(1e-12)}
    return _transformers_fields(saved, arrays, HUGGING_FACE_NAMES)


def _dinov2_fields(saved: Description, arrays: CheckpointArrays) -> Fields:
    if not saved:
        shape = _shape_fields(arrays, DINOV2_NAMES)
        heads = Guess(24) if shape["gated"] else _guessed_heads(shape)
        return shape | {"num_attention_heads": heads, "layer_norm_eps": Guess(1e-6)}
    return _transformers_fields(saved, arrays, DINOV2_NAMES)


def _hugging_face_clip_fields(saved: Description, arrays: CheckpointArrays) -> Fields:
    shape = _shape_fields(arrays, HUGGING_FACE_CLIP_NAMES)
    siglip = shape["pooling"] == "map" or not shape["class_token"]
    form = {} if siglip else CLIP_FORM | shape
    if not saved:
        acts = Guess("gelu_pytorch_tanh" if siglip else "quick_gelu")
        form = {"layer_norm_eps": Guess(1e-6 if siglip else 1e-5), **shape} | form
        return form | {"num_attention_heads": _guessed_heads(shape), "hidden_act": acts}
    return form | _transformers_fields(saved, arrays, HUGGING_FACE_CLIP_NAMES)


# open_clip, whose entries these are after `open_clip_files` has joined them.
OPEN_CLIP_KEYS = Keys(
    fields={"hidden_act": "hidden_act", "eps": "layer_norm_eps"},
    defaults={"eps": 1e-5},
    only={
        "attentional_pool": (False,),
        "output_tokens": (False, True),  # Only what else the model returns.
        "block_type": (None, "default", "custom"),
        "timm_model_name": (None, ""),
        **dict.fromkeys(("qk_norm", "scaled_cosine_attn", "scale_heads"), (False,)),
        **dict.fromkeys(("scale_attn_inner", "scale_attn", "scale_fc"), (False,)),
    },
    # Of these the weights tell as much, or `_openai_fields` looks at them.
    harmless=words("""layers width head_width mlp_ratio patch_size image_size ls_init_value
        patch_dropout attn_pooler_queries attn_pooler_heads no_ln_pre pos_embed_type
        final_ln_after_pool pool_type timm_model_pretrained timm_pool timm_proj timm_proj_bias
        timm_drop timm_drop_path"""),
)
OPEN_CLIP_POOLS = {"tok": "cls", "avg": "mean"}


def _openai_fields(saved: Description, arrays: CheckpointArrays) -> Fields:
    shape = CLIP_FORM | {"resize": CLIP_RESIZE} | _shape_fields(arrays, OPENAI_NAMES)
    if not saved:
        heads = _guessed_heads(shape)
        return shape | {"hidden_act": Guess("quick_gelu"), "num_attention_heads": heads}
    source = "open_clip_config.json's vision_cfg"
    fields = OPEN_CLIP_KEYS.read(saved, source)
    pool = saved.get("pool_type", "tok")
    if pool not in OPEN_CLIP_POOLS:
        raise ValueError(f"{source} says pool_type={pool!r}; only 'tok' or 'avg' is supported")
    return (
        shape
        | fields
        | {
            **_image_size(saved.get("image_size"), shape),
            "num_attention_heads": shape["hidden_size"] // saved.get("head_width", 64),
            "pooling": OPEN_CLIP_POOLS[pool],
            "norm_after_pooling": saved.get("final_ln_after_pool", False),
        }
    )


@dataclass(frozen=True)
class _Prepare:
    """Brings respelled arrays into the tower's form, at the grid of the tower that asks."""

    names: Names
    grid_size: int | None = None

    def __call__(self, arrays: CheckpointArrays) -> dict[str, np.ndarray]:
        arrays = split_query_key_value(arrays)
        positions = checkpoint_name("position_embeddings", self.names)
        dimensions = {"class_token": 1, "register_tokens": 2, "attention_pool.probe": 1}
        for path, count in {**dimensions, "position_embeddings": 2}.items():
            name = checkpoint_name(path, self.names)
            # timm and Hugging Face's ViT keep axes for the batch and the token.
            while name in arrays and arrays[name].ndim > count and len(arrays[name]) == 1:
                arrays[name] = arrays[name][0]
        if self.grid_size is not None and positions in arrays:
            table = arrays[positions]
            class_token = checkpoint_name("class_token", self.names) in arrays
            registers = arrays.get(checkpoint_name("register_tokens", self.names), ())
            before = _positions_before_patches(len(table), class_token, len(registers))
            arrays[positions] = resample_positions(table, self.grid_size, before)
        return arrays


TIMM_LAYOUT = CheckpointLayout(
    recognised_by="patch_embed.proj.weight",
    names=TIMM_NAMES,
    ignored=("head.*", "pre_logits.*"),
    prepare=_Prepare(TIMM_NAMES),
    fields=_timm_fields,
)
HUGGING_FACE_LAYOUT = CheckpointLayout(
    recognised_by="embeddings.patch_embeddings.projection.weight",
    names=HUGGING_FACE_NAMES,
    spellings=(
        (r"^vit\.", ""),
        # The names in a state dict of transformers 5, which saves folders under those above.
        (r"^layers\.", "encoder.layer."),
        (r"attention\.q_proj", "attention.attention.query"),
        (r"attention\.k_proj", "attention.attention.key"),
        (r"attention\.v_proj", "attention.attention.value"),
        (r"attention\.o_proj", "attention.output.dense"),
        (r"mlp\.fc1", "intermediate.dense"),
        (r"mlp\.fc2", "output.dense"),
    ),
    ignored=("pooler.*", "classifier.*", "embeddings.mask_token", "decoder.*"),
    prepare=_Prepare(HUGGING_FACE_NAMES),
    fields=_hugging_face_fields,
)
DINOV2_LAYOUT = CheckpointLayout(
    recognised_by="encoder.layer.0.layer_scale1.lambda1",
    names=DINOV2_NAMES,
    spellings=(
        (r"^(dinov2|dinov2_with_registers)\.", ""),
        (r"^layers\.", "encoder.layer."),
        (r"attention\.q_proj", "attention.attention.query"),
        (r"attention\.k_proj", "attention.attention.key"),
        (r"attention\.v_proj", "attention.attention.value"),
        (r"attention\.o_proj", "attention.output.dense"),
        (r"mlp\.weights_in", "mlp.fc1"),
        (r"mlp\.weights_out", "mlp.fc2"),
    ),
    ignored=("classifier.*", "embeddings.mask_token"),
    prepare=_Prepare(DINOV2_NAMES),
    fields=_dinov2_fields,
)
HUGGING_FACE_CLIP_LAYOUT = CheckpointLayout(
    recognised_by="embeddings.patch_embedding.weight",
    names=HUGGING_FACE_CLIP_NAMES,
    ignored=("embeddings.position_ids",),
    prepare=_Prepare(HUGGING_FACE_CLIP_NAMES),
    fields=_hugging_face_clip_fields,
)
OPENAI_LAYOUT = CheckpointLayout(
    recognised_by="visual.class_embedding",
    names=OPENAI_NAMES,
    prepare=_Prepare(OPENAI_NAMES),
    fields=_openai_fields,
)
# DINOv2's names are those of Hugging Face's ViT and some more, so it must be asked first.
LAYOUTS = (
    TIMM_LAYOUT,
    DINOV2_LAYOUT,
    HUGGING_FACE_LAYOUT,
    HUGGING_FACE_CLIP_LAYOUT,
    OPENAI_LAYOUT,
)
