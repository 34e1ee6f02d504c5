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
    (r"^(bert|roberta|distilbert|mpnet)\.", ""),
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

LAYER_NAME = re.compile(r"encoder\.layer\.(\d+)\.")
DISTILBERT_FIELDS = {
    "dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "hidden_dim": "intermediate_size",
    "activation": "hidden_act",
    "dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
}
# Built into transformers' DistilBERT and MPNet, whatever config.json says.
DISTILBERT_CONSTANTS = {"layer_norm_eps": 1e-12, "type_vocab_size": 0}
MPNET_CONSTANTS = {"pad_token_id": 1, "type_vocab_size": 0}


def bert_fields(saved: Mapping[str, Any], arrays: CheckpointArrays) -> dict[str, Any]:
    """Return the fields of config.json; those of a lone file follow from its shapes.

    Raises:
        ValueError: a lone file has another width than 768 or 1024, whose number of attention heads
            all published models of the family agree on.
    """
    if saved:
        return dict(saved)
    words, width = arrays["embeddings.word_embeddings.weight"].shape
    heads = {768: 12, 1024: 16}.get(width)
    if heads is None:
        raise ValueError(
            f"a BERT of width {width} without config.json: the weights do not tell the number of "
            "attention heads; put them as model.safetensors beside a config.json"
        )
    layers = {match[1] for match in map(LAYER_NAME.match, arrays) if match}
    fields = {
        "vocab_size": words,
        "hidden_size": width,
        "num_hidden_layers": len(layers),
        "num_attention_heads": heads,
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


def distilbert_fields(saved: Mapping[str, Any], arrays: CheckpointArrays) -> dict[str, Any]:
    """Return the fields of DistilBERT's config.json under BERT's names."""
    renamed = {DISTILBERT_FIELDS.get(name, name): value for name, value in saved.items()}
    return renamed | DISTILBERT_CONSTANTS


def mpnet_fields(saved: Mapping[str, Any], arrays: CheckpointArrays) -> dict[str, Any]:
    """Return the fields of MPNet's config.json, with what its code takes for granted."""
    return dict(saved) | MPNET_CONSTANTS


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
    fields=mpnet_fields,
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
    fields=distilbert_fields,
)


def read_pooling(folder: Path) -> dict[str, str]:
    """Return {"pooling": "mean" or "cls"} as a sentence-transformers folder says, {} for others.

    Its normalisation of the result is left out; towers return features as they are.

    Raises:
        ValueError: the folder describes a pooling or a further layer that no tower here has.
    """
    if not (folder / "modules.json").is_file():
        return {}
    found = {}
    for module in _read_json(folder / "modules.json"):
        kind = module["type"].rsplit(".", 1)[-1]
        if kind == "Pooling":
            found["pooling"] = _read_pooling_mode(folder / module["path"] / "config.json")
        elif kind not in ("Transformer", "Normalize"):
            raise ValueError(
                f"{folder / 'modules.json'} has a layer {kind}; only Transformer, Pooling and "
                "Normalize are supported"
            )
    return found


def _read_pooling_mode(path: Path) -> str:
    settings = _read_json(path)
    modes = [
        name.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token")
        for name, wanted in settings.items()
        if name.startswith("pooling_mode_") and wanted
    ] or [settings.get("pooling_mode", "mean")]
    if modes not in (["mean"], ["cls"]):
        raise ValueError(f"{path} asks for pooling by {' + '.join(modes)}; it must be mean or cls")
    return modes[0]


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no {path}") from None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
