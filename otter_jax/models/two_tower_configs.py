"""What the config.json of a two-tower model of transformers says about either tower."""

from otter_jax.models.descriptions import TRANSFORMERS_KEYS, Description, words
from otter_jax.models.two_towers import Kind

SOURCE = "config.json"
# Models whose towers and projections are put together as CLIP's. The prefixes are those of the
# towers' own model types: "clip" has a "clip_vision_model" and a "clip_text_model".
MODEL_TYPES = ("chinese_clip", "clip", "clipseg", "siglip")
KEYS = TRANSFORMERS_KEYS.extended(
    harmless=words(
        """vision_config text_config vision_config_dict text_config_dict projection_dim
        logit_scale_init_value extract_layers reduce_dim decoder_num_attention_heads
        decoder_attention_dropout decoder_hidden_act decoder_intermediate_size conditional_layer
        use_complex_transposed_convolution"""
    )
)


def describe(kind: Kind, saved: Description) -> Description:
    """Return the entries about one tower, as a config.json of its own would have them.

    Raises:
        ValueError: an entry is unknown, or there are none about this tower.
    """
    KEYS.read(saved, SOURCE)
    name = {"image": "vision", "text": "text"}[kind]
    entries = saved.get(f"{name}_config")
    if not isinstance(entries, dict):
        raise ValueError(f"{SOURCE} has no {name}_config")
    # An early version of transformers let the second go before the first.
    entries = entries | (saved.get(f"{name}_config_dict") or {})
    model_type = f"{saved['model_type']}_{name}_model"
    return {"model_type": model_type} | {k: v for k, v in entries.items() if k != "model_type"}
