"""ConvNeXt, an image tower of convolutions that looks like a transformer inside.

Sources: Liu et al., "A ConvNet for the 2020s" (2022); Woo et al., "ConvNeXt V2" (2023), for the
normalisation of responses that takes the place of layer scale. Read from timm's and transformers'
folders, and from open_clip's with a tower of timm's.
"""

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from otter_jax.models import timm_names
from otter_jax.models.descriptions import TRANSFORMERS_KEYS, Description, Guess, Keys, words
from otter_jax.models.layers import (
    Conv,
    LayerNorm,
    Linear,
    Preset,
    TowerOutput,
    compiling_eager_calls,
    drop_examples,
    split_key,
)
from otter_jax.models.preprocessing import IMAGENET_STATISTICS
from otter_jax.models.transformer import ACTIVATIONS, array_named
from otter_jax.models.weights import CheckpointArrays, CheckpointLayout

KERNEL_SIZE = 7
EXPANSION = 4  # A block's inside is this much wider.
RESPONSE_EPSILON = 1e-6


@dataclass(frozen=True)
class ConvNextConfig:
    """Shape and training behaviour of a ConvNeXt; the defaults are ConvNeXt-T.

    Attributes:
        widths: channels of each stage; the last are the tower's `width`.
        depths: blocks of each stage.
        patch_size: height and width of the patches that the first convolution takes.
        hidden_act: one of `transformer.ACTIVATIONS`.
        layer_norm_eps: added to the variance, inside the network.
        last_norm_eps: the same, of the last norm.
        norm_after_pooling: whether the last norm is applied to the mean over the cells, instead of
            to the cells.
        layer_scale: a learned factor for each channel at the end of each block.
        response_norm: global response normalisation inside each block (V2).
        stochastic_depth_rate: probability that the last block is dropped in training; earlier ones
            proportionally less.
        remat: compute the blocks' activations again in the backward pass instead of keeping them.
        mean: per channel, what the weights expect to be subtracted from pixels in 0..1.
        std: per channel, what the result is divided by.
        resize: how the weights expect images to be brought to their size, a
            `preprocessing.Resize`; None for this package's own way.

    Raises:
        ValueError: widths and depths do not pair up, or the activation is unknown.
    """

    widths: tuple[int, ...] = (96, 192, 384, 768)
    depths: tuple[int, ...] = (3, 3, 9, 3)
    patch_size: int = 4
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-6
    last_norm_eps: float = 1e-6
    norm_after_pooling: bool = True
    layer_scale: bool = True
    response_norm: bool = False
    stochastic_depth_rate: float = 0.0
    remat: bool = False
    mean: tuple[float, float, float] = IMAGENET_STATISTICS["mean"]
    std: tuple[float, float, float] = IMAGENET_STATISTICS["std"]
    resize: tuple[str, float, str] | None = None

    def __post_init__(self) -> None:
        """Turn lists into tuples (a configuration is hashed); refuse what no network has."""
        for name in ("widths", "depths", "mean", "std"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if len(self.widths) != len(self.depths) or min(self.widths + self.depths, default=0) < 1:
            raise ValueError(
                f"ConvNextConfig's widths {self.widths} and depths {self.depths} must have one "
                "positive number a stage"
            )
        if self.hidden_act not in ACTIVATIONS:
            raise ValueError(
                f"ConvNextConfig's hidden_act is {self.hidden_act!r}; it must be one of "
                f"{list(ACTIVATIONS)}"
            )


class GlobalResponseNorm(nnx.Module):
    """Scales each channel by how strong it is in the image, among all channels."""

    def __init__(self, channels: int) -> None:
        """Start as the identity."""
        self.scale = nnx.Param(jnp.zeros(channels))
        self.bias = nnx.Param(jnp.zeros(channels))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [B, H, W, C] to [B, H, W, C]."""
        strength = jnp.sqrt(jnp.sum(jnp.square(x.astype(jnp.float32)), axis=(1, 2), keepdims=True))
        relative = strength / (jnp.mean(strength, axis=-1, keepdims=True) + RESPONSE_EPSILON)
        scale = (self.scale[...] * relative).astype(x.dtype)
        return x + x * scale + self.bias[...].astype(x.dtype)


class Block(nnx.Module):
    """A depthwise convolution, then a perceptron on each cell, and a way around both."""

    def __init__(
        self,
        config: ConvNextConfig,
        width: int,
        drop_rate: float,
        *,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        """Build the block; `drop_rate` is its own stochastic-depth rate."""
        like = {"dtype": dtype, "rngs": rngs}
        self.depthwise = Conv(
            *(width, width, KERNEL_SIZE),
            padding=KERNEL_SIZE // 2,
            depthwise=True,
            use_bias=True,
            **like,
        )
        self.norm = LayerNorm(width, epsilon=config.layer_norm_eps, dtype=dtype)
        small = {"kernel_init": jax.nn.initializers.normal(0.02), **like}
        self.fc1 = Linear(width, EXPANSION * width, **small)
        self.response_norm = GlobalResponseNorm(EXPANSION * width) if config.response_norm else None
        self.fc2 = Linear(EXPANSION * width, width, **small)
        self.scale = nnx.Param(jnp.full(width, 1e-6)) if config.layer_scale else None
        self.activation, self.drop_rate = config.hidden_act, drop_rate

    def __call__(self, x: jax.Array, key: jax.Array | None) -> jax.Array:
        """Map [B, H, W, width] to the same shape."""
        branch = ACTIVATIONS[self.activation](self.fc1(self.norm(self.depthwise(x))))
        if self.response_norm is not None:
            branch = self.response_norm(branch)
        branch = self.fc2(branch)
        if self.scale is not None:
            branch = branch * self.scale[...].astype(branch.dtype)
        return x + drop_examples(branch, self.drop_rate, key)


class ConvNeXtDownsample(nnx.Module):
    """Layer norm and a convolution of 2x2 pixels with a stride of 2."""

    def __init__(
        self, config: ConvNextConfig, width: int, out: int, *, dtype: DTypeLike, rngs: nnx.Rngs
    ) -> None:
        """Build both for `width` channels in and `out` channels out."""
        self.norm = LayerNorm(width, epsilon=config.layer_norm_eps, dtype=dtype)
        self.conv = Conv(width, out, 2, 2, 0, use_bias=True, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [B, H, W, width] to [B, H / 2, W / 2, out], both rounded down."""
        return self.conv(self.norm(x))


class ConvNeXtStage(nnx.Module):
    """Blocks of one width, behind a downsampling but in the first stage."""

    def __init__(self, downsample: ConvNeXtDownsample | None, blocks: list[Block]) -> None:
        """Take the parts."""
        self.downsample, self.blocks = downsample, nnx.List(blocks)


TIMM_NAMES = (
    (r"^stem\.", "stem.0."),
    (r"^stem_norm", "stem.1"),
    (r"downsample\.norm", "downsample.0"),
    (r"downsample\.conv", "downsample.1"),
    (r"depthwise", "conv_dw"),
    (r"fc([12])", r"mlp.fc\1"),
    (r"response_norm\.scale", "mlp.grn.weight"),
    (r"response_norm", "mlp.grn"),
    (r"scale$", "gamma"),
    (r"^final_norm", "norm_pre"),
    (r"^pooled_norm", "head.norm"),
)
HUGGING_FACE_NAMES = (
    (r"^stem\.", "embeddings.patch_embeddings."),
    (r"^stem_norm", "embeddings.layernorm"),
    (r"^stages\.(\d+)\.blocks", r"encoder.stages.\1.layers"),
    (r"^stages\.(\d+)\.downsample\.norm", r"encoder.stages.\1.downsampling_layer.0"),
    (r"^stages\.(\d+)\.downsample\.conv", r"encoder.stages.\1.downsampling_layer.1"),
    (r"depthwise", "dwconv"),
    (r"(\d)\.norm", r"\1.layernorm"),
    (r"fc([12])", r"pwconv\1"),
    (r"response_norm\.scale", "grn.weight"),
    (r"response_norm", "grn"),
    (r"scale$", "layer_scale_parameter"),
    (r"^pooled_norm", "layernorm"),
)
TIMM_ARCHITECTURES: Mapping[str, Mapping[str, Any]] = {
    r"convnext_xxlarge": {"layer_norm_eps": 1e-5, "last_norm_eps": 1e-5},
    r"convnext_(atto|femto|pico|nano|tiny|small|base|large|xlarge)(_hnf)?": {},
    r"convnextv2_(atto|femto|pico|nano|tiny|small|base|large|huge)": {},
}
TIMM_ARGUMENTS = timm_names.COMMON_ARGUMENTS.extended(
    only={
        "global_pool": ("avg",),
        "stem_type": ("patch",),
        "kernel_sizes": (7,),
        "head_hidden_size": (None,),
        "conv_bias": (True,),
        "norm_layer": (None,),
        "norm_eps": (None,),
    },
    # What the weights say, and what `_timm_fields` looks at.
    harmless=words(
        """depths dims patch_size ls_init_value conv_mlp use_grn head_norm_first act_layer
        img_size"""
    ),
)
HUGGING_FACE_KEYS = TRANSFORMERS_KEYS.extended(
    fields={
        "hidden_act": "hidden_act",
        "layer_norm_eps": "last_norm_eps",
        "drop_path_rate": "stochastic_depth_rate",
    },
    defaults={"hidden_act": "gelu", "layer_norm_eps": 1e-12},
    harmless=words("patch_size num_stages hidden_sizes depths layer_scale_init_value image_size"),
)


def _shape_fields(arrays: CheckpointArrays, block: str, parts: Mapping[str, str]) -> dict[str, Any]:
    """Return the fields of `ConvNextConfig` that the arrays' names and shapes tell.

    Args:
        arrays: a checkpoint's arrays by name.
        block: what a block's names begin with, with {} for the stage and the block.
        parts: names, of the stem and in a block: "stem", "norm", "scale" and "response_norm".
    """
    pattern = re.compile(re.escape(block).replace(r"\{\}", r"(\d+)"))
    found = {(int(m[1]), int(m[2])) for m in map(pattern.match, arrays) if m}
    stages = range(max((stage for stage, _ in found), default=-1) + 1)
    first = block.format(0, 0)
    return {
        "widths": tuple(
            len(array_named(arrays, f"{block.format(stage, 0)}{parts['norm']}")) for stage in stages
        ),
        "depths": tuple(sum(each == stage for each, _ in found) for stage in stages),
        "patch_size": array_named(arrays, parts["stem"]).shape[-1],
        "layer_scale": f"{first}{parts['scale']}" in arrays,
        "response_norm": f"{first}{parts['response_norm']}" in arrays,
    }


def _timm_fields(saved: Description, arrays: CheckpointArrays) -> dict[str, Any]:
    facts = timm_names.architecture_of(saved, TIMM_ARCHITECTURES, "ConvNext") if saved else {}
    if unknown := next((n for n in arrays if n.startswith("head.pre_logits")), None):
        raise ValueError(f"the checkpoint has {unknown!r}: a perceptron as head is not supported")
    parts = {"stem": "stem.0.weight", "norm": "norm.weight", "scale": "gamma"}
    shape = _shape_fields(
        arrays, "stages.{}.blocks.{}.", {**parts, "response_norm": "mlp.grn.weight"}
    )
    shape["norm_after_pooling"] = "norm_pre.weight" not in arrays
    if not saved:
        return shape | {"hidden_act": Guess("gelu"), "layer_norm_eps": Guess(1e-6)}
    pool = {"global_pool": timm_names.global_pool_of(saved) or "avg"}
    Keys(only={"global_pool": ("avg",)}).read(pool, timm_names.SOURCE)
    arguments = timm_names.read_arguments(saved, TIMM_ARGUMENTS)
    act = timm_names.activation((saved.get("model_args") or {}).get("act_layer"))
    return shape | facts | arguments | act


def _hugging_face_fields(saved: Description, arrays: CheckpointArrays) -> dict[str, Any]:
    if not saved:
        raise ValueError("a ConvNeXt with Hugging Face's names needs the config.json beside it")
    parts = {
        "stem": "embeddings.patch_embeddings.weight",
        "norm": "layernorm.weight",
        "scale": "layer_scale_parameter",
        "response_norm": "grn.weight",
    }
    shape = _shape_fields(arrays, "encoder.stages.{}.layers.{}.", parts)
    return shape | HUGGING_FACE_KEYS.read(saved, "config.json")


def _without_axes_of_one(arrays: CheckpointArrays) -> dict[str, np.ndarray]:
    """Take 1x1 convolutions for the linear maps that they are, and norms for rows."""
    flat = dict(arrays)
    for name, array in arrays.items():
        if ".mlp.fc" in name and array.ndim == 4:
            flat[name] = array[:, :, 0, 0]
        elif ".grn." in name:
            flat[name] = array.reshape(-1)
    return flat


TIMM_LAYOUT = CheckpointLayout(
    recognised_by="stages.0.blocks.0.conv_dw.weight",
    names=TIMM_NAMES,
    ignored=("head.fc.*",),
    prepare=_without_axes_of_one,
    fields=_timm_fields,
)
HUGGING_FACE_LAYOUT = CheckpointLayout(
    recognised_by="encoder.stages.0.layers.0.dwconv.weight",
    names=HUGGING_FACE_NAMES,
    spellings=((r"^convnext(v2)?\.", ""),),
    ignored=("classifier.*",),
    prepare=_without_axes_of_one,
    fields=_hugging_face_fields,
)


class ConvNext(nnx.Module):
    """Image tower: a ConvNeXt up to its global average pooling and the last norm.

    Attributes:
        width: channels of the pooled features (768 for ConvNeXt-T).
        mean, std: normalisation that the weights expect, per channel, for pixels in 0..1.
    """

    config_class = ConvNextConfig
    checkpoint_layouts = (TIMM_LAYOUT, HUGGING_FACE_LAYOUT)
    model_types = ("convnext", "convnextv2")

    def __init__(
        self,
        config: ConvNextConfig | None = None,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ) -> None:
        """Build the tower with random weights.

        Args:
            config: shape and behaviour; ConvNeXt-T if None.
            rngs: source of the initial weights.
            dtype: type of the computation; parameters stay float32.
        """
        self.config = config = config or ConvNextConfig()
        like = {"dtype": dtype, "rngs": rngs}
        self.width, self.mean, self.std = config.widths[-1], config.mean, config.std
        first, patch = config.widths[0], config.patch_size
        self.stem = Conv(3, first, patch, patch, 0, use_bias=True, **like)
        self.stem_norm = LayerNorm(first, epsilon=config.layer_norm_eps, dtype=dtype)
        rates = iter(
            np.linspace(0, config.stochastic_depth_rate, max(sum(config.depths), 1)).tolist()
        )
        stages, width = [], None
        for out, depth in zip(config.widths, config.depths, strict=True):
            downsample = ConvNeXtDownsample(config, width, out, **like) if width else None
            blocks = [Block(config, out, next(rates), **like) for _ in range(depth)]
            stages.append(ConvNeXtStage(downsample, blocks))
            width = out
        self.stages = nnx.List(stages)
        norm = LayerNorm(self.width, epsilon=config.last_norm_eps, dtype=dtype)
        late = config.norm_after_pooling
        self.final_norm, self.pooled_norm = (None, norm) if late else (norm, None)

    @compiling_eager_calls
    def __call__(
        self, images: jax.Array, *, train: bool = False, dropout_key: jax.Array | None = None
    ) -> TowerOutput:
        """Return the pooled features of a batch of images, and the last stage's grid.

        Args:
            images: float [B, H, W, 3], RGB, normalised with `mean` and `std`.
            train: stochastic depth on, if `dropout_key` is given.
            dropout_key: key of stochastic depth.

        Returns:
            float32 [B, width], and [B, cells, width] row by row.
        """
        keys = iter(split_key(dropout_key if train else None, sum(self.config.depths)))
        run = nnx.remat(Block.__call__) if self.config.remat else Block.__call__
        x = self.stem_norm(self.stem(images))
        for stage in self.stages:
            x = x if stage.downsample is None else stage.downsample(x)
            x = functools.reduce(lambda x, block: run(block, x, next(keys)), stage.blocks, x)
        x = x if self.final_norm is None else self.final_norm(x)
        pooled = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
        if self.pooled_norm is not None:
            pooled = self.pooled_norm(pooled.astype(x.dtype)).astype(jnp.float32)
        return TowerOutput(pooled, x.reshape(x.shape[0], -1, x.shape[-1]))


def _preset(depths: tuple[int, ...], first: int) -> Preset:
    return Preset(ConvNext, {"depths": depths, "widths": tuple(first * 2**i for i in range(4))})


PRESETS = {
    "convnext_tiny": _preset((3, 3, 9, 3), 96),
    "convnext_small": _preset((3, 3, 27, 3), 96),
    "convnext_base": _preset((3, 3, 27, 3), 128),
    "convnext_large": _preset((3, 3, 27, 3), 192),
}
