"""Self-attention for every tower, and the pre-norm blocks of ViT and CLIP's text tower.

Sources: Vaswani et al., "Attention Is All You Need" (2017); Dosovitskiy et al., "An Image is Worth
16x16 Words" (2020); Radford et al., "Learning Transferable Visual Models From Natural Language
Supervision" (2021), also for the initial weights, whose scale falls with width and depth.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from otter_jax.models import scanning
from otter_jax.models.layers import (
    LayerNorm,
    Linear,
    add_parameter,
    drop_examples,
    drop_where,
    dropout,
    dropout_mask,
    gelu,
    product,
    split_key,
)

ACTIVATIONS = {
    "gelu": gelu,
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    # OpenAI's stand-in for GELU, which its weights were trained with.
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
}

LAYER_SCALE = (
    1e-5  # Where it starts; Touvron et al., "Going deeper with Image Transformers" (2021).
)
LANES = 128  # Of a TPU's registers: arrays are padded to a multiple of them along their last axis.
HEAD_WIDTH = 64  # Of the original ViTs and CLIPs; some of the larger ones have wider heads.

# Names of a block's weights, as `weights.CheckpointLayout.names`.
HUGGING_FACE_CLIP_BLOCKS = (
    (r"^blocks\.", "encoder.layers."),
    (r"attention\.(q|k|v)\w+", r"self_attn.\1_proj"),
    (r"attention\.output", "self_attn.out_proj"),
    (r"norm([12])", r"layer_norm\1"),
    (r"fc([12])", r"mlp.fc\1"),
)
OPENAI_BLOCKS = (
    (r"^blocks\.", "transformer.resblocks."),
    (r"attention\.output", "attn.out_proj"),
    (r"attention\.", "attn."),
    (r"norm([12])", r"ln_\1"),
    (r"scale([12])", r"ls_\1.gamma"),
    (r"fc1", "mlp.c_fc"),
    (r"fc2", "mlp.c_proj"),
)


@dataclass(frozen=True)
class TransformerConfig:
    """What both towers have in common, with the names of Hugging Face's config.json.

    Attributes:
        hidden_size: channels of every token.
        num_hidden_layers: number of blocks.
        num_attention_heads: heads that the channels are divided among.
        intermediate_size: hidden channels of the perceptron in each block.
        hidden_act: "gelu" (exact), "gelu_new" or "gelu_pytorch_tanh" (by tanh) or "quick_gelu".
        layer_norm_eps: added to the variance.
        hidden_dropout_prob: dropout on the embeddings and at the end of each residual branch.
        attention_probs_dropout_prob: dropout on the attention weights.
        stochastic_depth_rate: probability that the last block's residual branches are dropped in
            training, a whole example at a time; earlier blocks proportionally less.
        layer_scale: a learned factor for each channel at the end of each residual branch.
        gated: the perceptron's hidden channels are multiplied by as many others, to which the
            activation is SiLU instead of `hidden_act` (SwiGLU).
        remat: compute the blocks' activations again in the backward pass instead of keeping them.
        scan_layers: run blocks that are equal as one loop, see `scanning`.
        pack_heads: attend with several heads at once, see `attend_packed`.

    Raises:
        ValueError: an activation or a number of heads that there is not.
    """

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-6
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    stochastic_depth_rate: float = 0.0
    layer_scale: bool = False
    gated: bool = False
    remat: bool = False
    scan_layers: bool = False
    pack_heads: bool = False

    def __post_init__(self) -> None:
        """Refuse what the blocks cannot compute."""
        name = type(self).__name__
        if self.hidden_act not in ACTIVATIONS:
            raise ValueError(
                f"{name}'s hidden_act is {self.hidden_act!r}; it must be one of {list(ACTIVATIONS)}"
            )
        if self.num_attention_heads < 1 or self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"{name}'s hidden_size {self.hidden_size} does not divide into "
                f"{self.num_attention_heads} attention heads"
            )


class LayerFactory:
    """Makes the layers of one transformer, which share their type and epsilon."""

    def __init__(self, config: TransformerConfig, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        """`dtype` is the type of the computation; parameters are float32."""
        self.config, self.dtype, self.rngs = config, dtype, rngs

    def linear(
        self, inputs: int, outputs: int, deviation: float, *, use_bias: bool = True
    ) -> Linear:
        """Return a linear layer, its kernel drawn with the standard deviation given."""
        initialise = jax.nn.initializers.normal(deviation)
        return Linear(
            inputs,
            outputs,
            use_bias=use_bias,
            kernel_init=initialise,
            dtype=self.dtype,
            rngs=self.rngs,
        )

    def norm(self, width: int | None = None) -> LayerNorm:
        """Return a layer norm over the channels of a token, `hidden_size` unless said otherwise."""
        epsilon = self.config.layer_norm_eps
        return LayerNorm(width or self.config.hidden_size, epsilon=epsilon, dtype=self.dtype)

    def table(self, *shape: int, deviation: float) -> nnx.Param:
        """Return a normally distributed parameter, float32."""
        initialise = jax.nn.initializers.normal(deviation)
        return nnx.Param(initialise(self.rngs.params(), shape, jnp.float32))


class PatchEmbedding(nnx.Module):
    """A convolution whose stride is its size: one linear map of every patch of an image."""

    def __init__(
        self, patch_size: int, width: int, *, use_bias: bool, dtype: DTypeLike, rngs: nnx.Rngs
    ) -> None:
        """Draw the kernel [patch, patch, 3, width] from LeCun's normal distribution."""
        initialise = jax.nn.initializers.lecun_normal(in_axis=(0, 1, 2), out_axis=3)
        shape = (patch_size, patch_size, 3, width)
        self.kernel = nnx.Param(initialise(rngs.params(), shape, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(width)) if use_bias else None
        self.patch_size = patch_size
        self.dtype = dtype

    def __call__(self, images: jax.Array) -> jax.Array:
        """Map [B, H, W, 3] to [B, patches, width] row by row; a remainder of pixels is cut off."""
        size = self.patch_size
        batch, height, width, channels = images.shape
        rows, columns = height // size, width // size
        patches = images[:, : rows * size, : columns * size].astype(self.dtype)
        patches = patches.reshape(batch, rows, size, columns, size, channels)
        # One matrix, for the reason that `Linear` has.
        patches = patches.transpose(0, 1, 3, 2, 4, 5).reshape(batch * rows * columns, -1)
        kernel = self.kernel[...]
        embedded = product(patches, kernel.reshape(-1, kernel.shape[-1]))
        embedded = embedded.reshape(batch, rows * columns, -1)
        return embedded if self.bias is None else add_parameter(embedded, self.bias[...])


class SelfAttention(nnx.Module):
    """Multi-head self-attention, its softmax in float32."""

    def __init__(
        self,
        make: LayerFactory,
        *,
        deviation: float,
        output_deviation: float,
        qkv_bias: bool = True,
    ) -> None:
        """Build the four projections, drawn with the standard deviations given."""
        config, width = make.config, make.config.hidden_size
        self.query = make.linear(width, width, deviation, use_bias=qkv_bias)
        self.key = make.linear(width, width, deviation, use_bias=qkv_bias)
        self.value = make.linear(width, width, deviation, use_bias=qkv_bias)
        self.output = make.linear(width, width, output_deviation)
        self.heads = config.num_attention_heads
        self.dropout_rate = config.attention_probs_dropout_prob
        self.attend = attend_packed if config.pack_heads else attend

    def __call__(
        self, x: jax.Array, bias: jax.Array | None, dropout_key: jax.Array | None
    ) -> jax.Array:
        """Map [B, L, width] to [B, L, width].

        `bias` is added to the scores, float32 [B or 1, heads or 1, L or 1, L], tokens (third axis)
        by what they attend to (fourth axis); None adds nothing.
        """
        query, key, value = self.query(x), self.key(x), self.value(x)
        mixed = self.attend(query, key, value, self.heads, bias, self.dropout_rate, dropout_key)
        return self.output(mixed)


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    heads: int,
    bias: jax.Array | None = None,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
) -> jax.Array:
    """Return the values' means by the softmax of the scaled scores, head by head.

    Args:
        query: [B, L, width].
        key: [B, K, width].
        value: [B, K, width].
        heads: what the width is divided among.
        bias: as in `SelfAttention`.
        dropout_rate: of the softmax's weights.
        dropout_key: as in `layers.dropout`.

    Returns:
        [B, L, width].
    """

    def by_head(x: jax.Array) -> jax.Array:
        # [B, heads, L, width / heads]: the order in which both products are fastest.
        return x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)

    shape, dtype = query.shape, query.dtype
    query, key, value = by_head(query), by_head(key), by_head(value)
    scores = jnp.einsum("bhqd,bhkd->bhqk", query, key, preferred_element_type=jnp.float32)
    scores = scores * query.shape[-1] ** -0.5
    if bias is not None:
        scores = scores + bias
    weights = jax.nn.softmax(scores, axis=-1).astype(dtype)
    weights = dropout(weights, dropout_rate, dropout_key)
    mixed = jnp.einsum("bhqk,bhkd->bhqd", weights, value)
    return mixed.transpose(0, 2, 1, 3).reshape(shape)


def attend_packed(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    heads: int,
    bias: jax.Array | None = None,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
) -> jax.Array:
    """Return what `attend` does, with as many heads at once as fill the lanes of a TPU.

    A head of 64 channels is padded to 128 in every array, and is moved to where it stands alone and
    back. Here a group of heads, side by side as the projection gives them, is one: a query is
    compared with the keys of the whole group, but has zeros for the channels of the other heads,
    which a matrix unit multiplies in the time that padding takes; of the values' mean it takes its
    own head's channels. Weights are computed again for the gradient.

    Heads that do not fill the lanes are attended to one by one.
    """
    packed, unused = divmod(LANES, query.shape[-1] // heads)
    if packed < 2 or unused or heads % packed:
        return attend(query, key, value, heads, bias, dropout_rate, dropout_key)
    keep = dropout_mask(
        dropout_key, dropout_rate, (len(query), heads, query.shape[1], key.shape[1])
    )

    @jax.checkpoint
    def attend_in_groups(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        return _attend_in_groups(query, key, value, heads, packed, bias, dropout_rate, keep)

    return attend_in_groups(query, key, value)


def _attend_in_groups(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    heads: int,
    packed: int,
    bias: jax.Array | None,
    dropout_rate: float,
    keep: jax.Array | None,
) -> jax.Array:
    """Do so with groups of `packed` heads, and a mask of weights, bool [B, heads, L, K]."""
    (batch, queries, width), keys = query.shape, key.shape[1]
    groups, channels = heads // packed, width // heads * packed
    # Whose each channel of a group is, bool [packed, 1, channels].
    own = (jnp.arange(channels) * packed // channels == jnp.arange(packed)[:, None])[:, None]

    def by_group(x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:2], groups, channels).transpose(0, 2, 1, 3)

    def like_scores(x: jax.Array) -> jax.Array:
        """Bring what is [B, heads, L, K], or 1 in place of one of them, to the scores' shape."""
        x = jnp.broadcast_to(x, (len(x), heads, queries, keys))
        return x.reshape(len(x), groups, packed * queries, keys).swapaxes(2, 3)

    query, key, value = by_group(query), by_group(key), by_group(value)
    query = jnp.where(own, query[:, :, None], 0).reshape(batch, groups, -1, channels)
    # [B, groups, K, packed * L]: a group's queries lie along the lanes.
    scores = jnp.einsum("bgqd,bgkd->bgkq", query, key, preferred_element_type=jnp.float32)
    scores = scores * (width // heads) ** -0.5
    if bias is not None:
        scores = scores + like_scores(bias)
    weights = jax.nn.softmax(scores, axis=2).astype(query.dtype)
    weights = drop_where(weights, dropout_rate, None if keep is None else like_scores(keep))
    mixed = jnp.einsum("bgkq,bgkd->bgqd", weights, value)
    mixed = mixed.reshape(batch, groups, packed, queries, channels)
    mixed = jnp.sum(jnp.where(own, mixed, 0), axis=2)
    return mixed.transpose(0, 2, 1, 3).reshape(batch, queries, width)


def mask_bias(mask: jax.Array) -> jax.Array:
    """Return what keeps tokens from attending where a bool mask, of any shape, is False."""
    # Finite, so that a token that may attend to none gives a mean instead of NaN.
    return jnp.where(mask, 0.0, jnp.finfo(jnp.float32).min)


class PreNormBlock(nnx.Module):
    """Attention and a two-layer perceptron, each with a layer norm before it and a residual sum."""

    def __init__(
        self, config: TransformerConfig, make: LayerFactory, drop_rate: float, *, qkv_bias: bool
    ) -> None:
        """Build the block; `drop_rate` is its own stochastic-depth rate."""
        width = config.hidden_size
        self.norm1 = make.norm()
        self.attention = SelfAttention(
            make,
            deviation=width**-0.5,
            output_deviation=residual_deviation(config),
            qkv_bias=qkv_bias,
        )
        self.norm2 = make.norm()
        hidden = config.intermediate_size
        self.fc1 = make.linear(width, hidden * (1 + config.gated), (2 * width) ** -0.5)
        self.fc2 = make.linear(hidden, width, residual_deviation(config))
        scale = config.layer_scale
        self.scale1 = nnx.Param(jnp.full(width, LAYER_SCALE)) if scale else None
        self.scale2 = nnx.Param(jnp.full(width, LAYER_SCALE)) if scale else None
        self.activation, self.gated = config.hidden_act, config.gated
        self.dropout_rate = config.hidden_dropout_prob
        self.drop_rate = drop_rate

    def __call__(
        self, x: jax.Array, bias: jax.Array | None, dropout_key: jax.Array | None
    ) -> jax.Array:
        """Map [B, L, width] to [B, L, width]; `bias` as in `SelfAttention`."""
        weights_key, *branch_keys = split_key(dropout_key, 5)
        attended = _scaled(self.attention(self.norm1(x), bias, weights_key), self.scale1)
        x = x + self._drop(attended, branch_keys[:2])
        transformed = _scaled(self.fc2(self._activate(self.fc1(self.norm2(x)))), self.scale2)
        return x + self._drop(transformed, branch_keys[2:])

    def _activate(self, x: jax.Array) -> jax.Array:
        if not self.gated:
            return ACTIVATIONS[self.activation](x)
        gate, value = jnp.split(x, 2, axis=-1)
        return jax.nn.silu(gate) * value

    def _drop(self, branch: jax.Array, keys: Sequence[jax.Array | None]) -> jax.Array:
        return drop_examples(dropout(branch, self.dropout_rate, keys[0]), self.drop_rate, keys[1])


def _scaled(branch: jax.Array, scale: nnx.Param | None) -> jax.Array:
    return branch if scale is None else branch * scale[...].astype(branch.dtype)


def residual_deviation(config: TransformerConfig) -> float:
    """Return the initial deviation of a residual branch's last layer; 2 branches a block add up."""
    return config.hidden_size**-0.5 * (2 * config.num_hidden_layers) ** -0.5


def make_blocks(
    config: TransformerConfig, make: LayerFactory, *, qkv_bias: bool = True
) -> nnx.List:
    """Return the blocks of a transformer, with stochastic depth growing from 0 to its rate."""
    last = max(config.num_hidden_layers - 1, 1)
    rates = [
        config.stochastic_depth_rate * index / last for index in range(config.num_hidden_layers)
    ]
    return nnx.List([PreNormBlock(config, make, rate, qkv_bias=qkv_bias) for rate in rates])


def run_blocks(
    config: TransformerConfig,
    blocks: Sequence[PreNormBlock],
    x: jax.Array,
    bias: jax.Array | None,
    dropout_key: jax.Array | None,
) -> jax.Array:
    """Pass [B, L, width] through all blocks; `bias` as in `SelfAttention`."""
    return scanning.run_in_turn(
        lambda block, x, key: block(x, bias, key),
        blocks,
        x,
        split_key(dropout_key, len(blocks)),
        remat=config.remat,
        scan=config.scan_layers,
    )


FUSED = {
    r"(.*\battn\.)(?:qkv\.|in_proj_)(weight|bias)": ("query", "key", "value"),  # timm, PyTorch.
    r"(.*\bhead\.attention\.)in_proj_(weight|bias)": ("query", "key", "value"),  # SigLIP's pool.
    r"(.*\battn_pool\.)kv\.(weight|bias)": ("key", "value"),  # timm's form of it.
}


def split_query_key_value(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Take matrices apart that hold queries, keys and values one below the other."""
    separate = {}
    for name, array in arrays.items():
        found = ((re.fullmatch(pattern, name), parts) for pattern, parts in FUSED.items())
        fused, parts = next(((match, p) for match, p in found if match), (None, ()))
        if fused and len(array) % len(parts) == 0:
            for part, rows in zip(parts, np.split(array, len(parts)), strict=True):
                separate[f"{fused[1]}{part}.{fused[2]}"] = rows
        else:
            separate[name] = array
    return separate


def checkpoint_name(path: str, names: Sequence[tuple[str, str]]) -> str:
    """Return what a layout's `names` make of a path in the tower."""
    for pattern, replacement in names:
        path = re.sub(pattern, replacement, path)
    return path


def array_named(arrays: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    """Return the array of a checkpoint that tells something of the tower's shape.

    Raises:
        ValueError: there is none of this name.
    """
    if name not in arrays:
        raise ValueError(f"the checkpoint has no {name!r}, which tells the tower's shape")
    return arrays[name]


def block_fields(
    arrays: Mapping[str, np.ndarray], names: Sequence[tuple[str, str]]
) -> dict[str, int]:
    """Return the fields of `TransformerConfig` that the arrays' shapes tell.

    Args:
        arrays: a checkpoint's arrays by name, queries, keys and values apart.
        names: the checkpoint's `CheckpointLayout.names`.

    Raises:
        ValueError: there is no first block.
    """
    first_layer = array_named(arrays, checkpoint_name("blocks.0.fc1.weight", names))
    last_layer = arrays.get(checkpoint_name("blocks.0.fc2.weight", names), first_layer.T)
    prefix = re.escape(checkpoint_name("blocks.", names))
    numbers = {match[1] for name in arrays if (match := re.match(rf"{prefix}(\d+)\.", name))}
    width, intermediate_size = last_layer.shape
    return {
        "hidden_size": width,
        "num_hidden_layers": len(numbers),
        "intermediate_size": intermediate_size,
        "layer_scale": checkpoint_name("blocks.0.scale1", names) in arrays,
        "gated": len(first_layer) == 2 * intermediate_size,
    }
