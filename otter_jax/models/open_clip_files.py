"""What open_clip_config.json says about either tower of a model of open_clip (Ilharco et al. 2021).

open_clip builds a tower itself, or takes one of timm's or of transformers'. What is said about it
is brought here into the form in which the tower's own checkpoint layout reads it.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from otter_jax.models.descriptions import Description, Keys, refuse_other, refuse_other_kinds, words
from otter_jax.models.two_towers import Kind

SOURCE = "open_clip_config.json"

FOLDER_KEYS = Keys(harmless=words("model_cfg preprocess_cfg"))
MODEL_KEYS = Keys(
    only={"multimodal_cfg": (None,), "nonscalar_logit_scale": (False,)},  # The first is CoCa's.
    harmless=words(
        """embed_dim vision_cfg text_cfg quick_gelu custom_text init_logit_scale init_logit_bias
        output_dict cast_dtype"""
    ),
)
PREPROCESS_KEYS = Keys(
    only={"mode": ("RGB",)},
    harmless=words("size mean std interpolation resize_mode fill_color"),
)
# Of a tower of timm's: where its weights came from; what its head is, the file's names say too.
TIMM_TOWER_KEYS = Keys(
    harmless=words(
        """timm_model_name timm_pool timm_model_pretrained timm_proj timm_proj_bias timm_drop
        timm_drop_path image_size patch_dropout layers width head_width mlp_ratio patch_size"""
    )
)
HUGGING_FACE_TOWER_KEYS = Keys(
    harmless=words(
        """hf_model_name hf_tokenizer_name hf_pooler_type hf_proj_type hf_model_pretrained
        tokenizer_mode tokenizer_kwargs context_length vocab_size width heads layers pad_id
        proj_type proj_bias output_tokens mlp_ratio"""
    )
)
HUGGING_FACE_POOLINGS = {"mean_pooler": "mean", "cls_last_hidden_state_pooler": "cls"}


# How open_clip's tokenizers clean texts -> our names.
CLEANINGS = {"lower": "lower", "whitespace": "whitespace", "canonicalize": "canonical"}
TOKENIZER_KEYS = Keys(fields={"clean": "cleaning", "strip_sep_token": "strip_separator"})


class TowerDescription(NamedTuple):
    """What a file says about one tower."""

    saved: Description  # As the tower's layout reads it; empty where the weights say it all.
    settings: Mapping[str, Any] = {}  # Of the tower, by our names.


def describe(kind: Kind, config: Description) -> TowerDescription:
    """Return what an open_clip_config.json says about one tower.

    Raises:
        ValueError: an entry is unknown, or asks for what no tower here computes.
    """
    FOLDER_KEYS.read(config, SOURCE)
    PREPROCESS_KEYS.read(config.get("preprocess_cfg") or {}, f"{SOURCE}'s preprocess_cfg")
    model = config.get("model_cfg") or {}
    MODEL_KEYS.read(model, f"{SOURCE}'s model_cfg")
    part = {"image": "vision_cfg", "text": "text_cfg"}[kind]
    if not isinstance(tower := model.get(part), Mapping):
        raise ValueError(f"{SOURCE} has no {part}")
    source = f"{SOURCE}'s {part}"
    refuse_other_kinds(tower, source)
    if tower.get("timm_model_name"):
        return _timm_tower(tower, source)
    cleaning = _cleaning(tower, source) if kind == "text" else {}
    if tower.get("hf_model_name"):
        return _hugging_face_tower(tower, source, cleaning)
    return TowerDescription(_own_tower(tower, bool(model.get("quick_gelu")), source), cleaning)


def _cleaning(tower: Description, source: str) -> dict[str, Any]:
    """Return how captions are cleaned: CLIP's way, or as the tokenizer's arguments say."""
    arguments = TOKENIZER_KEYS.read(tower.get("tokenizer_kwargs") or {}, f"{source}'s tokenizer")
    usual = "whitespace" if tower.get("hf_tokenizer_name") else "lower"
    named = arguments.get("cleaning", usual)
    refuse_other(named, tuple(CLEANINGS), "clean", f"{source}'s tokenizer_kwargs")
    strip = arguments.get("strip_separator", False)
    return {"cleaning": CLEANINGS[named], "strip_separator": strip}


def _own_tower(tower: Description, quick_gelu: bool, source: str) -> Description:
    """Return a description with activation and epsilon under one name each."""
    entries = {k: v for k, v in tower.items() if k not in ("act_kwargs", "norm_kwargs")}
    entries["hidden_act"] = "quick_gelu" if quick_gelu else "gelu"
    if act := tower.get("act_kwargs"):
        refuse_other(act, ({"approximate": "tanh"},), "act_kwargs", source)
        refuse_other(quick_gelu, (False,), "act_kwargs beside quick_gelu", source)
        entries["hidden_act"] = "gelu_pytorch_tanh"
    if norm := tower.get("norm_kwargs"):
        entries |= Keys(fields={"eps": "eps"}).read(norm, f"{source}'s norm_kwargs")
    return entries


def _timm_tower(tower: Description, source: str) -> TowerDescription:
    """Return timm's own kind of description."""
    TIMM_TOWER_KEYS.read(tower, source)
    saved: dict[str, Any] = {"architecture": tower["timm_model_name"]}
    # open_clip's default is "avg"; an empty name leaves timm's.
    if pool := tower.get("timm_pool", "avg"):
        saved["global_pool"] = pool
    if "image_size" in tower:
        saved["model_args"] = {"img_size": tower["image_size"]}
    return TowerDescription(saved)


def _hugging_face_tower(
    tower: Description, source: str, cleaning: Mapping[str, str]
) -> TowerDescription:
    """Return the pooling; what else config.json would say lies in the Hub, but the shapes tell."""
    HUGGING_FACE_TOWER_KEYS.read(tower, source)
    pooler = tower.get("hf_pooler_type", "mean_pooler")
    refuse_other(pooler, tuple(HUGGING_FACE_POOLINGS), "hf_pooler_type", source)
    return TowerDescription({}, {"pooling": HUGGING_FACE_POOLINGS[pooler], **cleaning})
