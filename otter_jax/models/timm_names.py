"""What timm's config.json says: the architecture's name, and arguments that change it.

timm (Wightman 2019) keeps most of a model's shape in the function that its `architecture` names.
The shapes of the weights tell the larger part of it again; what they leave open is written down,
beside each tower's layouts, for the families that it computes. Every other name is refused.
"""

import re
from collections.abc import Mapping
from typing import Any

from otter_jax.models.descriptions import Description, Keys, refuse_other, refuse_other_kinds, words

SOURCE = "config.json"

# The entries around the architecture.
TOP_KEYS = Keys(
    harmless=words("""architecture num_classes num_features global_pool model_args pretrained_cfg
        pretrained_cfg_overlay label_names label_descriptions""")
)
# Where the weights come from and what their classes are called; `mean`, `std` and how images are
# cut and scaled are honoured, see preprocessing.py.
PRETRAINED_KEYS = Keys(
    harmless=words("""architecture tag url file state_dict hf_hub_id hf_hub_filename source
        custom_load input_size test_input_size min_input_size fixed_input_size interpolation
        crop_pct test_crop_pct crop_mode mean std num_classes label_offset label_names
        label_descriptions pool_size test_pool_size first_conv classifier license description
        origin_url paper_name paper_ids notes""")
)
# Arguments of timm's model functions that any tower here may be given.
COMMON_ARGUMENTS = Keys(
    only={"in_chans": (3,), "output_stride": (32,), "features_only": (False,)},
    harmless=words("""num_classes pretrained drop_rate drop_path_rate proj_drop_rate patch_drop_rate
        weight_init fix_init device dtype head_init_scale head_init_bias zero_init_last"""),
)
ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "quick_gelu": "quick_gelu"}


def read_arguments(description: Description, arguments: Keys) -> dict[str, Any]:
    """Return the tower's settings that the arguments in a description give.

    Args:
        description: timm's config.json, or what open_clip says about a model of timm's.
        arguments: the arguments that the tower honours.

    Raises:
        ValueError: an entry, here or in one of the parts, is unknown or not supported.
    """
    TOP_KEYS.read(description, SOURCE)
    PRETRAINED_KEYS.read(description.get("pretrained_cfg") or {}, f"{SOURCE}'s pretrained_cfg")
    return arguments.read(description.get("model_args") or {}, f"{SOURCE}'s model_args")


def architecture_of(description: Description, known: Mapping[str, Any], tower: str) -> Any:
    """Return what is known of the architecture, by the pattern that its whole name fits.

    Args:
        description: timm's config.json.
        known: regular expression -> anything.
        tower: the tower's name, for the message.

    Raises:
        ValueError: the file names no architecture, or none that the tower computes.
    """
    name = description.get("architecture")
    if not isinstance(name, str):
        raise ValueError(
            f"{SOURCE} says neither timm's architecture nor a model_type of transformers, so that "
            f"the settings of this {tower} are not known"
        )
    for pattern, facts in known.items():
        if re.fullmatch(pattern, name.partition(".")[0]):
            return facts
    raise ValueError(f"{SOURCE} says architecture={name!r}, which {tower} does not compute")


def global_pool_of(description: Description) -> str | None:
    """Return the pooling that the arguments or the entry beside them say, None if neither does."""
    refuse_other_kinds(description, SOURCE)
    arguments = description.get("model_args") or {}
    return arguments.get("global_pool", description.get("global_pool"))


def activation(name: str | None) -> dict[str, str]:
    """Return the setting that timm's `act_layer` means; nothing for its default."""
    if name is None:
        return {}
    refuse_other(name, tuple(ACTIVATIONS), "act_layer", f"{SOURCE}'s model_args")
    return {"hidden_act": ACTIVATIONS[name]}
