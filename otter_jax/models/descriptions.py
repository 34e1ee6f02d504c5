"""What a checkpoint's own files say about its tower, each entry honoured or refused by name.

A configuration file that is half understood gives wrong numbers without a word. So every kind of
description has a table, `Keys`, of the entries that become settings of the tower, of those that may
have some values only, and of those that leave the numbers alone; any other entry is refused. What
no file says, because there is only a state dict, is a `Guess`, which is said aloud or, where there
is nothing to go by, refused.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

Description = Mapping[str, Any]


class Guess(NamedTuple):
    """What the tower is taken to have where its file does not say; None for nothing to go by."""

    value: Any


def words(text: str) -> frozenset[str]:
    """Return the words of a text: a long list of names, easy on the eye."""
    return frozenset(text.split())


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
        for name, value in description.items():
            if name in self.fields:
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
