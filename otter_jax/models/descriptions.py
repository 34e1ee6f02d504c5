"""What a checkpoint's own files say about its tower, each entry honoured or refused by name.

A configuration file that is half understood gives wrong numbers without a word. So every kind of
description has a table, `Keys`, of the entries that become settings of the tower, of those that may
have some values only, and of those that leave the numbers alone; any other entry is refused. What
no file says, because there is only a state dict, is a `Guess`, which is said aloud or, where there
is nothing to go by, refused.
"""

import math
import numbers
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

Description = Mapping[str, Any]


class Guess(NamedTuple):
    """What the tower is taken to have where its file does not say; None for nothing to go by."""

    value: Any


def words(text: str) -> frozenset[str]:
    """Return the words of a text: a long list of names, easy on the eye."""
    return frozenset(text.split())


def _is_whole(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _is_size(value: Any) -> bool:
    return _is_whole(value) and value > 0


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


def _is_positive(value: Any) -> bool:
    return _is_number(value) and value > 0


def _is_share(value: Any) -> bool:
    return _is_number(value) and 0 <= value <= 1


def _are_three(value: Any, admits: Callable[[Any], bool]) -> bool:
    return isinstance(value, list | tuple) and len(value) == 3 and all(map(admits, value))


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(map(_is_size, value))


class Kind(NamedTuple):
    """What the value of an entry must be, in words for whoever wrote another."""

    words: str
    admits: Callable[[Any], bool]


MOST_LAYERS = 1000  # More are a mistake, which would be built for hours before it is found.

SIZE = Kind("a whole number above 0", _is_size)
LAYERS = Kind(
    f"a whole number from 1 to {MOST_LAYERS}",
    lambda value: _is_size(value) and value <= MOST_LAYERS,
)
COUNT = Kind("a whole number", _is_whole)
NUMBER = Kind("a number", _is_number)
POSITIVE = Kind("a number above 0", _is_positive)
# Below 0, a variance of almost nothing gives NaN.
EPSILON = Kind("a number of at least 0", lambda value: _is_number(value) and value >= 0)
SHARE = Kind("a number from 0 to 1", _is_share)
TRUTH = Kind("true or false", lambda value: isinstance(value, bool))
TEXT = Kind("a text", lambda value: isinstance(value, str))
PART = Kind("an object", lambda value: isinstance(value, Mapping))
SIDES = Kind("a whole number above 0, or two", lambda value: _is_size(value) or _are_sizes(value))
SIZES = Kind("a list of whole numbers above 0", _are_sizes)
DEPTHS = Kind(
    f"a list of whole numbers from 1 to {MOST_LAYERS}",
    lambda value: _are_sizes(value) and all(each <= MOST_LAYERS for each in value),
)
TEXTS = Kind(
    "a text or a list of them",
    lambda value: (
        isinstance(value, str)
        or (isinstance(value, list | tuple) and all(isinstance(each, str) for each in value))
    ),
)
CHANNELS = Kind("three numbers", lambda value: _are_three(value, _is_number))
DEVIATIONS = Kind("three numbers above 0", lambda value: _are_three(value, _is_positive))
# The same name has the same kind of value in every library's descriptions.
KINDS_OF_ENTRIES: Mapping[str, Kind] = {
    name: kind
    for kind, names in {
        LAYERS: "num_hidden_layers n_layers",
        SIZE: """hidden_size dim num_attention_heads n_heads num_heads
            heads intermediate_size hidden_dim vocab_size max_position_embeddings embedding_size
            local_attention global_attn_every_n_layers head_width context_length width stem_width
            base_width embed_dim""",
        COUNT: """type_vocab_size pad_token_id eos_token_id eos_id num_register_tokens reg_tokens
            position_buckets relative_attention_num_buckets max_relative_positions resample""",
        NUMBER: "initializer_range crop_pct rescale_factor",
        POSITIVE: "global_rope_theta full_rope_theta local_rope_theta rope_theta",
        EPSILON: "layer_norm_eps eps norm_eps last_norm_eps batch_norm_epsilon",
        SHARE: """dropout attention_dropout hidden_dropout_prob attention_probs_dropout_prob
            attn_drop_rate pos_drop_rate drop_path_rate mlp_dropout embedding_dropout
            stochastic_depth_rate batch_norm_momentum""",
        TRUTH: """qkv_bias attention_bias mlp_bias norm_bias use_swiglu_ffn relative_attention
            position_biased_input share_att_key downsample_in_bottleneck downsample_in_first_stage
            tie_word_embeddings strip_sep_token no_causal_mask final_ln_after_pool quick_gelu
            do_center_crop do_lower_case""",
        TEXT: """hidden_act activation hidden_activation layer_type clean pool_type norm_rel_ebd
            architecture model_type interpolation resize_mode crop_mode timm_model_name timm_pool
            hf_model_name hf_pooler_type global_pool act_layer rope_type""",
        TEXTS: "pos_att_type layer_types",
        PART: """pretrained_cfg model_args preprocess_cfg model_cfg vision_cfg text_cfg
            tokenizer_kwargs act_kwargs norm_kwargs vision_config text_config vision_config_dict
            text_config_dict rope_parameters""",
        SIDES: "image_size patch_size img_size",
        DEPTHS: "depths",
        SIZES: "hidden_sizes input_size widths stage_widths deep_stem",
        CHANNELS: "mean image_mean",
        DEVIATIONS: "std image_std",
    }.items()
    for name in names.split()
}

# Settings that a tower may be without.
NULLABLE = (
    "eos_token_id",
    "pad_token_id",
    "pos_att_type",
    "layer_types",
    "image_size",
    "patch_size",
)


def refuse_no_object(description: Any, source: str) -> None:
    """Refuse what is not names with values."""
    if not PART.admits(description):
        raise ValueError(f"{source} is {_short(description)}; it must be {PART.words}")


def refuse_other_kinds(description: Any, source: str) -> None:
    """Refuse what is no object, or an entry of it that is not of its kind."""
    refuse_no_object(description, source)
    for name, value in description.items():
        refuse_other_kind(value, name, source)


def refuse_other_kind(value: Any, name: str, source: str) -> None:
    """Refuse a value that is not of its entry's kind; null is of every kind."""
    kind = KINDS_OF_ENTRIES.get(name)
    if kind is not None and value is not None:
        refuse_all_but(kind, value, name, source)


def refuse_all_but(kind: Kind, value: Any, name: str, source: str) -> None:
    """Refuse a value that is not of a kind."""
    if not kind.admits(value):
        raise ValueError(f"{source} says {name}={_short(value)}; it must be {kind.words}")


def refuse_null(value: Any, name: str, source: str) -> None:
    """Refuse null for an entry that the tower cannot do without."""
    if value is None:
        raise ValueError(f"{source} says {name}=null, which says nothing; it is needed")


@dataclass(frozen=True)
class Keys:
    """Which entries of one kind of description mean what.

    Attributes:
        fields: their name -> our setting of the tower.
        defaults: their name -> what it means that the entry is absent.
        only: their name -> the values that change nothing; all others do, and are refused.
        harmless: names of entries that do not matter to the tower's numbers.
    """

    fields: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    only: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    harmless: frozenset[str] = frozenset()

    def extended(
        self,
        fields: Mapping[str, str] | None = None,
        defaults: Mapping[str, Any] | None = None,
        only: Mapping[str, tuple[Any, ...]] | None = None,
        harmless: Iterable[str] = (),
    ) -> "Keys":
        """Return these keys and further ones, which go before those of the same name."""
        return Keys(
            {**self.fields, **(fields or {})},
            {**self.defaults, **(defaults or {})},
            {**self.only, **(only or {})},
            self.harmless | frozenset(harmless),
        )

    def read(self, description: Description, source: str) -> dict[str, Any]:
        """Return the tower's settings by our names.

        Args:
            description: the entries as they stand in the file.
            source: names the file, for messages.

        Raises:
            ValueError: an entry is unknown, or has a value that the tower does not compute.
        """
        settings = {self.fields[name]: value for name, value in self.defaults.items()}
        refuse_other_kinds(description, source)
        for name, value in description.items():
            if name in self.fields:
                if name not in NULLABLE:
                    refuse_null(value, name, source)
                settings[self.fields[name]] = value
            elif name in self.only:
                refuse_other(value, self.only[name], name, source)
            elif name not in self.harmless:
                raise ValueError(
                    f"{source} says {name}={_short(value)}, which this package does not know; if "
                    "it leaves the numbers alone, take it out of the file"
                )
        return settings


def refuse_other(value: Any, admitted: tuple[Any, ...], name: str, source: str) -> None:
    """Refuse a value that the tower does not compute; 1 is not taken for True, nor 0 for False."""
    if not any(type(value) is type(each) and value == each for each in admitted):
        wanted = " or ".join(map(repr, admitted))
        raise ValueError(f"{source} says {name}={_short(value)}; only {wanted} is supported")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def split_guesses(
    fields: Mapping[str, Any], overrides: Mapping[str, Any], source: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a tower's settings, and those among them that are guesses and not overridden.

    Raises:
        ValueError: a setting cannot even be guessed.
    """
    settings, guesses = {}, {}
    for name, value in fields.items():
        if not isinstance(value, Guess):
            settings[name] = value
        elif name not in overrides:
            if value.value is None:
                raise ValueError(
                    f"{source} does not tell {name}, and its widths are of no published model; "
                    f"say {name}=... among the overrides"
                )
            settings[name] = guesses[name] = value.value
    return settings, guesses


# What transformers writes into every config.json, and wrote in earlier versions: how to train, how
# to generate text, what the classes of a head are called.
TRANSFORMERS_KEYS = Keys(
    only={
        "is_decoder": (False,),
        "add_cross_attention": (False,),
        "is_encoder_decoder": (False,),
        "pruned_heads": ({}, None),
        "quantization_config": (None,),
        "auto_map": (None,),  # The model's code lies beside it.
        "num_channels": (3,),
        "position_embedding_type": ("absolute",),
    },
    harmless=words("""
        _name_or_path _attn_implementation _attn_implementation_autoset architectures
        begin_suppress_tokens bad_words_ids bos_token_id chunk_size_feed_forward classifier_dropout
        cross_attention_hidden_size decoder_start_token_id diversity_penalty do_sample dtype
        early_stopping encoder_no_repeat_ngram_size eos_token_id
        exponential_decay_length_penalty finetuning_task forced_bos_token_id
        forced_eos_token_id gradient_checkpointing id2label initializer_factor initializer_range
        label2id length_penalty max_length min_length model_type no_repeat_ngram_size
        num_beam_groups num_beams num_labels num_return_sequences output_attentions
        output_hidden_states output_past output_scores pad_token_id prefix problem_type
        remove_invalid_values repetition_penalty return_dict return_dict_in_generate sep_token_id
        suppress_tokens task_specific_params temperature tf_legacy_loss tie_encoder_decoder
        tie_word_embeddings tokenizer_class top_k top_p torch_dtype torchscript
        transformers_version typical_p use_bfloat16 use_cache use_return_dict
        stage_names out_features out_indices
        """),
)
