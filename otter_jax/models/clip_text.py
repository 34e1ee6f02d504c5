"""CLIP's text transformer, a text tower, as OpenAI, Hugging Face, open_clip and DeCLIP compute it.

Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision"
(2021). Every token attends to those before it, so the state of the end-of-text token has seen the
whole text; it is what the tower returns as features, after the last layer norm and before CLIP's
projection, which is not part of the tower. SigLIP (Zhai et al. 2023) and CLIPA (Li et al. 2023) let
all tokens attend to all, padding included, and take the last of a fixed number of positions.
"""

import dataclasses
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from otter_jax.models import clip_text_layouts
from otter_jax.models.layers import (
    Embed,
    Preset,
    TowerOutput,
    add_parameter,
    compiling_eager_calls,
    dropout,
    split_key,
)
from otter_jax.models.transformer import (
    LayerFactory,
    TransformerConfig,
    make_blocks,
    mask_bias,
    run_blocks,
)


@dataclass(frozen=True)
class ClipTextConfig(TransformerConfig):
    """Shape and training behaviour of CLIP's text tower; the defaults are those beside ViT-B/32.

    Attributes:
        vocab_size: number of token ids.
        max_position_embeddings: most tokens that a text may have.
        eos_token_id: the end-of-text token; None for the highest id in a text, which it is in
            CLIP's vocabulary (49407) and DeCLIP's (49408, one more for its mask).
        causal: whether a token attends to those before it alone; otherwise to all positions, those
            of padding too.
        pooling: "eos", the first end-of-text token; "last", the last position of
            `max_position_embeddings`, to which texts must then be padded; "first".
        cleaning: what is done to captions before they become tokens, "none", "whitespace", "lower"
            or "canonical", see `data.caption_cleaning`.
        strip_separator: whether 0 takes the place of the separator that the tokenizer puts behind a
            caption.

    The other fields are those of `transformer.TransformerConfig`.

    Raises:
        ValueError: `eos_token_id` is not a single number, the pooling is unknown, or see
            `TransformerConfig`.
    """

    hidden_size: int = 512
    num_attention_heads: int = 8
    intermediate_size: int = 2048
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    vocab_size: int = 49408
    max_position_embeddings: int = 77
    eos_token_id: int | None = None
    causal: bool = True
    pooling: Literal["eos", "last", "first"] = "eos"
    cleaning: str = "lower"
    strip_separator: bool = False

    def __post_init__(self) -> None:
        """Refuse what this tower cannot compute."""
        super().__post_init__()
        if not isinstance(self.eos_token_id, int | None):
            raise ValueError(
                f"ClipTextConfig's eos_token_id is {self.eos_token_id!r}; it must be one token id, "
                "or None for the highest of each text"
            )
        if self.pooling not in ("eos", "last", "first"):
            raise ValueError(
                f"ClipTextConfig's pooling is {self.pooling!r}; it must be 'eos', 'last' or 'first'"
            )


class ClipText(nnx.Module):
    """Text tower: CLIP's causal transformer with the end-of-text token's features.

    Attributes:
        width: channels of the features (`hidden_size`).
    """

    config_class = ClipTextConfig
    checkpoint_layouts = clip_text_layouts.LAYOUTS
    model_types = tuple(clip_text_layouts.MODEL_TYPES)

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

    @property
    def ignores_padding(self) -> bool:
        """Whether padding behind a text changes nothing about it."""
        return self.config.causal and self.config.pooling != "last"

    @compiling_eager_calls
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
                nothing attends if the tower is causal. Padding behind the text then never matters
                to the text.
            train: dropout and stochastic depth on, if `dropout_key` is given.
            dropout_key: key of both.

        Returns:
            float32 [B, width], of the first end-of-text token, or of the first token at all in a
            text without one, or as `pooling` says; and [B, L, width]. Both after the last layer
            norm.

        Raises:
            ValueError: the texts are longer than the position table, or shorter where the last
                position is wanted.
        """
        length, longest = tokens.shape[1], self.config.max_position_embeddings
        if length > longest:
            raise ValueError(f"texts have {length} tokens; this ClipText takes at most {longest}")
        if length < longest and self.config.pooling == "last":
            raise ValueError(
                f"texts have {length} tokens; this ClipText looks at the last of {longest} "
                f"positions, to which they must be padded (max_tokens={longest})"
            )
        first_key, blocks_key = split_key(dropout_key if train else None, 2)
        x = self.token_embeddings(tokens)
        x = add_parameter(x, self.position_embeddings[:length])
        x = dropout(x, self.config.hidden_dropout_prob, first_key)
        bias = None
        if self.config.causal:
            seen = jnp.tril(jnp.ones((length, length), bool))
            # The last position is padding in most texts, and looks at all of it.
            if self.config.pooling != "last":
                seen = seen & jnp.asarray(token_mask, bool)[:, None, None, :]
            bias = mask_bias(seen)
        states = run_blocks(self.config, self.blocks, x, bias, blocks_key)
        states = self.final_norm(states)
        return TowerOutput(self._pool(states, tokens).astype(jnp.float32), states)

    def _pool(self, states: jax.Array, tokens: jax.Array) -> jax.Array:
        """Return the state [B, width] of the position that stands for each text."""
        if self.config.pooling != "eos":
            return states[:, 0 if self.config.pooling == "first" else -1]
        eos_token_id = self.config.eos_token_id
        ends = jnp.argmax(tokens if eos_token_id is None else tokens == eos_token_id, axis=1)
        return jnp.take_along_axis(states, ends[:, None, None], axis=1)[:, 0]


KEPT_POSITIONS = 20  # Those that most captions reach, and so the well trained ones.


def stretch_positions(tower: nnx.Module, positions: int) -> None:
    """Give a tower more positions, in place: the first 20 stay, the others are stretched.

    Between them, and beyond the last, they are interpolated linearly (Zhang et al., "Long-CLIP",
    2024). The longer tower is meant to be trained: what it makes of short texts stays as it was.

    Args:
        tower: a `ClipText`.
        positions: how many there shall be.

    Raises:
        ValueError: for another tower, or no more positions than there are.
    """
    if not isinstance(tower, ClipText):
        raise ValueError(
            f"positions={positions}: {type(tower).__name__} has another kind of positions; only "
            "those of CLIP's text towers can be stretched"
        )
    table = tower.position_embeddings[...]
    if positions <= len(table) or len(table) <= KEPT_POSITIONS + 1:
        raise ValueError(
            f"positions={positions}: the tower has {len(table)}; more than these, and more than "
            f"{KEPT_POSITIONS + 1} to begin with, can be stretched"
        )
    beyond = len(table) - KEPT_POSITIONS
    step = beyond / (positions - KEPT_POSITIONS)
    places = KEPT_POSITIONS + step * np.arange(positions - KEPT_POSITIONS)
    below = np.minimum(places.astype(int), len(table) - 2)
    share = jnp.asarray(places - below, table.dtype)[:, None]
    stretched = (1 - share) * table[below] + share * table[below + 1]
    tower.position_embeddings = nnx.Param(jnp.concatenate([table[:KEPT_POSITIONS], stretched]))
    tower.config = dataclasses.replace(tower.config, max_position_embeddings=positions)


PRESETS = {
    "clip_text": Preset(ClipText),
    "clip_text_l14": Preset(
        ClipText, {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}
    ),
}
