"""Low-rank updates of a tower's linear layers, trained in their place (Hu et al., "LoRA", 2021).

A layer y = x W + b becomes y + (alpha / rank) (x A) B. A [inputs, rank] is drawn at random and B
[rank, outputs] is zero, so that training starts at the layer itself. W and b stay as they are, and
`merge` adds the update to W in the end, which leaves the network that it was.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from flax import nnx

from otter_jax.models.layers import Linear, dropout, product, split_key

DROPOUT_STREAM = 0x10A  # Folded into a tower's key, from which it draws its own dropout as well.
PARAMETERS = ("lora_a", "lora_b")


@dataclasses.dataclass(frozen=True)
class Lora:
    """Which layers of a tower have an update, and what it is.

    Attributes:
        rank: of the updates, >= 1.
        alpha: the updates are scaled by alpha / rank, > 0.
        dropout: of the updates' inputs, in [0, 1).
        layers: regular expression, searched in a layer's dotted path in the tower
            ("layers.3.attention.query"). None takes every linear layer.

    Raises:
        ValueError: for values out of range, or a pattern that is no regular one.
    """

    rank: int
    alpha: float = 16.0
    dropout: float = 0.0
    layers: str | None = None

    def __post_init__(self) -> None:
        """Refuse what is no low-rank update."""
        if self.rank < 1 or not 0 < self.alpha < math.inf or not 0 <= self.dropout < 1:
            raise ValueError(
                f"LoRA with rank {self.rank}, alpha {self.alpha} and dropout {self.dropout}: rank "
                "must be at least 1, alpha positive and dropout in [0, 1)"
            )
        try:
            re.compile(self.layers or "")
        except re.error as error:
            raise ValueError(
                f"LoRA's layers={self.layers!r} is no regular expression: {error}"
            ) from None


class LoraLinear(Linear):
    """A linear layer with a low-rank update.

    Attributes:
        dropout_key: of the update's inputs, one for all or one for each row; None for no dropout.
    """

    def __init__(self, base: Linear, settings: Lora, *, rngs: nnx.Rngs) -> None:
        """Put an update beside a layer, whose parameters this one shares."""
        for name, value in vars(base).items():
            if not name.startswith("_"):
                setattr(self, name, value)
        bound = 1 / math.sqrt(base.in_features)  # As PyTorch's linear layers are drawn.
        shape = (base.in_features, settings.rank)
        self.lora_a = nnx.Param(
            jax.random.uniform(rngs.params(), shape, minval=-bound, maxval=bound)
        )
        self.lora_b = nnx.Param(jnp.zeros((settings.rank, base.out_features)))
        self.lora_scale = settings.alpha / settings.rank
        self.dropout_rate = settings.dropout
        self.dropout_key = nnx.data(None)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [..., in] to [..., out]."""
        inputs = dropout(x, self.dropout_rate, self.dropout_key)
        rows = inputs.reshape(-1, x.shape[-1]).astype(self.dtype)
        update = product(product(rows, self.lora_a[...]), self.lora_b[...]) * self.lora_scale
        return super().__call__(x) + update.reshape(*x.shape[:-1], -1)

    def merged(self) -> Linear:
        """Return a plain layer with the update in its kernel."""
        update = jnp.matmul(self.lora_a[...], self.lora_b[...], precision="highest")
        plain = nnx.eval_shape(
            lambda: Linear(
                self.in_features,
                self.out_features,
                use_bias=self.bias is not None,
                dtype=self.dtype,
                rngs=nnx.Rngs(0),
            )
        )
        plain.kernel = nnx.Param(self.kernel[...] + self.lora_scale * update)
        plain.bias = self.bias
        return plain


def add(tower: nnx.Module, settings: Lora, *, rngs: nnx.Rngs) -> None:
    """Give the tower's linear layers updates, in place.

    Raises:
        ValueError: there are no linear layers, none has the pattern in its path, or the rank is
            above a layer's width.
    """
    layers = {_name(path): layer for path, layer in _layers(tower, Linear)}
    chosen = [name for name in layers if re.search(settings.layers or "", name)]
    if not layers:
        raise ValueError(f"LoRA: {type(tower).__name__} has no linear layers; choose another tower")
    if not chosen:
        some = ", ".join([*layers][:: max(1, len(layers) // 6)])
        raise ValueError(
            f"LoRA: {type(tower).__name__} has no linear layer with {settings.layers or ''!r} in "
            f"its path; it has {len(layers)}: {some}"
        )
    for name in chosen:
        inputs, outputs = layers[name].in_features, layers[name].out_features
        if settings.rank > min(inputs, outputs):
            raise ValueError(
                f"LoRA's rank {settings.rank} is above the width of {name}, a layer with {inputs} "
                f"inputs and {outputs} outputs"
            )

    def with_update(path: tuple, layer: Linear) -> Linear:
        return LoraLinear(layer, settings, rngs=rngs) if _name(path) in chosen else layer

    _replace(tower, Linear, with_update)


def merge(module: nnx.Module) -> nnx.Module:
    """Return a module without updates, which are in its kernels; the module itself if it has none.

    The two agree but for rounding, and exactly where nothing was trained.
    """
    if not any(True for _ in _layers(module, LoraLinear)):
        return module
    module = nnx.clone(module)
    _replace(module, LoraLinear, lambda path, layer: layer.merged())
    return module


def set_dropout_key(tower: nnx.Module, key: jax.Array | None) -> None:
    """Have the updates' inputs dropped by this key, one for all or one for each row [N]."""
    layers = [layer for _, layer in _layers(tower, LoraLinear) if layer.dropout_rate]
    if key is not None and key.ndim:
        key = jax.vmap(jax.random.fold_in, (0, None))(key, DROPOUT_STREAM)
    elif key is not None:
        key = jax.random.fold_in(key, DROPOUT_STREAM)
    for layer, own in zip(layers, split_key(key, len(layers)), strict=True):
        layer.dropout_key = own


def _layers(module: nnx.Module, kind: type[Linear]) -> Iterator[tuple[tuple, Linear]]:
    for path, layer in nnx.iter_modules(module):
        if isinstance(layer, kind) and path:
            yield path, layer


def _name(path: tuple) -> str:
    return ".".join(map(str, path))


def _replace(
    module: nnx.Module, kind: type[Linear], make: Callable[[tuple, Linear], Linear]
) -> None:
    """Put what `make` gives in the places of a module's layers of a kind."""
    modules = dict(nnx.iter_modules(module))
    for path, layer in list(_layers(module, kind)):
        setattr(modules[path[:-1]], path[-1], make(path, layer))
