"""What the checkpoints of the BERT family look like: names, fields of config.json, pooling.

Read from folders as transformers writes them (Wolf et al. 2020), from sentence-transformers' around
them (Reimers and Gurevych 2019), and from lone state dicts, such as the text half of a file that
OTTER released.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from otter_jax.models.descriptions import (
    TRANSFORMERS_KEYS,
    Description,
    Guess,
    Keys,
    refuse_other,
    refuse_other_kinds,
    words,
)
from otter_jax.models.weights import CheckpointArrays, CheckpointLayout

EMBEDDING_NAMES = (
    (r"^(word|position|token_type)_embeddings", r"embeddings.\1_embeddings"),
    (r"^embeddings_norm", "embeddings.LayerNorm"),
)
ENCODER_NAMES = (
    (r"^layers\.", "encoder.layer."),
    (r"intermediate", "intermediate.dense"),
    (r"(\d)\.output\.", r"\1.output.dense."),
    (r"(\d)\.output_norm", r"\1.output.LayerNorm"),
)
ATTENTION_NAMES = (
    (r"attention\.(query|key|value)", r"attention.self.\1"),
    (r"attention\.output", "attention.output.dense"),
    (r"attention_norm", "attention.output.LayerNorm"),
)
BERT_HEAD_NAMES = (
    (r"^mlm_head\.(bias|decoder)", r"cls.predictions.\1"),
    (r"^mlm_head\.dense", "cls.predictions.transform.dense"),
    (r"^mlm_head\.norm", "cls.predictions.transform.LayerNorm"),
)
ROBERTA_HEAD_NAMES = (
    (r"^mlm_head\.norm", "lm_head.layer_norm"),
    (r"^mlm_head", "lm_head"),
)
SPELLINGS = (
    (r"^(bert|roberta|distilbert|mpnet|electra|albert)\.", ""),
    (r"LayerNorm\.gamma$", "LayerNorm.weight"),
    (r"LayerNorm\.beta$", "LayerNorm.bias"),
)
# A head that the tower has is loaded all the same: only what it has no use for is passed over.
IGNORED = (
    "embeddings.position_ids",
    "pooler.*",
    "cls.*",
    "lm_head.*",
    "vocab_*",
    "classifier.*",
    "pre_classifier.*",
    "qa_outputs.*",
)

ALBERT_NAMES = (
    *EMBEDDING_NAMES,
    (r"^embeddings_project", "encoder.embedding_hidden_mapping_in"),
    (r"^layers\.0\.", "encoder.albert_layer_groups.0.albert_layers.0."),
    (r"intermediate", "ffn"),
    (r"attention\.output", "attention.dense"),
    (r"attention_norm", "attention.LayerNorm"),
    (r"0\.output\.", "0.ffn_output."),
    (r"0\.output_norm", "0.full_layer_layer_norm"),
    (r"^mlm_head\.(bias|decoder|dense)", r"predictions.\1"),
    (r"^mlm_head\.norm", "predictions.LayerNorm"),
)

LAYER_NAME = re.compile(r"encoder\.layer\.(\d+)\.")
# Width -> attention heads, where all published models of the family agree.
PUBLISHED_HEADS = {768: 12, 1024: 16}

# Settings with transformers' names; what their absence from a config.json means.
DEFAULTS = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
    "tie_word_embeddings": True,
}
BERT_KEYS = TRANSFORMERS_KEYS.extended(
    fields={name: name for name in DEFAULTS},
    defaults=DEFAULTS,
    harmless=words(
        """directionality pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers
        pooler_size_per_head pooler_type"""
    ),
)
ROBERTA_KEYS = BERT_KEYS.extended(defaults={"pad_token_id": 1})
# Built into transformers' DistilBERT and MPNet, whatever config.json says.
DISTILBERT_CONSTANTS = {"layer_norm_eps": 1e-12, "type_vocab_size": 0}
MPNET_CONSTANTS = {"pad_token_id": 1, "type_vocab_size": 0}
MPNET_KEYS = ROBERTA_KEYS.extended(
    fields={"relative_attention_num_buckets": "relative_attention_num_buckets"},
    defaults={"relative_attention_num_buckets": 32, "vocab_size": 30527},
)
DISTILBERT_FIELDS = {
    "dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "hidden_dim": "intermediate_size",
    "activation": "hidden_act",
    "dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
}
_SHARED_NAMES = ("vocab_size", "max_position_embeddings", "initializer_range", "pad_token_id")
DISTILBERT_KEYS = TRANSFORMERS_KEYS.extended(
    fields=DISTILBERT_FIELDS | {name: name for name in (*_SHARED_NAMES, "tie_word_embeddings")},
    defaults={"n_layers": 6, "n_heads": 12, "activation": "gelu", "pad_token_id": 0},
    # The table of positions is in the file, however it was made.
    harmless=words(
        """sinusoidal_pos_embds tie_weights_ qa_dropout seq_classif_dropout layer_norm_eps
        type_vocab_size"""
    ),
)
ELECTRA_KEYS = BERT_KEYS.extended(
    fields={"embedding_size": "embedding_size"},
    defaults={
        "embedding_size": 128,
        "hidden_size": 256,
        "num_attention_heads": 4,
        "intermediate_size": 1024,
    },
    harmless=words(
        "summary_type summary_use_proj summary_activation summary_last_dropout generator_size"
    ),
)
ALBERT_KEYS = BERT_KEYS.extended(
    fields={"embedding_size": "embedding_size"},
    defaults={
        "vocab_size": 30000,
        "embedding_size": 128,
        "hidden_size": 4096,
        "num_attention_heads": 64,
        "intermediate_size": 16384,
        "hidden_act": "gelu_new",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    },
    only={"num_hidden_groups": (1,), "inner_group_num": (1,)},
    harmless=words(
        "classifier_dropout_prob net_structure_type num_memory_blocks gap_size down_scale_factor"
    ),
)
MODULES_FILE, SENTENCES_FILE = "modules.json", "sentence_bert_config.json"
# Of sentence-transformers' Transformer: how texts are read, and what of the output is taken.
SENTENCES_KEYS = Keys(
    only={
        "transformer_task": ("feature-extraction",),
        "unpad_inputs": (None, False),
        **dict.fromkeys(("query_length", "document_length", "query_expansion"), (None,)),
    },
    harmless=words(
        """do_lower_case max_seq_length model_args tokenizer_args config_args processing_kwargs
        modality_config module_output_name tokenizer_name_or_path backend"""
    ),
)
# Of sentence-transformers' Pooling. Without its prompt, a text has none.
POOLING_KEYS = Keys(
    harmless=words(
        """word_embedding_dimension embedding_dimension pooling_mode pooling_mode_cls_token
        pooling_mode_mean_tokens pooling_mode_max_tokens pooling_mode_mean_sqrt_len_tokens
        pooling_mode_weightedmean_tokens pooling_mode_lasttoken include_prompt"""
    ),
)
MODEL_TYPES: Mapping[str, Keys] = {
    "bert": BERT_KEYS,
    "chinese_clip_text_model": BERT_KEYS,
    "roberta": ROBERTA_KEYS.extended(defaults={"vocab_size": 50265}),
    "xlm-roberta": ROBERTA_KEYS,
    "camembert": ROBERTA_KEYS,
    "mpnet": MPNET_KEYS,
    "distilbert": DISTILBERT_KEYS,
    "electra": ELECTRA_KEYS,
    "albert": ALBERT_KEYS,
}


def described_fields(saved: Description) -> dict[str, Any]:
    """Return the settings that config.json says, with what its kind of model takes for granted."""
    refuse_other(saved.get("model_type"), tuple(MODEL_TYPES), "model_type", "config.json")
    fields = MODEL_TYPES[saved["model_type"]].read(saved, "config.json")
    if saved["model_type"] == "distilbert":
        return fields | DISTILBERT_CONSTANTS
    if saved["model_type"] == "mpnet":
        return fields | MPNET_CONSTANTS
    if saved["model_type"] == "chinese_clip_text_model":
        return fields | {"pooling": "cls"}
    if saved["model_type"] == "electra" and fields["embedding_size"] == fields["hidden_size"]:
        return fields | {"embedding_size": None}
    return fields


def bert_fields(saved: Description, arrays: CheckpointArrays) -> dict[str, Any]:
    """Return the settings that config.json says; those of a lone file follow from its shapes.

    Raises:
        ValueError: config.json says something that the tower does not compute.
    """
    if saved:
        return described_fields(saved)
    words, width = arrays["embeddings.word_embeddings.weight"].shape
    layers = {match[1] for match in map(LAYER_NAME.match, arrays) if match}
    fields = {
        "vocab_size": words,
        "hidden_size": width,
        "num_hidden_layers": len(layers),
        "num_attention_heads": Guess(PUBLISHED_HEADS.get(width)),
        "hidden_act": Guess("gelu"),
    }
    tables = {
        "intermediate_size": "encoder.layer.0.intermediate.dense.weight",
        "max_position_embeddings": "embeddings.position_embeddings.weight",
        "type_vocab_size": "embeddings.token_type_embeddings.weight",
    }
    fields |= {field: len(arrays[name]) for field, name in tables.items() if name in arrays}
    if fields.get("type_vocab_size") == 1:  # Only RoBERTa has a single token type.
        fields |= {"positions_after_padding": True, "pad_token_id": 1, "layer_norm_eps": 1e-5}
    return fields


def folder_fields(saved: Description, arrays: CheckpointArrays) -> dict[str, Any]:
    """Return the settings that config.json says, without which these models are not read.

    Raises:
        ValueError: there is none, or it says something that the tower does not compute.
    """
    if not saved:
        raise ValueError("the weights do not tell its shape; they need the config.json beside them")
    return described_fields(saved)


BERT_LAYOUT = CheckpointLayout(
    recognised_by="encoder.layer.0.attention.self.query.weight",
    names=(*EMBEDDING_NAMES, *ENCODER_NAMES, *ATTENTION_NAMES, *BERT_HEAD_NAMES),
    spellings=SPELLINGS,
    ignored=IGNORED,
    fields=bert_fields,
)

ROBERTA_LAYOUT = CheckpointLayout(
    recognised_by="encoder.layer.0.attention.self.query.weight",
    names=(*EMBEDDING_NAMES, *ENCODER_NAMES, *ATTENTION_NAMES, *ROBERTA_HEAD_NAMES),
    spellings=SPELLINGS,
    ignored=IGNORED,
    fields=bert_fields,
)

MPNET_LAYOUT = CheckpointLayout(
    recognised_by="encoder.relative_attention_bias.weight",
    names=(
        *EMBEDDING_NAMES,
        *ENCODER_NAMES,
        (r"attention\.(q)uery|attention\.(k)ey|attention\.(v)alue", r"attention.attn.\1\2\3"),
        (r"attention\.output", "attention.attn.o"),
        (r"attention_norm", "attention.LayerNorm"),
        (r"^relative_bias", "encoder.relative_attention_bias"),
        *ROBERTA_HEAD_NAMES,
    ),
    spellings=SPELLINGS,
    ignored=IGNORED,
    fields=folder_fields,
)

DISTILBERT_LAYOUT = CheckpointLayout(
    recognised_by="transformer.layer.0.attention.q_lin.weight",
    names=(
        *EMBEDDING_NAMES,
        (r"^layers\.", "transformer.layer."),
        (r"attention\.(q)uery|attention\.(k)ey|attention\.(v)alue", r"attention.\1\2\3_lin"),
        (r"attention\.output", "attention.out_lin"),
        (r"attention_norm", "sa_layer_norm"),
        (r"intermediate", "ffn.lin1"),
        (r"(\d)\.output\.", r"\1.ffn.lin2."),
        (r"(\d)\.output_norm", r"\1.output_layer_norm"),
        (r"^mlm_head\.dense", "vocab_transform"),
        (r"^mlm_head\.norm", "vocab_layer_norm"),
        (r"^mlm_head\.bias", "vocab_projector.bias"),
        (r"^mlm_head\.decoder", "vocab_projector"),
    ),
    spellings=SPELLINGS,
    ignored=IGNORED,
    fields=folder_fields,
)


ELECTRA_LAYOUT = CheckpointLayout(
    recognised_by="encoder.layer.0.attention.self.query.weight",
    names=(*EMBEDDING_NAMES, *ENCODER_NAMES, *ATTENTION_NAMES),
    spellings=SPELLINGS,
    ignored=(*IGNORED, "generator_*", "discriminator_predictions.*"),
    fields=folder_fields,
)
ALBERT_LAYOUT = CheckpointLayout(
    recognised_by="encoder.embedding_hidden_mapping_in.weight",
    names=ALBERT_NAMES,
    spellings=SPELLINGS,
    ignored=(*IGNORED, "predictions.*", "sop_classifier.*"),
    fields=folder_fields,
)


def transformer_folder(folder: Path) -> Path:
    """Return where a sentence-transformers folder has its transformer: there, or below it."""
    modules = _read_modules(folder)
    return folder / modules[0][1] if modules else folder


def read_pooling(folder: Path) -> dict[str, str]:
    """Return `pooling` and `cleaning` as a sentence-transformers folder says, {} for others.

    Its normalisation of the result is left out; towers return features as they are. How long its
    texts may be is not looked at: `data.max_tokens` says it here.

    Raises:
        ValueError: the folder describes a pooling or a further layer that no tower here has.
    """
    found = {}
    for kind, path in _read_modules(folder):
        settings = folder / path / SENTENCES_FILE
        if kind == "Pooling":
            found["pooling"] = _read_pooling_mode(folder / path / "config.json")
        elif kind == "Transformer" and settings.is_file():
            found |= _read_sentences(settings)
        elif kind not in ("Transformer", "Normalize"):
            raise ValueError(
                f"{folder / MODULES_FILE} has a layer {kind}; only Transformer, Pooling and "
                "Normalize are supported"
            )
    return found


def _read_modules(folder: Path) -> list[tuple[str, str]]:
    """Return the layers that a modules.json lists, by class and folder; none if there is no such.

    Raises:
        ValueError: it is no such list, or leads out of the folder.
    """
    file = folder / MODULES_FILE
    if not file.is_file():
        return []
    listed = _read_json(file)
    if not isinstance(listed, list) or not listed:
        raise ValueError(f"{file} should hold a list of layers")
    modules = []
    for number, module in enumerate(listed):
        refuse_other_kinds(module, f"{file}'s layer {number}")
        kind, path = module.get("type"), module.get("path", "")
        if not isinstance(kind, str) or not isinstance(path, str):
            raise ValueError(f"{file}'s layer {number} should have a type and a path, as texts")
        if Path(path).is_absolute() or ".." in Path(path).parts:
            raise ValueError(f"{file} leads out of its folder: {path!r}")
        modules.append((kind.rsplit(".", 1)[-1], path))
    return modules


def _read_sentences(path: Path) -> dict[str, str]:
    """Return how sentence_bert_config.json has texts cleaned, {} for not at all."""
    settings = _read_json(path)
    SENTENCES_KEYS.read(settings, str(path))
    return {"cleaning": "small"} if settings.get("do_lower_case") else {}


def _read_pooling_mode(path: Path) -> str:
    """Return "mean" or "cls" from old keys, one for each mode, or the new one with all of them."""
    settings = _read_json(path)
    POOLING_KEYS.read(settings, str(path))
    modes = "pooling_mode" not in settings and [
        name.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token")
        for name, wanted in settings.items()
        if name.startswith("pooling_mode_") and wanted
    ]
    if not modes:
        named = settings.get("pooling_mode", "mean")
        modes = list(named) if isinstance(named, list | tuple) else [named]
    if modes not in (["mean"], ["cls"]):
        raise ValueError(
            f"{path} asks for pooling by {' + '.join(map(str, modes))}; it must be mean or cls"
        )
    return modes[0]


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no {path}") from None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
