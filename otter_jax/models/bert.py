"""The text towers of the BERT family, as Hugging Face computes them.

`Bert` is Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers for Language
Understanding" (2019): absolute positions, layer norm after each residual sum, exact GELU, one
segment. The others differ from it in a few settings, and in the names of their checkpoints:

* `Roberta` (Liu et al. 2019; also XLM-R and CamemBERT) counts positions from behind the padding's;
* `DistilBert` (Sanh et al. 2019) has no token types;
* `MPNet` (Song et al. 2020) adds a bias to the attention that depends on the distance of tokens;
* `Electra` (Clark et al. 2020) may have embeddings narrower than its layers;
* `Albert` (Lan et al. 2019) has them too, and one layer that is applied again and again.

Every Hugging Face folder of these types fits, among them the sentence encoders: DeCLUTR and
sentence-transformers' (MiniLM), whose embedding is the mean over tokens that these towers return.
"""

import math
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from otter_jax.models import bert_layouts, scanning, transformer
from otter_jax.models.layers import (
    Embed,
    Linear,
    Preset,
    TowerOutput,
    add_parameter,
    compiling_eager_calls,
    dropout,
    split_key,
)

ACTIVATIONS = transformer.ACTIVATIONS | {"relu": jax.nn.relu}
POOLINGS = ("mean", "cls")
# MPNet's distances: exact below 8, in logarithmic steps up to 128, in both directions.
RELATIVE_BUCKETS = 32
RELATIVE_DISTANCE = 128


@dataclass(frozen=True)
class BertConfig:
    """Shape of a BERT, with the names of Hugging Face's config.json; the defaults are BERT-base.

    Attributes:
        embedding_size: width of the embeddings, from which a linear layer leads to `hidden_size`;
            None for embeddings of that width, without such a layer.
        shared_layer: whether all layers are one, with the same weights.
        type_vocab_size: number of token types, of which the towers use the first; 0 for none.
        pad_token_id: id whose embedding gets no gradient; None for none.
        positions_after_padding: whether positions count the tokens other than padding, from
            `pad_token_id` + 1 on, instead of all from 0 on.
        relative_attention_num_buckets: rows of the table of attention biases; 0 for no biases.
        drop_attended: whether `hidden_dropout_prob` applies behind the attention too.
        pooling: "mean" over the tokens, or "cls", the first token.
        cleaning: what is done to captions before they become tokens, as in `ClipTextConfig`.
        mlm_head: whether there is a head that predicts masked tokens.
        mlm_act: its activation; None for `hidden_act`.
        tie_word_embeddings: whether that head scores tokens with their embeddings.
        remat: whether the backward pass computes each layer again instead of storing it.
        scan_layers: whether layers that are equal run as one loop, see `scanning`.
        pack_heads: whether several heads attend at once, see `transformer.attend_packed`.

    Raises:
        ValueError: something that these towers cannot compute.
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
    is_decoder: bool = False
    layer_norm_eps: float = 1e-12
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    initializer_range: float = 0.02
    pad_token_id: int | None = 0
    positions_after_padding: bool = False
    relative_attention_num_buckets: int = 0
    drop_attended: bool = True
    embedding_size: int | None = None
    shared_layer: bool = False
    pooling: Literal["mean", "cls"] = "mean"
    cleaning: str = "none"
    mlm_head: bool = False
    mlm_act: str | None = None
    tie_word_embeddings: bool = True
    remat: bool = False
    scan_layers: bool = False
    pack_heads: bool = False

    def __post_init__(self) -> None:
        """Refuse what these towers cannot compute."""
        self._check_choice("hidden_act", tuple(ACTIVATIONS))
        self._check_choice("mlm_act", (None, *ACTIVATIONS))
        self._check_choice("position_embedding_type", ("absolute",))
        self._check_choice("is_decoder", (False,))
        self._check_choice("pooling", POOLINGS)
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"BERT's hidden_size {self.hidden_size} does not divide into "
                f"{self.num_attention_heads} attention heads"
            )
        if 0 < self.relative_attention_num_buckets < RELATIVE_BUCKETS:
            raise ValueError(
                f"BERT's relative_attention_num_buckets is {self.relative_attention_num_buckets}; "
                f"it must be 0 or at least {RELATIVE_BUCKETS}"
            )
        if self.positions_after_padding and self.pad_token_id is None:
            raise ValueError("BERT's positions_after_padding needs a pad_token_id; it is None")
        if self.longest_text < 1:
            raise ValueError(
                f"BERT's max_position_embeddings {self.max_position_embeddings} leave no position "
                "for a token"
            )

    def _check_choice(self, field: str, choices: tuple[object, ...]) -> None:
        value = getattr(self, field)
        if value not in choices:
            raise ValueError(f"BERT's {field} is {value!r}; it must be one of {list(choices)}")

    @property
    def longest_text(self) -> int:
        """Return how many tokens there are positions for."""
        reserved = self.pad_token_id + 1 if self.positions_after_padding else 0
        return self.max_position_embeddings - reserved


@dataclass(frozen=True)
class RobertaConfig(BertConfig):
    """Shape of a RoBERTa; the defaults are RoBERTa-base."""

    vocab_size: int = 50265
    max_position_embeddings: int = 514
    type_vocab_size: int = 1
    layer_norm_eps: float = 1e-5
    pad_token_id: int | None = 1
    positions_after_padding: bool = True
    mlm_act: str | None = "gelu"


@dataclass(frozen=True)
class DistilBertConfig(BertConfig):
    """Shape of a DistilBERT, with BERT's names; the defaults are DistilBERT-base."""

    num_hidden_layers: int = 6
    type_vocab_size: int = 0
    drop_attended: bool = False


@dataclass(frozen=True)
class MPNetConfig(BertConfig):
    """Shape of an MPNet; the defaults are MPNet-base."""

    vocab_size: int = 30527
    max_position_embeddings: int = 514
    type_vocab_size: int = 0
    layer_norm_eps: float = 1e-5
    pad_token_id: int | None = 1
    positions_after_padding: bool = True
    relative_attention_num_buckets: int = RELATIVE_BUCKETS
    mlm_act: str | None = "gelu"


@dataclass(frozen=True)
class AlbertConfig(BertConfig):
    """Shape of an ALBERT; the defaults are ALBERT-base (version 2)."""

    vocab_size: int = 30000
    hidden_act: str = "gelu_new"
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    embedding_size: int | None = 128
    shared_layer: bool = True


class BertLayerFactory(transformer.LayerFactory):
    """Makes the layers of one BERT, which share their initialiser too."""

    def projection(self, inputs: int, outputs: int) -> Linear:
        """Return a linear layer with bias."""
        return self.linear(inputs, outputs, self.config.initializer_range)

    def embedding(self, rows: int, columns: int | None = None) -> Embed:
        """Return a table, as wide as the embeddings unless said otherwise."""
        return Embed(
            rows,
            columns or self.config.embedding_size or self.config.hidden_size,
            embedding_init=jax.nn.initializers.normal(self.config.initializer_range),
            dtype=self.dtype,
            rngs=self.rngs,
        )


class TransformerLayer(nnx.Module):
    """Attention and a two-layer perceptron, each with a residual sum and layer norm after it."""

    def __init__(
        self, config: BertConfig, make: BertLayerFactory, attention: nnx.Module | None = None
    ) -> None:
        """Build the layer around its attention, the usual one if None."""
        deviation = config.initializer_range
        self.attention = attention or transformer.SelfAttention(
            make, deviation=deviation, output_deviation=deviation
        )
        self.attention_norm = make.norm()
        self.intermediate = make.projection(config.hidden_size, config.intermediate_size)
        self.output = make.projection(config.intermediate_size, config.hidden_size)
        self.output_norm = make.norm()
        self.activation = config.hidden_act
        self.dropout_rate = config.hidden_dropout_prob
        self.attended_dropout_rate = self.dropout_rate if config.drop_attended else 0.0

    def __call__(self, x: jax.Array, bias: jax.Array, dropout_key: jax.Array | None) -> jax.Array:
        """Map [B, L, width] to [B, L, width]; `bias` as `Bert.attention_bias` returns it."""
        weights_key, attention_key, output_key = split_key(dropout_key, 3)
        attended = self.attention(x, bias, weights_key)
        attended = dropout(attended, self.attended_dropout_rate, attention_key)
        x = self.attention_norm(x + attended)
        transformed = self.output(ACTIVATIONS[self.activation](self.intermediate(x)))
        return self.output_norm(x + dropout(transformed, self.dropout_rate, output_key))


class MaskedLanguageHead(nnx.Module):
    """Scores every token of the vocabulary at a position: dense, activation, layer norm, decoder.

    The decoder is the table of word embeddings with a bias, or a linear map of its own.
    """

    def __init__(self, config: BertConfig, make: BertLayerFactory) -> None:
        """Build the head."""
        tied = config.tie_word_embeddings
        self.dense = make.projection(config.hidden_size, config.hidden_size)
        self.norm = make.norm()
        self.decoder = None if tied else make.projection(config.hidden_size, config.vocab_size)
        self.bias = nnx.Param(jnp.zeros(config.vocab_size)) if tied else None
        self.activation = config.mlm_act or config.hidden_act

    def __call__(self, states: jax.Array, word_embeddings: Embed) -> jax.Array:
        """Map [..., width] to float32 [..., vocabulary]."""
        x = self.norm(ACTIVATIONS[self.activation](self.dense(states)))
        if self.decoder is not None:
            return self.decoder(x).astype(jnp.float32)
        return word_embeddings.attend(x).astype(jnp.float32) + self.bias[...]


def relative_buckets(length: int) -> np.ndarray:
    """Return the row of MPNet's bias table for every pair of positions.

    Half of the rows are for keys before the query (and itself), half for keys behind it.

    Returns:
        int32 [length, length], query by key, below 32.
    """
    positions = np.arange(length)
    behind = positions[None, :] - positions[:, None]
    distance = np.abs(behind)
    half, exact = RELATIVE_BUCKETS // 2, RELATIVE_BUCKETS // 4
    # Float32 throughout: at 64 the rounding decides, as it does in the published models.
    octaves = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact))
    steps = octaves / np.float32(math.log(RELATIVE_DISTANCE / exact)) * np.float32(half - exact)
    far = np.minimum(exact + steps.astype(np.int32), half - 1)
    return (half * (behind > 0) + np.where(distance < exact, distance, far)).astype(np.int32)


class Bert(nnx.Module):
    """Text tower: BERT, and what the family shares.

    Attributes:
        width: size of the features (`hidden_size`).
        ignores_padding: padding behind a text changes nothing about it.
    """

    ignores_padding = True
    config_class: type[BertConfig] = BertConfig
    checkpoint_layouts = (bert_layouts.BERT_LAYOUT,)
    model_types: tuple[str, ...] = ("bert", "chinese_clip_text_model")

    def __init__(
        self,
        config: BertConfig | None = None,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ) -> None:
        """Build the tower with random weights.

        Args:
            config: shape and dropout; the family member's base model if None.
            rngs: source of the initial weights.
            dtype: type of the computation; parameters stay float32, and so does the softmax.
        """
        self.config = config = config or self.config_class()
        make = BertLayerFactory(config, dtype, rngs)
        self.word_embeddings = make.embedding(config.vocab_size)
        self.position_embeddings = make.embedding(config.max_position_embeddings)
        types, buckets = config.type_vocab_size, config.relative_attention_num_buckets
        self.token_type_embeddings = make.embedding(types) if types else None
        self.embeddings_norm = make.norm(config.embedding_size)
        self.embeddings_project = (
            make.projection(config.embedding_size, config.hidden_size)
            if config.embedding_size
            else None
        )
        self.relative_bias = (
            make.embedding(buckets, config.num_attention_heads) if buckets else None
        )
        made = 1 if config.shared_layer else config.num_hidden_layers
        self.layers = nnx.List(
            [TransformerLayer(config, make, self.make_attention(make)) for _ in range(made)]
        )
        self.mlm_head = MaskedLanguageHead(config, make) if config.mlm_head else None
        self.width = config.hidden_size

    @compiling_eager_calls
    def __call__(
        self,
        tokens: jax.Array,
        token_mask: jax.Array,
        *,
        train: bool = False,
        dropout_key: jax.Array | None = None,
    ) -> TowerOutput:
        """Return each text's features, and the last hidden states that they are made of.

        Args:
            tokens: int32 [B, L], L at most `config.longest_text`.
            token_mask: bool [B, L], True where there is a token, False on padding.
            train: dropout on, if `dropout_key` is given.
            dropout_key: key of the dropout.

        Returns:
            float32 [B, width], by default the mean over the text's tokens, all of them (zeros for
            a text without tokens); and [B, L, hidden_size].

        Raises:
            ValueError: the texts are longer than the position table.
        """
        states = self.encode_tokens(tokens, token_mask, train=train, dropout_key=dropout_key)
        return TowerOutput(pool_tokens(states, token_mask, self.config.pooling), states)

    def make_attention(self, make: BertLayerFactory) -> nnx.Module | None:
        """Return the attention of one layer; None for the usual. See also `attention_bias`."""
        return None

    def encode_tokens(
        self,
        tokens: jax.Array,
        token_mask: jax.Array,
        *,
        train: bool = False,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """Return the last hidden states [B, L, hidden_size]; arguments as in `__call__`."""
        length, longest = tokens.shape[1], self.config.longest_text
        if length > longest:
            raise ValueError(f"texts have {length} tokens; this BERT takes at most {longest}")
        layers = list(self.layers)
        if self.config.shared_layer:
            layers *= self.config.num_hidden_layers
        first_key, *layer_keys = split_key(dropout_key if train else None, 1 + len(layers))
        x = self.embeddings_norm(self._embed(jnp.asarray(tokens)))
        x = dropout(x, self.config.hidden_dropout_prob, first_key)
        if self.embeddings_project is not None:
            x = self.embeddings_project(x)
        bias = self.attention_bias(jnp.asarray(token_mask))
        return scanning.run_in_turn(
            lambda layer, x, key: layer(x, bias, key),
            layers,
            x,
            layer_keys,
            remat=self.config.remat,
            scan=self.config.scan_layers,
        )

    def predict_tokens(self, states: jax.Array) -> jax.Array:
        """Score the vocabulary at every position, or at those that were picked out before.

        Args:
            states: last hidden states [..., hidden_size], such as `sequence` of the output.

        Returns:
            Logits, float32 [..., vocab_size].

        Raises:
            ValueError: the tower has no such head.
        """
        if self.mlm_head is None:
            raise ValueError("this BERT has no head to predict tokens; set mlm_head=True")
        return self.mlm_head(states, self.word_embeddings)

    def attention_bias(self, token_mask: jax.Array) -> jax.Array:
        """Return what is added to the attention scores, float32 [B, 1 or heads, 1 or L, L].

        Nothing attends to tokens masked out; the rest is MPNet's bias by distance.
        """
        bias = transformer.mask_bias(token_mask)[:, None, None, :]
        if self.relative_bias is None:
            return bias
        by_distance = self.relative_bias(relative_buckets(token_mask.shape[1]))
        return bias + by_distance.astype(jnp.float32).transpose(2, 0, 1)

    def _embed(self, tokens: jax.Array) -> jax.Array:
        padding = self.config.pad_token_id
        x = _look_up(self.word_embeddings, tokens, padding)
        if self.token_type_embeddings is not None:
            x = add_parameter(x, self.token_type_embeddings.embedding[0])
        if self.position_embeddings is None:  # DeBERTa's, whose attention knows of distances.
            return x
        if not self.config.positions_after_padding:
            return add_parameter(x, self.position_embeddings.embedding[: tokens.shape[1]])
        counted = tokens != padding
        positions = padding + jnp.cumsum(counted, axis=1) * counted
        return x + _look_up(self.position_embeddings, positions, padding)


def pool_tokens(states: jax.Array, token_mask: jax.Array, pooling: str) -> jax.Array:
    """Return one vector a text.

    Args:
        states: [B, L, width].
        token_mask: bool [B, L], False on padding.
        pooling: "mean" over the tokens, or "cls", the first one.

    Returns:
        float32 [B, width]; zeros for the mean of a text without tokens.
    """
    if pooling == "cls":
        return states[:, 0].astype(jnp.float32)
    weights = jnp.asarray(token_mask, jnp.float32)[:, :, None]
    total = jnp.sum(states.astype(jnp.float32) * weights, axis=1)
    return total / jnp.maximum(jnp.sum(weights, axis=1), 1.0)


def _look_up(table: Embed, ids: jax.Array, padding: int | None) -> jax.Array:
    """Return the rows of the ids; that of the padding gets no gradient, as in PyTorch."""
    rows = table(ids)
    if padding is None:
        return rows
    return jnp.where((ids == padding)[..., None], jax.lax.stop_gradient(rows), rows)


class Roberta(Bert):
    """Text tower: RoBERTa, XLM-R, CamemBERT."""

    config_class = RobertaConfig
    checkpoint_layouts = (bert_layouts.ROBERTA_LAYOUT,)
    model_types = ("roberta", "xlm-roberta", "camembert")


class DistilBert(Bert):
    """Text tower: DistilBERT."""

    config_class = DistilBertConfig
    checkpoint_layouts = (bert_layouts.DISTILBERT_LAYOUT,)
    model_types = ("distilbert",)


class MPNet(Bert):
    """Text tower: MPNet."""

    config_class = MPNetConfig
    checkpoint_layouts = (bert_layouts.MPNET_LAYOUT,)
    model_types = ("mpnet",)


class Electra(Bert):
    """Text tower: ELECTRA, the part that discriminates."""

    checkpoint_layouts = (bert_layouts.ELECTRA_LAYOUT,)
    model_types = ("electra",)


class Albert(Bert):
    """Text tower: ALBERT."""

    config_class = AlbertConfig
    checkpoint_layouts = (bert_layouts.ALBERT_LAYOUT,)
    model_types = ("albert",)


PRESETS = {
    "albert": Preset(Albert),
    "bert": Preset(Bert),
    "camembert": Preset(Roberta, {"vocab_size": 32005}),
    "distilbert": Preset(DistilBert),
    "electra": Preset(Electra),
    "minilm": Preset(Bert, {"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536}),
    "mpnet": Preset(MPNet),
    "roberta": Preset(Roberta),
    "xlm_roberta": Preset(Roberta, {"vocab_size": 250002}),
}
