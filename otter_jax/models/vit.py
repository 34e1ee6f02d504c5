"""Vision Transformer, an image tower, as timm, Hugging Face, OpenAI and DeCLIP compute it.

Sources: Dosovitskiy et al., "An Image is Worth 16x16 Words" (2020); Radford et al., "Learning
Transferable Visual Models From Natural Language Supervision" (2021) for CLIP's form: one more layer
norm before the blocks, no bias on the patches, QuickGELU; Zhai et al., "Sigmoid Loss for Language
Image Pre-Training" (2023) for SigLIP's: no class token, attention pooling; Oquab et al., "DINOv2"
(2023) and Darcet et al., "Vision Transformers Need Registers" (2023): layer scale, SwiGLU, tokens
without a patch; Touvron et al., "DeiT III" (2022): positions of the patches alone.

The features are the class token's state, the mean over the patches, or what a learned query makes
of them. Hugging Face's ViT may have a further layer with tanh behind the class token (`pooler`),
which classifiers do without; it is not applied here.
"""

from dataclasses import dataclass, replace
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from otter_jax.models import vit_layouts
from otter_jax.models.layers import (
    Preset,
    TowerOutput,
    add_parameter,
    compiling_eager_calls,
    dropout,
    split_key,
)
from otter_jax.models.transformer import (
    ACTIVATIONS,
    HEAD_WIDTH,
    LayerFactory,
    PatchEmbedding,
    TransformerConfig,
    attend,
    make_blocks,
    run_blocks,
)
from otter_jax.models.vit_layouts import CLIP_FORM


@dataclass(frozen=True)
class ViTConfig(TransformerConfig):
    """Shape and training behaviour of a ViT; the defaults are ViT-B/32 at 224 pixels.

    Attributes:
        image_size: height and width of the images in pixels.
        patch_size: height and width of a patch in pixels.
        pre_norm: a layer norm between the embeddings and the blocks (CLIP).
        patch_bias: a bias on the patches' embedding.
        qkv_bias: a bias on queries, keys and values.
        class_token: a token before the patches that stands for the whole image.
        register_tokens: how many further tokens stand between it and the patches.
        prefix_positions: how many of these tokens, from the first on, have position embeddings as
            the patches have.
        pooling: "cls", the class token; "mean" over the patches; "map", attention of a learned
            query to the patches, with a perceptron behind it (SigLIP).
        norm_after_pooling: the last layer norm is applied to the pooled features, not to all
            tokens.
        mean: per channel, what the weights expect to be subtracted from pixels in 0..1.
        std: per channel, what the result is divided by.
        resize: how the weights expect images to be brought to their size, a
            `preprocessing.Resize`; None for this package's own way.

    The other fields are those of `transformer.TransformerConfig`.

    Raises:
        ValueError: the image has no patch, the pooling is unknown or needs a class token that is
            not there, more tokens have positions than there are, or see `TransformerConfig`.
    """

    image_size: int = 224
    patch_size: int = 32
    pre_norm: bool = False
    patch_bias: bool = True
    qkv_bias: bool = True
    class_token: bool = True
    register_tokens: int = 0
    prefix_positions: int = 1
    pooling: Literal["cls", "mean", "map"] = "cls"
    norm_after_pooling: bool = False
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    resize: tuple[str, float, str] | None = None

    def __post_init__(self) -> None:
        """Refuse what no ViT has."""
        super().__post_init__()
        if self.patch_size < 1 or self.grid_size < 1:
            raise ValueError(
                f"ViTConfig's image_size {self.image_size} holds no patch of {self.patch_size} "
                "pixels"
            )
        if not 0 <= self.prefix_positions <= self.prefix_tokens:
            raise ValueError(
                f"ViTConfig's prefix_positions is {self.prefix_positions}; there are "
                f"{self.prefix_tokens} tokens before the patches"
            )
        if self.pooling not in ("cls", "mean", "map") or (
            self.pooling == "cls" and not self.class_token
        ):
            raise ValueError(
                f"ViTConfig's pooling is {self.pooling!r}; it must be 'mean', 'map' or, with a "
                "class token, 'cls'"
            )

    @property
    def prefix_tokens(self) -> int:
        """Tokens before the patches."""
        return self.class_token + self.register_tokens

    @property
    def grid_size(self) -> int:
        """Patches along each side of an image."""
        return self.image_size // self.patch_size


class ViT(nnx.Module):
    """Image tower: a Vision Transformer.

    Attributes:
        width: channels of the features (`hidden_size`).
        mean, std: normalisation that the weights expect, per channel, for pixels in 0..1.
        checkpoint_layouts: the kinds of checkpoint it reads. Those of a tower that is built
            resample position embeddings made for images of another size.
    """

    config_class = ViTConfig
    checkpoint_layouts = vit_layouts.LAYOUTS
    model_types = tuple(vit_layouts.MODEL_TYPES)

    def __init__(
        self,
        config: ViTConfig | None = None,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ) -> None:
        """Build the tower with random weights.

        Args:
            config: shape and behaviour; ViT-B/32 if None.
            rngs: source of the initial weights.
            dtype: type of the computation; parameters stay float32, and so does the softmax.
        """
        config = config or ViTConfig()
        make = LayerFactory(config, dtype, rngs)
        self.config = config
        self.width, self.mean, self.std = config.hidden_size, config.mean, config.std
        self.checkpoint_layouts = tuple(
            replace(layout, prepare=replace(layout.prepare, grid_size=config.grid_size))
            for layout in type(self).checkpoint_layouts
        )
        self.patch_embedding = PatchEmbedding(
            config.patch_size, self.width, use_bias=config.patch_bias, dtype=dtype, rngs=rngs
        )
        self.class_token = make.table(self.width, deviation=0.02) if config.class_token else None
        positions = config.prefix_positions + config.grid_size**2
        self.position_embeddings = make.table(positions, self.width, deviation=0.02)
        self.register_tokens = (
            make.table(config.register_tokens, self.width, deviation=0.02)
            if config.register_tokens
            else None
        )
        self.embeddings_norm = make.norm() if config.pre_norm else None
        self.blocks = make_blocks(config, make, qkv_bias=config.qkv_bias)
        late = config.norm_after_pooling
        self.final_norm, self.pooled_norm = (None, make.norm()) if late else (make.norm(), None)
        self.attention_pool = AttentionPool(make) if config.pooling == "map" else None

    @compiling_eager_calls
    def __call__(
        self, images: jax.Array, *, train: bool = False, dropout_key: jax.Array | None = None
    ) -> TowerOutput:
        """Return the pooled features of a batch of images, and the states of all tokens.

        Args:
            images: float [B, image_size, image_size, 3], RGB, normalised with `mean` and `std`.
            train: dropout and stochastic depth on, if `dropout_key` is given.
            dropout_key: key of both.

        Returns:
            float32 [B, width]; and [B, tokens, width], the class token first, if there is one, then
            registers, then the patches row by row, after the last layer norm or, in CLIP's form
            (`pre_norm`) and where it comes after pooling, before it.

        Raises:
            ValueError: the images are not of the size that the tower was built for.
        """
        size = self.config.image_size
        if images.shape[1:3] != (size, size):
            height, width = images.shape[1:3]
            raise ValueError(
                f"images are {height} x {width} pixels; this ViT takes {size} x {size} (it can be "
                "made or loaded for others with image_size=...)"
            )
        first_key, blocks_key = split_key(dropout_key if train else None, 2)
        x = self._embed(images)
        x = dropout(x, self.config.hidden_dropout_prob, first_key)
        x = run_blocks(self.config, self.blocks, x, None, blocks_key)
        return self._pool(x)

    def _embed(self, images: jax.Array) -> jax.Array:
        patches = self.patch_embedding(images)
        positions = self.position_embeddings[...]
        tables = [
            table[...].reshape(-1, self.width)
            for table in (self.class_token, self.register_tokens)
            if table is not None
        ]
        batch = jnp.zeros((patches.shape[0], 1, self.width), patches.dtype)
        tokens = [add_parameter(batch.repeat(len(rows), axis=1), rows) for rows in tables]
        if without := self.config.prefix_tokens - self.config.prefix_positions:
            # The positions of those that have one, none for the rest, and of the patches.
            prefix, of_patches = jnp.split(positions, [self.config.prefix_positions])
            none = jnp.zeros((without, self.width), positions.dtype)
            positions = jnp.concatenate([prefix, none, of_patches])
        x = add_parameter(jnp.concatenate([*tokens, patches], axis=1), positions)
        return x if self.embeddings_norm is None else self.embeddings_norm(x)

    def _pool(self, x: jax.Array) -> TowerOutput:
        config = self.config
        # CLIP's norm is the class token's alone: nothing else of the last block is looked at.
        last_norm = self.pooled_norm or (
            self.final_norm if config.pre_norm and config.pooling == "cls" else None
        )
        if last_norm is None:
            x = self.final_norm(x)
        if config.pooling == "cls":
            pooled = x[:, 0]
        elif config.pooling == "mean":
            patches = x[:, config.prefix_tokens :].astype(jnp.float32)
            pooled = jnp.mean(patches, axis=1).astype(x.dtype)
        else:
            pooled = self.attention_pool(x[:, config.prefix_tokens :])
        if last_norm is not None:
            pooled = last_norm(pooled)
        return TowerOutput(pooled.astype(jnp.float32), x)


class AttentionPool(nnx.Module):
    """Multi-head attention of one learned query to all patches, then a perceptron beside it.

    Called "MAP head" in big_vision and SigLIP; Lee et al., "Set Transformer" (2019).
    """

    def __init__(self, make: LayerFactory) -> None:
        """Build the pool with random weights."""
        config = make.config
        width, deviation = config.hidden_size, config.hidden_size**-0.5
        self.heads, self.activation = config.num_attention_heads, config.hidden_act
        self.probe = make.table(width, deviation=deviation)
        self.query = make.linear(width, width, deviation)
        self.key = make.linear(width, width, deviation)
        self.value = make.linear(width, width, deviation)
        self.output = make.linear(width, width, deviation)
        self.norm = make.norm()
        self.fc1 = make.linear(width, config.intermediate_size, (2 * width) ** -0.5)
        self.fc2 = make.linear(config.intermediate_size, width, deviation)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map patches [B, L, width] to [B, width]."""
        probe = self.probe[...].astype(x.dtype)
        query = jnp.broadcast_to(self.query(probe), (x.shape[0], 1, x.shape[-1]))
        pooled = self.output(attend(query, self.key(x), self.value(x), self.heads))[:, 0]
        return pooled + self.fc2(ACTIVATIONS[self.activation](self.fc1(self.norm(pooled))))


SIZES = {
    name: {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": width // HEAD_WIDTH,
        "intermediate_size": 4 * width,
    }
    for name, width, depth in (("s", 384, 12), ("b", 768, 12), ("l", 1024, 24))
}
PRESETS = {
    f"vit_{size}{patch_size}": Preset(ViT, {**fields, "patch_size": patch_size})
    for size, fields in SIZES.items()
    for patch_size in (32, 16, 14)
} | {
    f"clip_vit_{size}{patch_size}": Preset(
        ViT, {**CLIP_FORM, **SIZES[size], "patch_size": patch_size}
    )
    for size, patch_size in (("b", 32), ("b", 16), ("l", 14))
}
