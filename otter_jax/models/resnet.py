"""ResNets: the family of He et al. in its "v1.5" form, its refinements, and CLIP's modification.

Sources: He et al., "Deep Residual Learning for Image Recognition" (2016), with the stride on the
3x3 convolution of a bottleneck, as torchvision, timm and Hugging Face have it; He, Tong et al.,
"Bag of Tricks for Image Classification with Convolutional Neural Networks" (2018), for timm's
ResNet-C, -D, -S and -T: a stem of three convolutions, and an average instead of a stride on the way
around a block; Radford et al., "Learning Transferable Visual Models From Natural Language
Supervision" (2021), section 2.4, for CLIP's. Modules have torchvision's names, so that checkpoints
and patterns such as "layer4" mean the same here.
"""

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from otter_jax.models import resnet_layouts, scanning
from otter_jax.models.layers import (
    BatchNorm,
    Conv,
    Linear,
    Preset,
    TowerOutput,
    add_parameter,
    average_pool,
    compiling_eager_calls,
    max_pool,
)
from otter_jax.models.preprocessing import CLIP_STATISTICS, IMAGENET_STATISTICS

BlockKind = Literal["basic", "bottleneck"]
BOTTLENECK_REDUCTION = 4  # A bottleneck's output is this much wider than its inside.


@dataclass(frozen=True)
class ResNetConfig:
    """Shape and training behaviour of a ResNet; the defaults are ResNet50.

    Attributes:
        block: "basic" (two 3x3 convolutions, ResNet18 and 34) or "bottleneck" (1x1, 3x3, 1x1).
        stem_width: channels after the stem.
        deep_stem: channels after the first two of three convolutions of 3x3 pixels that stand in
            place of one of 7x7; empty for that one.
        average_downsample: whether the way around a block with a stride averages over 2x2 pixels
            instead of leaving three of four out.
        stage_widths: channels that each stage puts out; the last are the tower's `width`.
        depths: blocks of each stage.
        downsample_in_first_stage: whether the first stage has a stride of 2 as the others have.
        downsample_in_bottleneck: whether a bottleneck's stride is on its first 1x1 convolution, as
            in the paper, instead of the 3x3.
        batch_norm_momentum: share of the old running statistics that a training step keeps.
        batch_norm_epsilon: added to the variance.
        zero_init_residual: start every block as the identity, with a last scale of zero.
        remat: recompute each block in the backward pass instead of keeping its insides.
        scan_layers: run blocks of a stage that are equal as one loop, see `scanning`.
        mean: per channel, what the weights expect to be subtracted from pixels in 0..1.
        std: per channel, what the result is divided by.
        resize: how the weights expect images to be brought to their size, a
            `preprocessing.Resize`; None for this package's own way.

    Raises:
        ValueError: the block is of no known kind, the stages' widths and depths do not pair up, or
            a number is not positive.
    """

    block: BlockKind = "bottleneck"
    stem_width: int = 64
    deep_stem: tuple[int, ...] = ()
    average_downsample: bool = False
    stage_widths: tuple[int, ...] = (256, 512, 1024, 2048)
    depths: tuple[int, ...] = (3, 4, 6, 3)
    downsample_in_first_stage: bool = False
    downsample_in_bottleneck: bool = False
    batch_norm_momentum: float = 0.9
    batch_norm_epsilon: float = 1e-5
    zero_init_residual: bool = False
    remat: bool = False
    scan_layers: bool = False
    mean: tuple[float, ...] = IMAGENET_STATISTICS["mean"]
    std: tuple[float, ...] = IMAGENET_STATISTICS["std"]
    resize: tuple[str, float, str] | None = None

    def __post_init__(self) -> None:
        """Turn lists into tuples (a configuration is hashed); refuse shapes no network has."""
        _make_tuples(self, "deep_stem", "stage_widths", "depths", "mean", "std")
        if self.block not in ("basic", "bottleneck"):
            raise ValueError(
                f"ResNet's block is {self.block!r}; it must be 'basic' or 'bottleneck'"
            )
        if len(self.stage_widths) != len(self.depths) or not self.depths:
            raise ValueError(
                f"ResNet's stage_widths {self.stage_widths} and depths {self.depths} must have "
                "one number a stage"
            )
        _require_positive("ResNet", stem_width=self.stem_width, depths=self.depths)
        if len(self.deep_stem) not in (0, 2) or min(self.deep_stem, default=1) < 1:
            raise ValueError(
                f"ResNet's deep_stem is {self.deep_stem}; it must be empty or two positive numbers"
            )
        multiple = BOTTLENECK_REDUCTION if self.block == "bottleneck" else 1
        if any(width < multiple or width % multiple for width in self.stage_widths):
            raise ValueError(
                f"ResNet's stage_widths are {self.stage_widths}; with {self.block} blocks they "
                f"must be positive multiples of {multiple}"
            )


@dataclass(frozen=True)
class ClipResNetConfig:
    """Shape and training behaviour of CLIP's modified ResNet; the defaults are its ResNet50.

    Attributes:
        base_width: channels after the stem; stage i puts out base_width * 4 * 2^i.
        depths: blocks of each of the four stages.
        width: channels of the pooled features, after the attention pool's projection.
        num_heads: heads of the attention pool.
        image_size: pixels of a side that the attention pool's positions are meant for, a multiple
            of 32; for images of other sizes they are interpolated.
        batch_norm_momentum: share of the old running statistics that a training step keeps.
        batch_norm_epsilon: added to the variance.
        zero_init_residual: start every block as the identity, with a last scale of zero.
        remat: recompute each block in the backward pass instead of keeping its insides.
        scan_layers: run blocks of a stage that are equal as one loop, see `scanning`.
        mean: per channel, what the weights expect to be subtracted from pixels in 0..1 (CLIP's
            values; DeCLIP's release was trained with ImageNet's).
        std: per channel, what the result is divided by.
        resize: how the weights expect images to be brought to their size, a
            `preprocessing.Resize`; None for this package's own way.

    Raises:
        ValueError: a number is not positive, or the heads do not divide the channels.
    """

    base_width: int = 64
    depths: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 1024
    num_heads: int = 32
    image_size: int = 224
    batch_norm_momentum: float = 0.9
    batch_norm_epsilon: float = 1e-5
    zero_init_residual: bool = True
    remat: bool = False
    scan_layers: bool = False
    mean: tuple[float, ...] = CLIP_STATISTICS["mean"]
    std: tuple[float, ...] = CLIP_STATISTICS["std"]
    resize: tuple[str, float, str] | None = None

    def __post_init__(self) -> None:
        """Turn lists into tuples (a configuration is hashed); refuse shapes no network has."""
        _make_tuples(self, "depths", "mean", "std")
        name = "CLIP's ResNet"
        _require_positive(name, depths=self.depths, width=self.width, num_heads=self.num_heads)
        if self.base_width < 2 or self.base_width % 2:
            raise ValueError(f"{name}'s base_width is {self.base_width}; it must be even")
        if self.stage_widths[-1] % self.num_heads:
            raise ValueError(
                f"{name}'s num_heads is {self.num_heads}; it must divide its "
                f"{self.stage_widths[-1]} channels"
            )
        if self.image_size < self.reduction or self.image_size % self.reduction:
            raise ValueError(
                f"{name}'s image_size is {self.image_size}; it must be a multiple of "
                f"{self.reduction}"
            )

    @property
    def stage_widths(self) -> tuple[int, ...]:
        """Channels that each stage puts out."""
        return tuple(
            self.base_width * BOTTLENECK_REDUCTION * 2**index for index in range(len(self.depths))
        )

    @property
    def reduction(self) -> int:
        """Pixels of the image to a cell of the last stage, along a side."""
        return 4 * 2 ** (len(self.depths) - 1)


def _make_tuples(config: object, *names: str) -> None:
    for name in names:
        object.__setattr__(config, name, tuple(getattr(config, name)))


def _require_positive(network: str, **values: int | tuple[int, ...]) -> None:
    for name, value in values.items():
        if min(value if isinstance(value, tuple) else (value,), default=0) <= 0:
            raise ValueError(f"{network}'s {name} is {value}; it must be positive")


class _Training(Protocol):
    """What both configurations say about batch norm."""

    batch_norm_momentum: float
    batch_norm_epsilon: float
    zero_init_residual: bool


class Downsample(nnx.Module):
    """Brings a block's input to the size and width of its output: 1x1 convolution, batch norm."""

    def __init__(
        self,
        config: _Training,
        in_channels: int,
        out_channels: int,
        stride: int,
        *,
        averages: bool = False,
        keep_rest: bool = False,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        """Build both layers.

        Args:
            config: for the batch norm.
            in_channels: of the block's input.
            out_channels: of its output.
            stride: pixels of the input to one of the output, along a side.
            averages: over the stride, instead of leaving pixels out.
            keep_rest: what is left over at the border gives one more pixel.
            dtype: of the computation.
            rngs: source of the initial weights.
        """
        self.pool, self.keep_rest = stride if averages else 1, keep_rest
        conv_stride = 1 if averages else stride
        self.conv = Conv(in_channels, out_channels, 1, conv_stride, 0, dtype=dtype, rngs=rngs)
        self.norm = _batch_norm(config, out_channels, dtype=dtype)

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Map [B, H, W, in] to [B, H / stride, W / stride, out]."""
        return self.norm(self.conv(average_pool(x, self.pool, self.keep_rest)), train)


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions and a way around them."""

    def __init__(
        self,
        config: ResNetConfig,
        in_channels: int,
        out_channels: int,
        stride: int,
        *,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        """Build the block; the first convolution has the stride."""
        like = {"dtype": dtype, "rngs": rngs}
        self.conv1 = Conv(in_channels, out_channels, 3, stride, 1, **like)
        self.bn1 = _batch_norm(config, out_channels, dtype=dtype)
        self.conv2 = Conv(out_channels, out_channels, 3, 1, 1, **like)
        self.bn2 = _batch_norm(config, out_channels, last=True, dtype=dtype)
        changes = stride != 1 or in_channels != out_channels
        averages = config.average_downsample
        self.downsample = (
            Downsample(
                *(config, in_channels, out_channels, stride),
                averages=averages,
                keep_rest=averages,
                **like,
            )
            if changes
            else None
        )

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Map [B, H, W, in] to [B, ceil(H / stride), ceil(W / stride), out]."""
        shortcut = x if self.downsample is None else self.downsample(x, train)
        x = jax.nn.relu(self.bn1(self.conv1(x), train))
        return jax.nn.relu(self.bn2(self.conv2(x), train) + shortcut)


class Bottleneck(nnx.Module):
    """1x1 convolution to fewer channels, 3x3, 1x1 back to more, and a way around them."""

    def __init__(
        self,
        config: ResNetConfig | ClipResNetConfig,
        in_channels: int,
        out_channels: int,
        stride: int,
        *,
        stride_on: Literal["conv1", "conv2", "pool"] = "conv2",
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        """Build the block; the step `stride_on` has the stride ("pool": CLIP's anti-aliasing)."""
        like = {"dtype": dtype, "rngs": rngs}
        strides = {stride_on: stride}
        inside = out_channels // BOTTLENECK_REDUCTION
        self.conv1 = Conv(in_channels, inside, 1, strides.get("conv1", 1), 0, **like)
        self.bn1 = _batch_norm(config, inside, dtype=dtype)
        self.conv2 = Conv(inside, inside, 3, strides.get("conv2", 1), 1, **like)
        self.bn2 = _batch_norm(config, inside, dtype=dtype)
        self.pool = strides.get("pool", 1)
        self.conv3 = Conv(inside, out_channels, 1, 1, 0, **like)
        self.bn3 = _batch_norm(config, out_channels, last=True, dtype=dtype)
        changes = stride != 1 or in_channels != out_channels
        keep_rest = stride_on != "pool" and config.average_downsample
        self.downsample = (
            Downsample(
                *(config, in_channels, out_channels, stride),
                averages=stride_on == "pool" or keep_rest,
                keep_rest=keep_rest,
                **like,
            )
            if changes
            else None
        )

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Map [B, H, W, in] to [B, H / stride, W / stride, out] (rounded up unless pooled)."""
        shortcut = x if self.downsample is None else self.downsample(x, train)
        x = jax.nn.relu(self.bn1(self.conv1(x), train))
        x = jax.nn.relu(self.bn2(self.conv2(x), train))
        x = self.bn3(self.conv3(average_pool(x, self.pool)), train)
        return jax.nn.relu(x + shortcut)


def _batch_norm(
    config: _Training, channels: int, *, last: bool = False, dtype: DTypeLike
) -> BatchNorm:
    """Return a batch norm, `last` being a residual branch's."""
    return BatchNorm(
        channels,
        momentum=config.batch_norm_momentum,
        epsilon=config.batch_norm_epsilon,
        initial_scale=0.0 if last and config.zero_init_residual else 1.0,
        dtype=dtype,
    )


class _Stages(nnx.Module):
    """The stages that both kinds of ResNet consist of: layer1, layer2, ..."""

    config: ResNetConfig | ClipResNetConfig

    def _add_stages(
        self, in_channels: int, *, block: type[nnx.Module], first_stride: int = 1, **arguments: Any
    ) -> None:
        for number, (width, depth) in enumerate(
            zip(self.config.stage_widths, self.config.depths, strict=True), start=1
        ):
            strides = [first_stride if number == 1 else 2] + [1] * (depth - 1)
            blocks = []
            for stride in strides:
                blocks.append(block(self.config, in_channels, width, stride, **arguments))
                in_channels = width
            setattr(self, f"layer{number}", nnx.List(blocks))

    def _run_stages(self, x: jax.Array, train: bool) -> jax.Array:
        stages = (getattr(self, f"layer{n}") for n in range(1, len(self.config.depths) + 1))
        return scanning.run_in_turn(
            lambda block, x, key: block(x, train),
            [block for blocks in stages for block in blocks],
            x,
            remat=self.config.remat,
            scan=self.config.scan_layers,
        )


def _cells(x: jax.Array) -> jax.Array:
    return x.reshape(x.shape[0], -1, x.shape[-1])


class DeepStem(nnx.Module):
    """Three convolutions of 3x3 pixels, with batch norm and ReLU between them."""

    def __init__(self, config: ResNetConfig, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        """Build the layers, the first of them with a stride of 2."""
        like = {"dtype": dtype, "rngs": rngs}
        first, second = config.deep_stem
        self.conv1 = Conv(3, first, 3, 2, 1, **like)
        self.bn1 = _batch_norm(config, first, dtype=dtype)
        self.conv2 = Conv(first, second, 3, 1, 1, **like)
        self.bn2 = _batch_norm(config, second, dtype=dtype)
        self.conv3 = Conv(second, config.stem_width, 3, 1, 1, **like)

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Map [B, H, W, 3] to [B, H / 2, W / 2, stem_width], both rounded up."""
        x = jax.nn.relu(self.bn1(self.conv1(x), train))
        x = jax.nn.relu(self.bn2(self.conv2(x), train))
        return self.conv3(x)


class ResNet(_Stages):
    """Image tower: a ResNet up to its global average pooling.

    Attributes:
        width: channels of the pooled features (2048 for a ResNet50).
        mean, std: normalisation that the weights expect, per channel, for pixels in 0..1.
    """

    config_class = ResNetConfig
    checkpoint_layouts = (
        resnet_layouts.AVERAGING_LAYOUT,
        resnet_layouts.TORCHVISION_LAYOUT,
        resnet_layouts.HUGGING_FACE_LAYOUT,
    )
    model_types = ("resnet",)

    def __init__(
        self,
        config: ResNetConfig | None = None,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ) -> None:
        """Build the tower with random weights.

        Args:
            config: shape and behaviour; ResNet50 if None.
            rngs: source of the initial weights.
            dtype: type of the computation; parameters and statistics stay float32.
        """
        config = config or ResNetConfig()
        self.config = config
        self.width, self.mean, self.std = config.stage_widths[-1], config.mean, config.std
        averaging, plain, hugging_face = type(self).checkpoint_layouts
        own = averaging if config.average_downsample else plain
        self.checkpoint_layouts = (own, hugging_face)
        self.conv1 = (
            DeepStem(config, dtype=dtype, rngs=rngs)
            if config.deep_stem
            else Conv(3, config.stem_width, 7, 2, 3, dtype=dtype, rngs=rngs)
        )
        self.bn1 = _batch_norm(config, config.stem_width, dtype=dtype)
        arguments: dict[str, Any] = {"dtype": dtype, "rngs": rngs, "block": BasicBlock}
        if config.block == "bottleneck":
            arguments["block"] = Bottleneck
            arguments["stride_on"] = "conv1" if config.downsample_in_bottleneck else "conv2"
        first_stride = 2 if config.downsample_in_first_stage else 1
        self._add_stages(config.stem_width, first_stride=first_stride, **arguments)

    @compiling_eager_calls
    def __call__(
        self, images: jax.Array, *, train: bool = False, dropout_key: jax.Array | None = None
    ) -> TowerOutput:
        """Return the pooled features of a batch of images, and the grid they are the mean of.

        Args:
            images: float [B, H, W, 3], RGB, normalised with `mean` and `std`.
            train: batch norm on the batch's own statistics (the running ones are updated).
            dropout_key: not used; a ResNet has no dropout.

        Returns:
            float32 [B, width], and [B, cells, width] row by row.
        """
        x = self.conv1(images, train) if self.config.deep_stem else self.conv1(images)
        # The same as the other way around, with a quarter of the pixels to be rectified.
        x = jax.nn.relu(max_pool(self.bn1(x, train)))
        x = self._run_stages(x, train)
        return TowerOutput(jnp.mean(x, axis=(1, 2), dtype=jnp.float32), _cells(x))


class SpatialAttentionPool(nnx.Module):
    """Attention of the mean over the cells to the cells and itself, in place of pooling."""

    def __init__(self, config: ClipResNetConfig, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        """Build the pool with random weights, of CLIP's initial sizes."""
        channels = config.stage_widths[-1]
        side = config.image_size // config.reduction
        self.num_heads = config.num_heads
        small = jax.nn.initializers.normal(channels**-0.5)
        shape = (side * side + 1, channels)
        self.positional_embedding = nnx.Param(small(rngs.params(), shape, jnp.float32))
        like = {"kernel_init": small, "dtype": dtype, "rngs": rngs}
        self.q_proj = Linear(channels, channels, **like)
        self.k_proj = Linear(channels, channels, **like)
        self.v_proj = Linear(channels, channels, **like)
        self.c_proj = Linear(channels, config.width, **like)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [B, rows, columns, channels] to [B, width]."""
        cells = _cells(x)
        cells = jnp.concatenate([jnp.mean(cells, axis=1, keepdims=True), cells], axis=1)
        cells = add_parameter(cells, self._positions(*x.shape[1:3]))
        query = self._split(self.q_proj(cells[:, :1]))
        attended = jax.nn.dot_product_attention(
            query, self._split(self.k_proj(cells)), self._split(self.v_proj(cells))
        )
        return self.c_proj(attended.reshape(x.shape[0], -1))

    def _split(self, x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:2], self.num_heads, -1)

    def _positions(self, rows: int, columns: int) -> jax.Array:
        """Return the embedding of the mean and of each cell, interpolated to the image's grid."""
        table = self.positional_embedding[...]
        side = int((len(table) - 1) ** 0.5)
        if (rows, columns) == (side, side):
            return table
        grid = table[1:].reshape(side, side, -1)
        grid = jax.image.resize(grid, (rows, columns, grid.shape[-1]), "bicubic", antialias=False)
        return jnp.concatenate([table[:1], grid.reshape(rows * columns, -1)])


class ClipResNet(_Stages):
    """Image tower: CLIP's ResNet, of three stem convolutions, anti-aliasing and attention pooling.

    Attributes:
        width: channels of the pooled features (1024 for CLIP's ResNet50).
        mean, std: normalisation that the weights expect, per channel, for pixels in 0..1.
    """

    config_class = ClipResNetConfig
    checkpoint_layouts = (resnet_layouts.CLIP_LAYOUT,)
    model_types = ()  # Hugging Face has no class for it.

    def __init__(
        self,
        config: ClipResNetConfig | None = None,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ) -> None:
        """Build the tower with random weights.

        Args:
            config: shape and behaviour; CLIP's ResNet50 if None.
            rngs: source of the initial weights.
            dtype: type of the computation; parameters and statistics stay float32.
        """
        config = config or ClipResNetConfig()
        self.config = config
        self.width, self.mean, self.std = config.width, config.mean, config.std
        wide, half = config.base_width, config.base_width // 2
        self.conv1 = Conv(3, half, 3, 2, 1, dtype=dtype, rngs=rngs)
        self.bn1 = _batch_norm(config, half, dtype=dtype)
        self.conv2 = Conv(half, half, 3, 1, 1, dtype=dtype, rngs=rngs)
        self.bn2 = _batch_norm(config, half, dtype=dtype)
        self.conv3 = Conv(half, wide, 3, 1, 1, dtype=dtype, rngs=rngs)
        self.bn3 = _batch_norm(config, wide, dtype=dtype)
        self._add_stages(wide, block=Bottleneck, stride_on="pool", dtype=dtype, rngs=rngs)
        self.attnpool = SpatialAttentionPool(config, dtype=dtype, rngs=rngs)

    @compiling_eager_calls
    def __call__(
        self, images: jax.Array, *, train: bool = False, dropout_key: jax.Array | None = None
    ) -> TowerOutput:
        """Return the attention pool's features of a batch of images, and the last stage's grid.

        Args:
            images: float [B, H, W, 3], RGB, normalised with `mean` and `std`.
            train: batch norm on the batch's own statistics (the running ones are updated).
            dropout_key: not used; a ResNet has no dropout.

        Returns:
            float32 [B, width], and [B, cells, channels] row by row.
        """
        x = images
        for conv, norm in (
            (self.conv1, self.bn1),
            (self.conv2, self.bn2),
            (self.conv3, self.bn3),
        ):
            x = jax.nn.relu(norm(conv(x), train))
        x = self._run_stages(average_pool(x, 2), train)
        return TowerOutput(self.attnpool(x).astype(jnp.float32), _cells(x))


def _preset(block: BlockKind, depths: tuple[int, ...]) -> Preset:
    widths = (64, 128, 256, 512) if block == "basic" else (256, 512, 1024, 2048)
    return Preset(ResNet, {"block": block, "stage_widths": widths, "depths": depths})


# Said in full, so that a checkpoint of another size is not taken for the one that was asked for.
# CLIP's comes first: its names are torchvision's and some more, so it must be asked first.
PRESETS = {
    "clip_resnet50": Preset(ClipResNet, {"base_width": 64, "depths": (3, 4, 6, 3), "width": 1024}),
    "resnet18": _preset("basic", (2, 2, 2, 2)),
    "resnet34": _preset("basic", (3, 4, 6, 3)),
    "resnet50": _preset("bottleneck", (3, 4, 6, 3)),
    "resnet101": _preset("bottleneck", (3, 4, 23, 3)),
}
