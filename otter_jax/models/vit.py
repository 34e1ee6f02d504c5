"""Vision Transformer, an image tower, as timm, Hugging Face, OpenAI and DeCLIP compute it.

Sources: Dosovitskiy et al., "An Image is Worth 16x16 Words" (2020); Radford et al., "Learning
Transferable Visual Models From Natural Language Supervision" (2021) for CLIP's form: one more layer
norm before the blocks, no bias on the patches, QuickGELU.

A class token stands before the patches; its state after the last layer norm is what the tower
returns as features. Hugging Face's ViT may have a further layer with tanh for it (`pooler`), which
classifiers do without; it is not applied here.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from otter_jax.models.layers import Preset, TowerOutput, add_parameter, dropout, split_key
from otter_jax.models.transformer import (
    HEAD_WIDTH,
    HUGGING_FACE_CLIP_BLOCKS,
    OPENAI_BLOCKS,
    LayerFactory,
    PatchEmbedding,
    TransformerConfig,
    array_named,
    block_fields,
    checkpoint_name,
    clip_fields,
    make_blocks,
    run_blocks,
    split_query_key_value,
)
from otter_jax.models.weights import CheckpointArrays, CheckpointLayout, Substitution

Fields = Mapping[str, Any]
Names = tuple[Substitution, ...]

CLIP_STATISTICS = {
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
}
CLIP_FORM = {
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "pre_norm": True,
    "patch_bias": False,
    **CLIP_STATISTICS,
}


@dataclass(frozen=True)
class ViTConfig(TransformerConfig):
    """Shape and training behaviour of a ViT; the defaults are ViT-B/32 at 224 pixels.

    Attributes:
        image_size: height and width of the images in pixels.
        patch_size: height and width of a patch in pixels.
        pre_norm: a layer norm between the embeddings and the blocks (CLIP).
        patch_bias: a bias on the patches' embedding.
        qkv_bias: a bias on queries, keys and values.
        mean: per channel, what the weights expect to be subtracted from pixels in 0..1.
        std: per channel, what the result is divided by.

    The other fields are those of `transformer.TransformerConfig`.

    Raises:
        ValueError: the image has no patch, or see `TransformerConfig`.
    """

    image_size: int = 224
    patch_size: int = 32
    pre_norm: bool = False
    patch_bias: bool = True
    qkv_bias: bool = True
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        """Refuse what no ViT has."""
        super().__post_init__()
        if self.patch_size < 1 or self.grid_size < 1:
            raise ValueError(
                f"ViTConfig's image_size {self.image_size} holds no patch of {self.patch_size} "
                "pixels"
            )

    @property
    def grid_size(self) -> int:
        """Patches along each side of an image."""
        return self.image_size // self.patch_size


def resample_positions(positions: np.ndarray, grid_size: int) -> np.ndarray:
    """Fit position embeddings to another number of patches, as timm and open_clip do.

    Args:
        positions: [1 + old * old, width], the class token's first.
        grid_size: patches along each side of the new images.

    Returns:
        [1 + grid_size * grid_size, width], the class token's as it was, the others resampled by
        bicubic interpolation with antialiasing (`torch.nn.functional.interpolate`).

    Raises:
        ValueError: the old ones are not those of a class token and a square grid.
    """
    old_size = _grid_of(positions)
    if old_size == grid_size:
        return positions
    width = positions.shape[1]
    grid = jnp.asarray(positions[1:], jnp.float32).reshape(old_size, old_size, width)
    resampled = jax.image.resize(grid, (grid_size, grid_size, width), "cubic", antialias=True)
    return np.concatenate([positions[:1], np.asarray(resampled).reshape(-1, width)])


def _grid_of(positions: np.ndarray) -> int:
    count = positions.shape[-2]
    size = math.isqrt(count - 1) if count > 1 else 0
    if size < 1 or size * size != count - 1:
        raise ValueError(
            f"the checkpoint has {count} position embeddings; this ViT needs one for the class "
            "token and those of a square grid of patches"
        )
    return size


def _shape_fields(arrays: CheckpointArrays, names: Names) -> dict[str, Any]:
    """Return the fields of `ViTConfig` that the arrays' shapes tell."""
    patches = array_named(arrays, checkpoint_name("patch_embedding.weight", names))
    grid_size = _grid_of(array_named(arrays, checkpoint_name("position_embeddings", names)))
    return {
        **block_fields(arrays, names),
        "image_size": grid_size * patches.shape[-1],
        "patch_size": patches.shape[-1],
        "pre_norm": checkpoint_name("embeddings_norm.weight", names) in arrays,
        "patch_bias": checkpoint_name("patch_embedding.bias", names) in arrays,
        "qkv_bias": checkpoint_name("blocks.0.attention.key.bias", names) in arrays,
    }


def _timm_fields(saved: Fields, arrays: CheckpointArrays) -> dict[str, Any]:
    fields = _shape_fields(arrays, TIMM_NAMES)
    if fields["pre_norm"]:
        fields |= {"layer_norm_eps": 1e-5, **CLIP_STATISTICS}
    if "quickgelu" in saved.get("architecture", ""):
        fields |= {"hidden_act": "quick_gelu"}
    return fields


def _hugging_face_fields(saved: Fields, arrays: CheckpointArrays) -> dict[str, Any]:
    shape = _shape_fields(arrays, HUGGING_FACE_NAMES)
    return {"layer_norm_eps": 1e-12} | shape | _square(saved, shape)


def _hugging_face_clip_fields(saved: Fields, arrays: CheckpointArrays) -> dict[str, Any]:
    shape = _shape_fields(arrays, HUGGING_FACE_CLIP_NAMES)
    return CLIP_FORM | shape | _square(clip_fields(saved), shape)


def _square(saved: Fields, shape: Fields) -> dict[str, Any]:
    """Return the fields of config.json, its sizes as one number, as far as the weights agree."""
    fields = dict(saved)
    for name in ("image_size", "patch_size"):
        sides = np.ravel(fields.get(name) or shape[name]).tolist()
        if len(set(sides)) != 1:
            raise ValueError(f"config.json's {name} is {fields[name]}; this ViT needs a square")
        fields[name] = sides[0]
    if fields["image_size"] // fields["patch_size"] != shape["image_size"] // shape["patch_size"]:
        raise ValueError(
            f"config.json's image_size is {fields['image_size']}; the position embeddings are "
            f"those of {shape['image_size']} pixels"
        )
    return fields


def _openai_fields(saved: Fields, arrays: CheckpointArrays) -> dict[str, Any]:
    return CLIP_FORM | _shape_fields(arrays, OPENAI_NAMES)


@dataclass(frozen=True)
class _Prepare:
    """Brings respelled arrays into the tower's form, at the grid of the tower that asks."""

    names: Names
    grid_size: int | None = None

    def __call__(self, arrays: CheckpointArrays) -> dict[str, np.ndarray]:
        arrays = split_query_key_value(arrays)
        class_token = checkpoint_name("class_token", self.names)
        positions = checkpoint_name("position_embeddings", self.names)
        for name, dimensions in ((class_token, 1), (positions, 2)):
            # timm and Hugging Face's ViT keep an axis for the batch.
            while name in arrays and arrays[name].ndim > dimensions and len(arrays[name]) == 1:
                arrays[name] = arrays[name][0]
        if self.grid_size is not None and positions in arrays:
            arrays[positions] = resample_positions(arrays[positions], self.grid_size)
        return arrays


TIMM_NAMES = (
    (r"^class_token", "cls_token"),
    (r"^position_embeddings", "pos_embed"),
    (r"^patch_embedding", "patch_embed.proj"),
    (r"^embeddings_norm", "norm_pre"),
    (r"^final_norm", "norm"),
    (r"attention\.output", "attn.proj"),
    (r"attention\.", "attn."),
    (r"fc([12])", r"mlp.fc\1"),
)
HUGGING_FACE_NAMES = (
    (r"^class_token", "embeddings.cls_token"),
    (r"^position_embeddings", "embeddings.position_embeddings"),
    (r"^patch_embedding", "embeddings.patch_embeddings.projection"),
    (r"^final_norm", "layernorm"),
    (r"^blocks\.", "encoder.layer."),
    (r"attention\.(query|key|value)", r"attention.attention.\1"),
    (r"attention\.output", "attention.output.dense"),
    (r"norm1", "layernorm_before"),
    (r"norm2", "layernorm_after"),
    (r"fc1", "intermediate.dense"),
    (r"fc2", "output.dense"),
)
HUGGING_FACE_CLIP_NAMES = (
    (r"^class_token", "embeddings.class_embedding"),
    (r"^position_embeddings", "embeddings.position_embedding.weight"),
    (r"^patch_embedding", "embeddings.patch_embedding"),
    (r"^embeddings_norm", "pre_layrnorm"),
    (r"^final_norm", "post_layernorm"),
    *HUGGING_FACE_CLIP_BLOCKS,
)
OPENAI_NAMES = (
    (r"^class_token", "class_embedding"),
    (r"^position_embeddings", "positional_embedding"),
    (r"^patch_embedding", "conv1"),
    (r"^embeddings_norm", "ln_pre"),
    (r"^final_norm", "ln_post"),
    *OPENAI_BLOCKS,
    (r"^", "visual."),
)

TIMM_LAYOUT = CheckpointLayout(
    recognised_by="patch_embed.proj.weight",
    names=TIMM_NAMES,
    ignored=("head.*", "pre_logits.*"),
    prepare=_Prepare(TIMM_NAMES),
    fields=_timm_fields,
)
HUGGING_FACE_LAYOUT = CheckpointLayout(
    recognised_by="embeddings.patch_embeddings.projection.weight",
    names=HUGGING_FACE_NAMES,
    spellings=(
        (r"^vit\.", ""),
        # The names in a state dict of transformers 5, which saves folders under those above.
        (r"^layers\.", "encoder.layer."),
        (r"attention\.q_proj", "attention.attention.query"),
        (r"attention\.k_proj", "attention.attention.key"),
        (r"attention\.v_proj", "attention.attention.value"),
        (r"attention\.o_proj", "attention.output.dense"),
        (r"mlp\.fc1", "intermediate.dense"),
        (r"mlp\.fc2", "output.dense"),
    ),
    ignored=("pooler.*", "classifier.*", "embeddings.mask_token", "decoder.*"),
    prepare=_Prepare(HUGGING_FACE_NAMES),
    fields=_hugging_face_fields,
)
HUGGING_FACE_CLIP_LAYOUT = CheckpointLayout(
    recognised_by="embeddings.patch_embedding.weight",
    names=HUGGING_FACE_CLIP_NAMES,
    ignored=("embeddings.position_ids",),
    prepare=_Prepare(HUGGING_FACE_CLIP_NAMES),
    fields=_hugging_face_clip_fields,
)
OPENAI_LAYOUT = CheckpointLayout(
    recognised_by="visual.class_embedding",
    names=OPENAI_NAMES,
    prepare=_Prepare(OPENAI_NAMES),
    fields=_openai_fields,
)


class ViT(nnx.Module):
    """Image tower: a Vision Transformer with a class token.

    Attributes:
        width: channels of the features (`hidden_size`).
        mean, std: normalisation that the weights expect, per channel, for pixels in 0..1.
        checkpoint_layouts: the kinds of checkpoint it reads. Those of a tower that is built
            resample position embeddings made for images of another size.
    """

    config_class = ViTConfig
    checkpoint_layouts = (
        TIMM_LAYOUT,
        HUGGING_FACE_LAYOUT,
        HUGGING_FACE_CLIP_LAYOUT,
        OPENAI_LAYOUT,
    )
    model_types = ("vit", "clip_vision_model")

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
        self.class_token = make.table(self.width, deviation=0.02)
        positions = 1 + config.grid_size**2
        self.position_embeddings = make.table(positions, self.width, deviation=0.02)
        self.embeddings_norm = make.norm() if config.pre_norm else None
        self.blocks = make_blocks(config, make, qkv_bias=config.qkv_bias)
        self.final_norm = make.norm()

    def __call__(
        self, images: jax.Array, *, train: bool = False, dropout_key: jax.Array | None = None
    ) -> TowerOutput:
        """Return the class token's features of a batch of images, and the states of all tokens.

        Args:
            images: float [B, image_size, image_size, 3], RGB, normalised with `mean` and `std`.
            train: dropout and stochastic depth on, if `dropout_key` is given.
            dropout_key: key of both.

        Returns:
            float32 [B, width], the class token after the last layer norm; and [B, 1 + patches,
            width], the class token first, then the patches row by row, after the last layer norm
            or, in CLIP's form (`pre_norm`), before it.

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
        x = run_blocks(self.blocks, x, None, blocks_key, remat=self.config.remat)
        if self.config.pre_norm:
            return TowerOutput(self.final_norm(x[:, 0]).astype(jnp.float32), x)
        x = self.final_norm(x)
        return TowerOutput(x[:, 0].astype(jnp.float32), x)

    def _embed(self, images: jax.Array) -> jax.Array:
        patches = self.patch_embedding(images)
        nothing = jnp.zeros((len(patches), 1, self.width), patches.dtype)
        class_tokens = add_parameter(nothing, self.class_token[...])
        x = jnp.concatenate([class_tokens, patches], axis=1)
        x = add_parameter(x, self.position_embeddings[...])
        return x if self.embeddings_norm is None else self.embeddings_norm(x)


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
