"""BERT, the text tower, as Hugging Face computes it.

Source: Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers for Language
Understanding" (2019). Absolute positions, layer norm after each residual sum, exact GELU, one
segment. Every Hugging Face folder of model type "bert" fits, among them the sentence encoders
(MiniLM), whose sentence embedding is the mean over tokens that this tower returns.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from otter_jax.models.layers import Preset, TowerOutput, dropout, split_key
from otter_jax.models.weights import CheckpointLayout

ACTIVATIONS = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
}


HUGGING_FACE_LAYOUT = CheckpointLayout(
    recognised_by="embeddings.word_embeddings.weight",
    names=(
        (r"^(word|position|token_type)_embeddings", r"embeddings.\1_embeddings"),
        (r"^embeddings_norm", "embeddings.LayerNorm"),
        (r"^layers\.", "encoder.layer."),
        (r"attention\.(query|key|value)", r"attention.self.\1"),
        (r"attention\.output", "attention.output.dense"),
        (r"attention_norm", "attention.output.LayerNorm"),
        (r"intermediate", "intermediate.dense"),
        (r"(\d)\.output\.", r"\1.output.dense."),
        (r"(\d)\.output_norm", r"\1.output.LayerNorm"),
    ),
    spellings=(
        (r"^bert\.", ""),
        (r"LayerNorm\.gamma$", "LayerNorm.weight"),
        (r"LayerNorm\.beta$", "LayerNorm.bias"),
    ),
    ignored=("embeddings.position_ids", "pooler.*", "cls.*"),
)


@dataclass(frozen=True)
class BertConfig:
    """Shape of a BERT, with the names of Hugging Face's config.json; the defaults are BERT-base.

    Raises:
        ValueError: an activation, a kind of position embedding or a number of heads that this
            tower does not have.
    """

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    hidden_act: str = "gelu"
    position_embedding_type: str = "absolute"
    layer_norm_eps: float = 1e-12
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        """Refuse what this tower cannot compute."""
        if self.hidden_act not in ACTIVATIONS:
            raise ValueError(
                f"BERT's hidden_act is {self.hidden_act!r}; it must be one of {list(ACTIVATIONS)}"
            )
        if self.position_embedding_type != "absolute":
            raise ValueError(
                f"BERT's position_embedding_type is {self.position_embedding_type!r}; only "
                "'absolute' is supported"
            )
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"BERT's hidden_size {self.hidden_size} does not divide into "
                f"{self.num_attention_heads} attention heads"
            )


class _Layers:
    """Makes the layers of one BERT, which share their initialiser, type and epsilon."""

    def __init__(self, config: BertConfig, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        self.config, self.dtype, self.rngs = config, dtype, rngs
        self.normal = jax.nn.initializers.normal(config.initializer_range)

    def linear(self, inputs: int, outputs: int) -> nnx.Linear:
        return nnx.Linear(
            inputs, outputs, kernel_init=self.normal, dtype=self.dtype, rngs=self.rngs
        )

    def embedding(self, rows: int) -> nnx.Embed:
        return nnx.Embed(
            rows,
            self.config.hidden_size,
            embedding_init=self.normal,
            dtype=self.dtype,
            rngs=self.rngs,
        )

    def norm(self) -> nnx.LayerNorm:
        # The variance as mean((x - mean)^2): the one-pass form loses digits where eps is 1e-12.
        return nnx.LayerNorm(
            self.config.hidden_size,
            epsilon=self.config.layer_norm_eps,
            use_fast_variance=False,
            dtype=self.dtype,
            rngs=self.rngs,
        )


class SelfAttention(nnx.Module):
    """Multi-head self-attention over the tokens that the mask admits."""

    def __init__(self, config: BertConfig, make: _Layers) -> None:
        """Build the four projections."""
        width = config.hidden_size
        self.query = make.linear(width, width)
        self.key = make.linear(width, width)
        self.value = make.linear(width, width)
        self.output = make.linear(width, width)
        self.heads = config.num_attention_heads
        self.dropout_rate = config.attention_probs_dropout_prob

    def __call__(
        self, x: jax.Array, token_mask: jax.Array, dropout_key: jax.Array | None
    ) -> jax.Array:
        """Map [B, L, width] to [B, L, width]; nothing attends to tokens masked out."""
        batch, length, width = x.shape
        by_head = (batch, length, self.heads, width // self.heads)
        query, key, value = (
            projection(x).reshape(by_head) for projection in (self.query, self.key, self.value)
        )
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32)
        scores = scores / jnp.sqrt(by_head[-1])
        # Finite, so that a row without any token gives a mean instead of NaN.
        scores = jnp.where(token_mask[:, None, None, :], scores, jnp.finfo(jnp.float32).min)
        weights = jax.nn.softmax(scores, axis=-1).astype(x.dtype)
        weights = dropout(weights, self.dropout_rate, dropout_key)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, value)
        return self.output(mixed.reshape(x.shape))


class TransformerLayer(nnx.Module):
    """Attention and a two-layer perceptron, each with a residual sum and layer norm after it."""

    def __init__(self, config: BertConfig, make: _Layers) -> None:
        """Build the layer."""
        self.attention = SelfAttention(config, make)
        self.attention_norm = make.norm()
        self.intermediate = make.linear(config.hidden_size, config.intermediate_size)
        self.output = make.linear(config.intermediate_size, config.hidden_size)
        self.output_norm = make.norm()
        self.activation = config.hidden_act
        self.dropout_rate = config.hidden_dropout_prob

    def __call__(
        self, x: jax.Array, token_mask: jax.Array, dropout_key: jax.Array | None
    ) -> jax.Array:
        """Map [B, L, width] to [B, L, width]."""
        weights_key, attention_key, output_key = split_key(dropout_key, 3)
        attended = self.attention(x, token_mask, weights_key)
        x = self.attention_norm(x + dropout(attended, self.dropout_rate, attention_key))
        transformed = self.output(ACTIVATIONS[self.activation](self.intermediate(x)))
        return self.output_norm(x + dropout(transformed, self.dropout_rate, output_key))


class Bert(nnx.Module):
    """Text tower: BERT with the mean over tokens as the sentence's features.

    Attributes:
        width: size of the features (`hidden_size`).
    """

    config_class = BertConfig
    checkpoint_layouts = (HUGGING_FACE_LAYOUT,)
    model_types = ("bert",)

    def __init__(
        self,
        config: BertConfig | None = None,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ) -> None:
        """Build the tower with random weights.

        Args:
            config: shape and dropout; BERT-base if None.
            rngs: source of the initial weights.
            dtype: type of the computation; parameters stay float32, and so does the softmax.
        """
        config = config or BertConfig()
        make = _Layers(config, dtype, rngs)
        self.config = config
        self.width = config.hidden_size
        self.word_embeddings = make.embedding(config.vocab_size)
        self.position_embeddings = make.embedding(config.max_position_embeddings)
        self.token_type_embeddings = make.embedding(config.type_vocab_size)
        self.embeddings_norm = make.norm()
        self.layers = nnx.List(
            [TransformerLayer(config, make) for _ in range(config.num_hidden_layers)]
        )

    def __call__(
        self,
        tokens: jax.Array,
        token_mask: jax.Array,
        *,
        train: bool = False,
        dropout_key: jax.Array | None = None,
    ) -> TowerOutput:
        """Return the last hidden states, and their mean over each text's tokens, all of them.

        Args:
            tokens: int32 [B, L], L at most `max_position_embeddings`.
            token_mask: bool [B, L], True where there is a token, False on padding.
            train: dropout on, if `dropout_key` is given.
            dropout_key: key of the dropout.

        Returns:
            float32 [B, width], zeros for a text without tokens; and [B, L, width].

        Raises:
            ValueError: the texts are longer than the position table.
        """
        states = self.encode_tokens(tokens, token_mask, train=train, dropout_key=dropout_key)
        weights = token_mask.astype(jnp.float32)[:, :, None]
        total = jnp.sum(states.astype(jnp.float32) * weights, axis=1)
        return TowerOutput(total / jnp.maximum(jnp.sum(weights, axis=1), 1.0), states)

    def encode_tokens(
        self,
        tokens: jax.Array,
        token_mask: jax.Array,
        *,
        train: bool = False,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """Return the last hidden states [B, L, width]; arguments as in `__call__`."""
        length, longest = tokens.shape[1], self.config.max_position_embeddings
        if length > longest:
            raise ValueError(f"texts have {length} tokens; this BERT takes at most {longest}")
        first_key, *layer_keys = split_key(dropout_key if train else None, 1 + len(self.layers))
        x = self.word_embeddings(tokens) + self.token_type_embeddings(jnp.zeros((), jnp.int32))
        x = self.embeddings_norm(x + self.position_embeddings(jnp.arange(length)))
        x = dropout(x, self.config.hidden_dropout_prob, first_key)
        for layer, key in zip(self.layers, layer_keys, strict=True):
            x = layer(x, token_mask, key)
        return x


PRESETS = {"bert": Preset(Bert)}
