"""The layer between a tower's features and the embedding space, fresh or from a checkpoint.

In checkpoints a projection is one linear layer, with bias (OTTER, DeCLIP) or without (CLIP), a bare
matrix (OpenAI), two layers with GELU between them (open_clip's on other libraries' towers), or not
there at all, where the tower's features are the embedding.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from otter_jax.models.abstract import without_values
from otter_jax.models.layers import gelu
from otter_jax.models.weights import CheckpointArrays, assign_arrays

KINDS = ("linear", "linear_no_bias", "mlp", "none")


class Mlp(nnx.Module):
    """A projection with one hidden layer as wide as the tower, and GELU."""

    def __init__(self, width: int, embed_dim: int, *, rngs: nnx.Rngs):
        """`width` features in, `embed_dim` out."""
        self.hidden = nnx.Linear(width, width, rngs=rngs, precision="highest")
        self.out = nnx.Linear(width, embed_dim, rngs=rngs, precision="highest")

    def __call__(self, features: jax.Array) -> jax.Array:
        """Map [N, width] to [N, embed_dim]."""
        return self.out(nnx.gelu(self.hidden(features)))


class Perceptron(nnx.Module):
    """open_clip's projection with one hidden layer of any width, and exact GELU."""

    def __init__(
        self,
        width: int,
        embed_dim: int,
        *,
        hidden: int,
        hidden_bias: bool,
        bias: bool,
        rngs: nnx.Rngs,
    ):
        """`width` features in, `embed_dim` out, `hidden` between."""
        like = {"rngs": rngs, "precision": "highest"}
        self.fc1 = nnx.Linear(width, hidden, use_bias=hidden_bias, **like)
        self.fc2 = nnx.Linear(hidden, embed_dim, use_bias=bias, **like)

    def __call__(self, features: jax.Array) -> jax.Array:
        """Map [N, width] to [N, embed_dim]."""
        return self.fc2(gelu(self.fc1(features)))


class Identity(nnx.Module):
    """No projection: the tower's features are the embedding."""

    def __call__(self, features: jax.Array) -> jax.Array:
        """Return `features` as they are."""
        return features


def make_projection(
    kind: str, width: int, embed_dim: int, *, rngs: nnx.Rngs, **settings: Any
) -> nnx.Module:
    """Return a fresh projection.

    Args:
        kind: `linear` (with bias), `linear_no_bias`, `mlp`, `none`, or `auto`: none where the
            widths agree, else linear. `perceptron` is what only checkpoints have.
        width: of the tower's features.
        embed_dim: of the embedding.
        rngs: source of the random weights.
        settings: of a `Perceptron`.

    Raises:
        ValueError: for another kind, and for `none` where the widths differ.
    """
    if kind == "auto":
        kind = "none" if width == embed_dim else "linear"
    if kind == "perceptron":
        return Perceptron(width, embed_dim, rngs=rngs, **settings)
    if kind not in KINDS:
        raise ValueError(f"projection is {kind!r}; it must be one of {', '.join(KINDS)}, auto")
    if kind == "none" and width != embed_dim:
        raise ValueError(
            f"projection 'none' needs features as wide as the embedding; they have {width}, "
            f"embed_dim is {embed_dim}"
        )
    if kind == "mlp":
        return Mlp(width, embed_dim, rngs=rngs)
    if kind == "none":
        return Identity()
    bias = kind == "linear"
    return nnx.Linear(width, embed_dim, use_bias=bias, rngs=rngs, precision="highest")


def kind_of(projection: nnx.Module) -> str:
    """Return which of `KINDS` a projection is, or "perceptron"."""
    if isinstance(projection, Perceptron):
        return "perceptron"
    if isinstance(projection, nnx.Linear):
        return "linear" if projection.use_bias else "linear_no_bias"
    return "mlp" if isinstance(projection, Mlp) else "none"


def settings_of(projection: nnx.Module) -> dict[str, Any]:
    """Return what `make_projection` needs besides the kind and both widths."""
    if not isinstance(projection, Perceptron):
        return {}
    fc1, fc2 = projection.fc1, projection.fc2
    return {"hidden": fc1.out_features, "hidden_bias": fc1.use_bias, "bias": fc2.use_bias}


def output_width(projection: nnx.Module, width: int) -> int:
    """Return how many numbers an embedding has, behind a tower of `width` features."""
    last = projection
    if isinstance(projection, Mlp | Perceptron):
        last = projection.out if isinstance(projection, Mlp) else projection.fc2
    return last.out_features if isinstance(last, nnx.Linear) else width


def read_projection(arrays: CheckpointArrays, width: int) -> nnx.Module:
    """Return a projection with the weights of a checkpoint.

    Args:
        arrays: `weight` and maybe `bias`; or `matrix` alone, [width, embed_dim]; or those of an
            `Mlp`; or of open_clip's two layers; or nothing, for no projection.
        width: features of the tower.

    Raises:
        ValueError: if these names are no known projection's, or the shapes do not fit.
    """
    if set(arrays) == {"matrix"}:
        arrays = {"weight": arrays["matrix"].T}
    settings: dict[str, Any] = {}
    kind = _KINDS_BY_NAMES.get(frozenset(arrays))
    if kind is None and (layers := _perceptron_arrays(arrays)):
        kind, arrays, settings = "perceptron", *layers
    if kind is None:
        raise ValueError(f"its projection is of an unknown kind, with {', '.join(sorted(arrays))}")
    lasts = (arrays[name] for name in ("weight", "out.weight", "fc2.weight") if name in arrays)
    weight = next(lasts, None)
    embed_dim = width if weight is None else len(weight)
    projection = without_values(
        lambda rngs: make_projection(kind, width, embed_dim, rngs=rngs, **settings)
    )
    assign_arrays(projection, arrays)
    return projection


def _perceptron_arrays(
    arrays: CheckpointArrays,
) -> tuple[Mapping[str, np.ndarray], dict[str, Any]] | None:
    """Return open_clip's two layers under our names, and the settings; None if they are not.

    On transformers' towers they lie in a sequence as "0" and "2", on timm's as "fc1" and "fc2".
    """
    ours = {"0.": "fc1.", "2.": "fc2."}
    renamed = {ours.get(name[:2], name[:2]) + name[2:]: array for name, array in arrays.items()}
    needed = {"fc1.weight", "fc2.weight"}
    if not needed <= set(renamed) <= needed | {"fc1.bias", "fc2.bias"}:
        return None
    biases = {"hidden_bias": "fc1.bias" in renamed, "bias": "fc2.bias" in renamed}
    return renamed, {"hidden": len(renamed["fc1.weight"]), **biases}


_KINDS_BY_NAMES = {
    frozenset(): "none",
    frozenset({"weight"}): "linear_no_bias",
    frozenset({"weight", "bias"}): "linear",
    frozenset({"hidden.weight", "hidden.bias", "out.weight", "out.bias"}): "mlp",
}
