"""ModernBERT, a text tower with rotary positions and attention that is mostly local.

Source: Warner et al., "Smarter, Better, Faster, Longer: A Modern Bidirectional Encoder" (2024);
Su et al., "RoFormer" (2021), for the positions. Every third layer attends to the whole text, the
others to a window around each token. Read from transformers' folders.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from otter_jax.models.bert import pool_tokens
from otter_jax.models.bert_layouts import IGNORED
from otter_jax.models.descriptions import (
    TRANSFORMERS_KEYS,
    Description,
    Keys,
    refuse_null,
    words,
)
from otter_jax.models.layers import (
    Embed,
    LayerNorm,
    Linear,
    Preset,
    TowerOutput,
    compiling_eager_calls,
    dropout,
    split_key,
)
from otter_jax.models.transformer import ACTIVATIONS, attend, mask_bias
from otter_jax.models.weights import CheckpointArrays, CheckpointLayout

FULL, LOCAL = "full_attention", "sliding_attention"


@dataclass(frozen=True)
class ModernBertConfig:
    """Shape of a ModernBERT; the defaults are ModernBERT-base.

    Attributes:
        vocab_size: number of token ids.
        hidden_size: channels of every token.
        num_hidden_layers: number of layers.
        num_attention_heads: heads that the channels are divided among, an even number each.
        intermediate_size: channels inside each gated perceptron.
        max_position_embeddings: most tokens that a text may have.
        hidden_act: one of `transformer.ACTIVATIONS`.
        layer_norm_eps: added to the variance.
        local_attention: tokens of the window, the one in the middle not counted.
        layer_types: "full_attention" or "sliding_attention" for each layer; empty for the first,
            the fourth and so on in full.
        full_rope_theta: base of the rotary angles where attention is full.
        local_rope_theta: the same in the window.
        norm_bias: a bias in the layer norms.
        attention_bias: a bias on queries, keys, values and the output.
        mlp_bias: a bias in the perceptrons.
        hidden_dropout_prob: dropout on the embeddings.
        attention_probs_dropout_prob: dropout on attention's weights and results.
        mlp_dropout: dropout inside the perceptrons.
        initializer_range: standard deviation of the initial weights.
        pooling: "mean" over the tokens, or "cls", the first token.
        cleaning: what is done to captions before they become tokens, as in `ClipTextConfig`.
        remat: whether the backward pass computes each layer again instead of storing it.

    Raises:
        ValueError: something that this tower cannot compute.
    """

    vocab_size: int = 50368
    hidden_size: int = 768
    num_hidden_layers: int = 22
    num_attention_heads: int = 12
    intermediate_size: int = 1152
    max_position_embeddings: int = 8192
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-5
    local_attention: int = 128
    layer_types: tuple[str, ...] = ()
    full_rope_theta: float = 160000.0
    local_rope_theta: float = 10000.0
    norm_bias: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    mlp_dropout: float = 0.0
    initializer_range: float = 0.02
    pooling: Literal["mean", "cls"] = "mean"
    cleaning: str = "none"
    remat: bool = False

    def __post_init__(self) -> None:
        """Turn a list into a tuple (a configuration is hashed); refuse what cannot be computed."""
        object.__setattr__(self, "layer_types", tuple(self.layer_types or ()))
        if self.hidden_act not in ACTIVATIONS:
            raise ValueError(
                f"ModernBERT's hidden_act is {self.hidden_act!r}; it must be one of "
                f"{list(ACTIVATIONS)}"
            )
        if self.hidden_size % (2 * self.num_attention_heads):
            raise ValueError(
                f"ModernBERT's hidden_size {self.hidden_size} does not divide into "
                f"{self.num_attention_heads} attention heads of an even width"
            )
        if self.pooling not in ("mean", "cls"):
            raise ValueError(f"ModernBERT's pooling is {self.pooling!r}; it must be mean or cls")
        if self.layer_types and (
            len(self.layer_types) != self.num_hidden_layers
            or not {FULL, LOCAL}.issuperset(self.layer_types)
        ):
            raise ValueError(
                f"ModernBERT's layer_types must be {FULL!r} or {LOCAL!r} for each of "
                f"{self.num_hidden_layers} layers"
            )

    @property
    def types_of_layers(self) -> tuple[str, ...]:
        """Which layers attend how."""
        return self.layer_types or tuple(
            LOCAL if number % 3 else FULL for number in range(self.num_hidden_layers)
        )


def rotate(x: jax.Array, heads: int, theta: float) -> jax.Array:
    """Turn pairs of channels of each head by an angle that grows with the position.

    Args:
        x: queries or keys, [B, L, width].
        heads: what the width is divided among; channel i is paired with the one half a head on.
        theta: the angle of pair i of h at position p is p / theta^(i / h).

    Returns:
        [B, L, width].
    """
    batch, length, width = x.shape
    half = width // heads // 2
    angles = np.arange(length)[:, None] / theta ** (np.arange(half) / half)
    cosine, sine = (jnp.asarray(f(angles), jnp.float32)[:, None] for f in (np.cos, np.sin))
    first, second = jnp.split(x.astype(jnp.float32).reshape(batch, length, heads, -1), 2, axis=-1)
    turned = jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], -1)
    return turned.reshape(x.shape).astype(x.dtype)


class Layer(nnx.Module):
    """Attention and a gated perceptron, each with a layer norm before it and a residual sum."""

    def __init__(
        self, config: ModernBertConfig, number: int, *, dtype: DTypeLike, rngs: nnx.Rngs
    ) -> None:
        """Build the layer; the first has no norm before its attention."""

        def linear(inputs: int, outputs: int, use_bias: bool) -> Linear:
            initialise = jax.nn.initializers.normal(config.initializer_range)
            like = {"kernel_init": initialise, "dtype": dtype, "rngs": rngs}
            return Linear(inputs, outputs, use_bias=use_bias, **like)

        width, inside = config.hidden_size, config.intermediate_size
        norm = {"epsilon": config.layer_norm_eps, "use_bias": config.norm_bias, "dtype": dtype}
        self.attention_norm = LayerNorm(width, **norm) if number else None
        self.query = linear(width, width, config.attention_bias)
        self.key = linear(width, width, config.attention_bias)
        self.value = linear(width, width, config.attention_bias)
        self.output = linear(width, width, config.attention_bias)
        self.mlp_norm = LayerNorm(width, **norm)
        self.fc1 = linear(width, 2 * inside, config.mlp_bias)
        self.fc2 = linear(inside, width, config.mlp_bias)
        full = config.types_of_layers[number] == FULL
        self.theta = config.full_rope_theta if full else config.local_rope_theta
        self.heads, self.activation = config.num_attention_heads, config.hidden_act
        self.attention_dropout = config.attention_probs_dropout_prob
        self.mlp_dropout = config.mlp_dropout

    def __call__(self, x: jax.Array, bias: jax.Array, dropout_key: jax.Array | None) -> jax.Array:
        """Map [B, L, width] to [B, L, width]; `bias` is added to the scores."""
        weights_key, attended_key, inside_key = split_key(dropout_key, 3)
        normed = x if self.attention_norm is None else self.attention_norm(x)
        query, key = (
            rotate(layer(normed), self.heads, self.theta) for layer in (self.query, self.key)
        )
        dropped = (self.attention_dropout, weights_key)
        mixed = self.output(attend(query, key, self.value(normed), self.heads, bias, *dropped))
        x = x + dropout(mixed, self.attention_dropout, attended_key)
        inside, gate = jnp.split(self.fc1(self.mlp_norm(x)), 2, axis=-1)
        inside = ACTIVATIONS[self.activation](inside) * gate
        return x + self.fc2(dropout(inside, self.mlp_dropout, inside_key))


KEYS = TRANSFORMERS_KEYS.extended(
    fields={
        **{
            name: name
            for name in (
                *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"),
                *("intermediate_size", "max_position_embeddings", "local_attention"),
                *("layer_types", "norm_bias", "attention_bias", "mlp_bias", "mlp_dropout"),
                "initializer_range",
            )
        },
        "hidden_activation": "hidden_act",
        "norm_eps": "layer_norm_eps",
        "embedding_dropout": "hidden_dropout_prob",
        "attention_dropout": "attention_probs_dropout_prob",
    },
    harmless=words(
        """rope_parameters global_rope_theta local_rope_theta global_attn_every_n_layers
        initializer_cutoff_factor cls_token_id decoder_bias classifier_pooling classifier_bias
        classifier_activation deterministic_flash_attn sparse_prediction sparse_pred_ignore_index
        reference_compile repad_logits_with_grad causal_mask head_bias"""
    ),
)
# The present form of the rotary angles' bases, by the type of the layer.
ROPE_KEYS = Keys(fields={FULL: FULL, LOCAL: LOCAL})
ROPE_TYPE_KEYS = Keys(fields={"rope_theta": "rope_theta"}, only={"rope_type": ("default",)})


def _fields(saved: Description, arrays: CheckpointArrays) -> dict[str, Any]:
    """Return the settings that config.json says, in its present and its first form."""
    if not saved:
        raise ValueError("the weights do not tell its shape; they need the config.json beside them")
    fields = KEYS.read(saved, "config.json")
    if fields.get("layer_types") is None:
        every = saved.get("global_attn_every_n_layers", 3)
        refuse_null(every, "global_attn_every_n_layers", "config.json")
        layers = range(fields.get("num_hidden_layers", 22))
        fields["layer_types"] = [LOCAL if number % every else FULL for number in layers]
    return fields | _thetas(saved)


def _thetas(saved: Description) -> dict[str, float]:
    """Return the bases of the rotary angles; a lone null in the first form is as in full."""
    thetas = {
        FULL: saved.get("global_rope_theta", 160000.0),
        LOCAL: saved.get("local_rope_theta", 10000.0),
    }
    refuse_null(thetas[FULL], "global_rope_theta", "config.json")
    source = "config.json's rope_parameters"
    rotary = ROPE_KEYS.read(saved.get("rope_parameters") or {}, source)
    for name, entries in rotary.items():
        of_type = ROPE_TYPE_KEYS.read(entries, f"{source}.{name}")
        thetas[name] = of_type.get("rope_theta", thetas[name])
    local = thetas[FULL] if thetas[LOCAL] is None else thetas[LOCAL]
    return {"full_rope_theta": thetas[FULL], "local_rope_theta": local}


def _split_query_key_value(arrays: CheckpointArrays) -> dict[str, np.ndarray]:
    separate = {}
    for name, array in arrays.items():
        if ".attn.Wqkv." in name and len(array) % 3 == 0:
            for part, rows in zip(("query", "key", "value"), np.split(array, 3), strict=True):
                separate[name.replace("Wqkv", part)] = rows
        else:
            separate[name] = array
    return separate


LAYOUT = CheckpointLayout(
    recognised_by="layers.0.attn.Wqkv.weight",
    names=(
        (r"^word_embeddings", "embeddings.tok_embeddings"),
        (r"^embeddings_norm", "embeddings.norm"),
        (r"(\d)\.(query|key|value)", r"\1.attn.\2"),
        (r"(\d)\.output", r"\1.attn.Wo"),
        (r"attention_norm", "attn_norm"),
        (r"fc1", "mlp.Wi"),
        (r"fc2", "mlp.Wo"),
    ),
    spellings=((r"^model\.", ""),),
    ignored=(*IGNORED, "head.*", "decoder.*"),
    prepare=_split_query_key_value,
    fields=_fields,
)


class ModernBert(nnx.Module):
    """Text tower: ModernBERT.

    Attributes:
        width: size of the features (`hidden_size`).
        ignores_padding: padding behind a text changes nothing about it.
    """

    ignores_padding = True
    config_class = ModernBertConfig
    checkpoint_layouts = (LAYOUT,)
    model_types = ("modernbert",)

    def __init__(
        self,
        config: ModernBertConfig | None = None,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ) -> None:
        """Build the tower with random weights.

        Args:
            config: shape and dropout; ModernBERT-base if None.
            rngs: source of the initial weights.
            dtype: type of the computation; parameters stay float32, and so does the softmax.
        """
        self.config = config = config or ModernBertConfig()
        self.width = config.hidden_size
        like = {"dtype": dtype, "rngs": rngs}
        norm = {"epsilon": config.layer_norm_eps, "use_bias": config.norm_bias, "dtype": dtype}
        initialise = jax.nn.initializers.normal(config.initializer_range)
        self.word_embeddings = Embed(
            config.vocab_size, self.width, embedding_init=initialise, **like
        )
        self.embeddings_norm = LayerNorm(self.width, **norm)
        self.layers = nnx.List(
            [Layer(config, number, **like) for number in range(config.num_hidden_layers)]
        )
        self.final_norm = LayerNorm(self.width, **norm)

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
            tokens: int32 [B, L], L at most `max_position_embeddings`.
            token_mask: bool [B, L], True where there is a token, False on padding.
            train: dropout on, if `dropout_key` is given.
            dropout_key: key of the dropout.

        Returns:
            float32 [B, width], by default the mean over the text's tokens; and [B, L, width].

        Raises:
            ValueError: the texts are too long.
        """
        length, longest = tokens.shape[1], self.config.max_position_embeddings
        if length > longest:
            raise ValueError(f"texts have {length} tokens; this ModernBERT takes at most {longest}")
        first_key, *keys = split_key(dropout_key if train else None, 1 + len(self.layers))
        x = self.embeddings_norm(self.word_embeddings(jnp.asarray(tokens)))
        x = dropout(x, self.config.hidden_dropout_prob, first_key)
        biases = self._attention_biases(jnp.asarray(token_mask, bool))
        run = nnx.remat(Layer.__call__) if self.config.remat else Layer.__call__
        for layer, kind, key in zip(self.layers, self.config.types_of_layers, keys, strict=True):
            x = run(layer, x, biases[kind], key)
        x = self.final_norm(x)
        return TowerOutput(pool_tokens(x, token_mask, self.config.pooling), x)

    def _attention_biases(self, token_mask: jax.Array) -> Mapping[str, jax.Array]:
        """Return what is added to the scores, [B, 1, 1 or L, L], by the type of the layer."""
        positions = np.arange(token_mask.shape[1])
        near = np.abs(positions[:, None] - positions) <= self.config.local_attention // 2
        seen = token_mask[:, None, None, :]
        return {FULL: mask_bias(seen), LOCAL: mask_bias(seen & near)}


PRESETS = {"modernbert": Preset(ModernBert)}
