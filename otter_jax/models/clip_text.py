"""CLIP's causal text transformer, a text tower, as OpenAI, Hugging Face and DeCLIP compute it.

Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision"
(2021). Every token attends to those before it, so the state of the end-of-text token has seen the
whole text; it is what the tower returns as features, after the last layer norm and before CLIP's
projection, which is not part of the tower.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from otter_jax.models.layers import (
    Embed,
    Preset,
    TowerOutput,
    add_parameter,
    dropout,
    split_key,
)
from otter_jax.models.transformer import (
    HUGGING_FACE_CLIP_BLOCKS,
    OPENAI_BLOCKS,
    LayerFactory,
    TransformerConfig,
    array_named,
    block_fields,
    checkpoint_name,
    clip_fields,
    make_blocks,
    mask_bias,
    run_blocks,
    split_query_key_value,
)
from otter_jax.models.weights import CheckpointArrays, CheckpointLayout, Substitution

# In config.json files older than transformers 4.31 the id of the end-of-text token is this wrong
# one; the highest id was taken for it, as in OpenAI's own code.
WRONG_EOS_TOKEN_ID = 2


@dataclass(frozen=True)
class ClipTextConfig(TransformerConfig):
    """Shape and training behaviour of CLIP's text tower; the defaults are those beside ViT-B/32.

    Attributes:
        vocab_size: number of token ids.
        max_position_embeddings: most tokens that a text may have.
        eos_token_id: the end-of-text token; None for the highest id in a text, which it is in
            CLIP's vocabulary (49407) and DeCLIP's (49408, one more for its mask).

    The other fields are those of `transformer.TransformerConfig`.

    Raises:
        ValueError: `eos_token_id` is not a single number, or see `TransformerConfig`.
    """

    hidden_size: int = 512
    num_attention_heads: int = 8
    intermediate_size: int = 2048
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    vocab_size: int = 49408
    max_position_embeddings: int = 77
    eos_token_id: int | None = None

    def __post_init__(self) -> None:
        """Refuse what this tower cannot compute."""
        super().__post_init__()
        if not isinstance(self.eos_token_id, int | None):
            raise ValueError(
                f"ClipTextConfig's eos_token_id is {self.eos_token_id!r}; it must be one token id, "
                "or None for the highest of each text"
            )


def _shape_fields(arrays: CheckpointArrays, names: tuple[Substitution, ...]) -> dict[str, Any]:
    """Return the fields of `ClipTextConfig` that the arrays' shapes tell."""
    tokens = array_named(arrays, checkpoint_name("token_embeddings.weight", names))
    positions = array_named(arrays, checkpoint_name("position_embeddings", names))
    return {
        **block_fields(arrays, names),
        "vocab_size": len(tokens),
        "max_position_embeddings": len(positions),
    }


def _hugging_face_fields(saved: Mapping[str, Any], arrays: CheckpointArrays) -> dict[str, Any]:
    fields = _shape_fields(arrays, HUGGING_FACE_NAMES) | clip_fields(saved)
    if fields.get("eos_token_id") == WRONG_EOS_TOKEN_ID:
        fields["eos_token_id"] = None
    return fields


def _openai_fields(saved: Mapping[str, Any], arrays: CheckpointArrays) -> dict[str, Any]:
    return _shape_fields(arrays, OPENAI_NAMES)


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

HUGGING_FACE_LAYOUT = CheckpointLayout(
    recognised_by="embeddings.token_embedding.weight",
    names=HUGGING_FACE_NAMES,
    ignored=("embeddings.position_ids",),
    fields=_hugging_face_fields,
)
OPENAI_LAYOUT = CheckpointLayout(
    recognised_by="token_embedding.weight",
    names=OPENAI_NAMES,
    ignored=("attn_mask",),
    prepare=split_query_key_value,
    fields=_openai_fields,
)


class ClipText(nnx.Module):
    """Text tower: CLIP's causal transformer with the end-of-text token's features.

    Attributes:
        width: channels of the features (`hidden_size`).
    """

    config_class = ClipTextConfig
    checkpoint_layouts = (HUGGING_FACE_LAYOUT, OPENAI_LAYOUT)
    model_types = ("clip_text_model",)

    def __init__(
        self,
        config: ClipTextConfig | None = None,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ) -> None:
        """Build the tower with random weights.

        Args:
            config: shape and behaviour; the tower beside ViT-B/32 if None.
            rngs: source of the initial weights.
            dtype: type of the computation; parameters stay float32, and so does the softmax.
        """
        config = config or ClipTextConfig()
        make = LayerFactory(config, dtype, rngs)
        self.config = config
        self.width = config.hidden_size
        self.token_embeddings = Embed(
            config.vocab_size,
            self.width,
            embedding_init=jax.nn.initializers.normal(0.02),
            dtype=dtype,
            rngs=rngs,
        )
        self.position_embeddings = make.table(
            config.max_position_embeddings, self.width, deviation=0.01
        )
        self.blocks = make_blocks(config, make)
        self.final_norm = make.norm()

    def __call__(
        self,
        tokens: jax.Array,
        token_mask: jax.Array,
        *,
        train: bool = False,
        dropout_key: jax.Array | None = None,
    ) -> TowerOutput:
        """Return the end-of-text token's features, and the states of all tokens.

        Args:
            tokens: int32 [B, L], L at most `max_position_embeddings`.
            token_mask: bool [B, L], True where there is a token, False on padding, to which
                nothing attends. Padding behind the text never matters to the text.
            train: dropout and stochastic depth on, if `dropout_key` is given.
            dropout_key: key of both.

        Returns:
            float32 [B, width], of the first end-of-text token, or of the first token at all in a
            text without one; and [B, L, width]. Both after the last layer norm.

        Raises:
            ValueError: the texts are longer than the position table.
        """
        length, longest = tokens.shape[1], self.config.max_position_embeddings
        if length > longest:
            raise ValueError(f"texts have {length} tokens; this ClipText takes at most {longest}")
        first_key, blocks_key = split_key(dropout_key if train else None, 2)
        x = self.token_embeddings(tokens)
        x = add_parameter(x, self.position_embeddings[:length])
        x = dropout(x, self.config.hidden_dropout_prob, first_key)
        before = jnp.tril(jnp.ones((length, length), bool))
        mask = before & jnp.asarray(token_mask, bool)[:, None, None, :]
        states = run_blocks(self.blocks, x, mask_bias(mask), blocks_key, remat=self.config.remat)
        states = self.final_norm(states)
        pooled = states[jnp.arange(len(states)), self._end_of_text(tokens)]
        return TowerOutput(pooled.astype(jnp.float32), states)

    def _end_of_text(self, tokens: jax.Array) -> jax.Array:
        """Return the position [B] of each text's first end-of-text token."""
        eos_token_id = self.config.eos_token_id
        return jnp.argmax(tokens if eos_token_id is None else tokens == eos_token_id, axis=1)


PRESETS = {
    "clip_text": Preset(ClipText),
    "clip_text_l14": Preset(
        ClipText, {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}
    ),
}
