"""DeBERTa (versions 2 and 3), a text tower whose attention keeps content and position apart.

Source: He et al., "DeBERTa: Decoding-enhanced BERT with Disentangled Attention" (2020) and
"DeBERTaV3" (2021). To the scores of two tokens' contents come those of one's content and the
other's distance, with a table of distances that all layers share. Read from transformers' folders.
"""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from otter_jax.models.bert import Bert, BertConfig, BertLayerFactory
from otter_jax.models.bert_layouts import (
    BERT_KEYS,
    EMBEDDING_NAMES,
    ENCODER_NAMES,
    IGNORED,
)
from otter_jax.models.descriptions import (
    Description,
    refuse_null,
    refuse_other_kinds,
    words,
)
from otter_jax.models.layers import Preset, dropout
from otter_jax.models.transformer import mask_bias
from otter_jax.models.weights import CheckpointArrays, CheckpointLayout


@dataclass(frozen=True)
class DebertaConfig(BertConfig):
    """Shape of a DeBERTa, with Hugging Face's names; the defaults are DeBERTa-v3-base.

    Attributes:
        relative_attention: whether distances enter the attention at all.
        position_buckets: how many distances in either direction have rows of their own, the far
            ones in logarithmic steps; 0 for as many as there are positions.
        pos_att_type: "c2p" for contents that meet distances, "p2c" for the reverse, or both.
        share_att_key: whether distances go through the contents' own projections.
        norm_rel_ebd: whether the table of distances is normalised.
        position_biased_input: whether there are embeddings of absolute positions, too.

    The others are those of `BertConfig`.

    Raises:
        ValueError: see `BertConfig`.
    """

    vocab_size: int = 128100
    type_vocab_size: int = 0
    layer_norm_eps: float = 1e-7
    relative_attention: bool = True
    position_buckets: int = 256
    pos_att_type: tuple[str, ...] = ("p2c", "c2p")
    share_att_key: bool = True
    norm_rel_ebd: bool = True
    position_biased_input: bool = False

    @property
    def span(self) -> int:
        """Distances in either direction, of which the table has twice as many rows."""
        return self.position_buckets or self.max_position_embeddings


def distance_rows(length: int, config: DebertaConfig) -> np.ndarray:
    """Return the table's row for every pair of positions, int32 [length, length], query by key."""
    positions = np.arange(length)
    distance = positions[:, None] - positions
    if config.position_buckets:
        exact = config.position_buckets // 2
        # Float32 throughout: where the logarithm is close to a step, the rounding decides.
        far = np.maximum(np.abs(distance), exact).astype(np.float32) / np.float32(exact)
        last = np.float32(math.log((config.max_position_embeddings - 1) / exact))
        steps = np.ceil(np.log(far) / last * np.float32(exact - 1)) + exact
        near = np.abs(distance) <= exact
        distance = np.where(near, distance, steps * np.sign(distance)).astype(np.int32)
    return np.clip(distance + config.span, 0, 2 * config.span - 1)


class DisentangledAttention(nnx.Module):
    """Multi-head self-attention with scores for distances, its softmax in float32."""

    def __init__(self, config: DebertaConfig, make: BertLayerFactory) -> None:
        """Build the projections."""
        width = config.hidden_size
        self.query, self.key, self.value, self.output = (
            make.projection(width, width) for _ in range(4)
        )
        of_distance = [] if config.share_att_key else config.pos_att_type
        self.distance_key = make.projection(width, width) if "c2p" in of_distance else None
        self.distance_query = make.projection(width, width) if "p2c" in of_distance else None
        self.kinds = config.pos_att_type if config.relative_attention else ()
        # The scale counts the kinds even where there are no distances, as the original does.
        self.summands = 1 + len(config.pos_att_type)
        self.heads = config.num_attention_heads
        self.dropout_rate = config.attention_probs_dropout_prob

    def __call__(
        self,
        x: jax.Array,
        bias: tuple[jax.Array, jax.Array | None, np.ndarray],
        dropout_key: jax.Array | None,
    ) -> jax.Array:
        """Map [B, L, width] to [B, L, width].

        `bias` is what masks keys, [B, 1, 1, L], the table of distances [rows, width], and the row
        of every pair [L, L].
        """
        mask, table, rows = bias
        query, key, value = (
            self._by_head(layer(x)) for layer in (self.query, self.key, self.value)
        )
        scores = jnp.einsum("bhqd,bhkd->bhqk", query, key, preferred_element_type=jnp.float32)
        if "c2p" in self.kinds:
            distance = self._by_head((self.distance_key or self.key)(table[None]))[0]
            of_query = jnp.einsum("bhqd,hrd->bhqr", query, distance)
            scores += jnp.take_along_axis(of_query, jnp.asarray(rows)[None, None], axis=-1)
        if "p2c" in self.kinds:
            distance = self._by_head((self.distance_query or self.query)(table[None]))[0]
            of_key = jnp.einsum("bhkd,hrd->bhkr", key, distance)
            by_key = jnp.take_along_axis(of_key, jnp.asarray(rows.T)[None, None], axis=-1)
            scores += by_key.swapaxes(-1, -2)
        scores = scores * (query.shape[-1] * self.summands) ** -0.5 + mask
        weights = jax.nn.softmax(scores, axis=-1).astype(x.dtype)
        mixed = jnp.einsum(
            "bhqk,bhkd->bhqd", dropout(weights, self.dropout_rate, dropout_key), value
        )
        return self.output(mixed.transpose(0, 2, 1, 3).reshape(x.shape))

    def _by_head(self, x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:2], self.heads, -1).transpose(0, 2, 1, 3)


KEYS = BERT_KEYS.extended(
    fields={
        name: name
        for name in (
            *("relative_attention", "position_buckets", "pos_att_type", "share_att_key"),
            *("norm_rel_ebd", "position_biased_input"),
        )
    },
    defaults={
        "vocab_size": 128100,
        "type_vocab_size": 0,
        "hidden_size": 1536,
        "num_hidden_layers": 24,
        "num_attention_heads": 24,
        "intermediate_size": 6144,
        "layer_norm_eps": 1e-7,
        "relative_attention": False,
        "position_buckets": -1,
        "pos_att_type": None,
        "share_att_key": False,
        "norm_rel_ebd": "none",
        "position_biased_input": True,
    },
    only={"conv_kernel_size": (0, None)},
    harmless=words("pooler_dropout pooler_hidden_act pooler_hidden_size legacy conv_act"),
)


def _fields(saved: Description, arrays: CheckpointArrays) -> dict[str, Any]:
    if not saved:
        raise ValueError("the weights do not tell its shape; they need the config.json beside them")
    refuse_other_kinds(saved, "config.json")
    # -1 stands for as many as there are positions; the table of the published ones has these.
    longest = saved.get("max_relative_positions", -1)
    refuse_null(longest, "max_relative_positions", "config.json")
    if longest > 0 and longest != saved.get("max_position_embeddings", 512):
        raise ValueError(f"config.json says max_relative_positions={longest}; only -1 is supported")
    entries = {k: v for k, v in saved.items() if k != "max_relative_positions"}
    for name in ("embedding_size", "attention_head_size"):
        if name in entries:
            raise ValueError(f"config.json says {name}={entries[name]!r}, which is not supported")
    fields = KEYS.read(entries, "config.json")
    kinds = fields["pos_att_type"] or ()
    kinds = kinds.split("|") if isinstance(kinds, str) else kinds
    fields["pos_att_type"] = tuple(kind.strip() for kind in kinds)
    fields["norm_rel_ebd"] = "layer_norm" in str(fields["norm_rel_ebd"]).split("|")
    fields["position_buckets"] = max(fields["position_buckets"], 0)
    return fields


LAYOUT = CheckpointLayout(
    recognised_by="encoder.layer.0.attention.self.query_proj.weight",
    names=(
        *EMBEDDING_NAMES,
        *ENCODER_NAMES,
        (r"^distances_norm", "encoder.LayerNorm"),
        (r"^distances", "encoder.rel_embeddings"),
        (r"attention\.distance_(query|key)", r"attention.self.pos_\1_proj"),
        (r"attention\.(query|key|value)", r"attention.self.\1_proj"),
        (r"attention\.output", "attention.output.dense"),
        (r"attention_norm", "attention.output.LayerNorm"),
    ),
    spellings=((r"^deberta\.", ""), (r"LayerNorm\.gamma$", "LayerNorm.weight")),
    ignored=(*IGNORED, "lm_predictions.*", "mask_predictions.*"),
    fields=_fields,
)


class Deberta(Bert):
    """Text tower: DeBERTa, versions 2 and 3."""

    config_class = DebertaConfig
    checkpoint_layouts = (LAYOUT,)
    model_types = ("deberta-v2",)

    def __init__(
        self,
        config: DebertaConfig | None = None,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ) -> None:
        """Build the tower with random weights; arguments as in `Bert`."""
        super().__init__(config, rngs=rngs, dtype=dtype)
        config, make = self.config, BertLayerFactory(self.config, dtype, rngs)
        if not config.position_biased_input:
            self.position_embeddings = None
        relative = config.relative_attention
        self.distances = make.embedding(2 * config.span) if relative else None
        self.distances_norm = make.norm() if config.norm_rel_ebd else None

    def make_attention(self, make: BertLayerFactory) -> nnx.Module:
        """Return the attention of one layer."""
        return DisentangledAttention(self.config, make)

    def attention_bias(
        self, token_mask: jax.Array
    ) -> tuple[jax.Array, jax.Array | None, np.ndarray]:
        """Return the mask [B, 1, 1, L], the table of distances, and the rows of all pairs."""
        table = None
        if self.distances is not None:
            table = self.distances.embedding[...].astype(self.distances.dtype)
            table = table if self.distances_norm is None else self.distances_norm(table)
        rows = distance_rows(token_mask.shape[1], self.config)
        return mask_bias(token_mask)[:, None, None, :], table, rows


PRESETS: dict[str, Preset] = {"deberta": Preset(Deberta)}
