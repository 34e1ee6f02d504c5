"""The layer between a tower's features and the embedding space, fresh or from a checkpoint.

In checkpoints a projection is one linear layer, with bias (OTTER, DeCLIP) or without (CLIP), a bare
matrix (OpenAI), or not there at all, where the tower's features are the embedding.
"""

import jax
from flax import nnx

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


class Identity(nnx.Module):
    """No projection: the tower's features are the embedding."""

    def __call__(self, features: jax.Array) -> jax.Array:
        """Return `features` as they are."""
        return features


def make_projection(kind: str, width: int, embed_dim: int, *, rngs: nnx.Rngs) -> nnx.Module:
    """Return a fresh projection.

    Args:
        kind: `linear` (with bias), `linear_no_bias`, `mlp`, `none`, or `auto`: none where the
            widths agree, else linear.
        width: of the tower's features.
        embed_dim: of the embedding.
        rngs: source of the random weights.

    Raises:
        ValueError: for another kind, and for `none` where the widths differ.
    """
    if kind == "auto":
        kind = "none" if width == embed_dim else "linear"
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
    """Return which of `KINDS` a projection is."""
    if isinstance(projection, nnx.Linear):
        return "linear" if projection.use_bias else "linear_no_bias"
    return "mlp" if isinstance(projection, Mlp) else "none"


def output_width(projection: nnx.Module, width: int) -> int:
    """Return how many numbers an embedding has, behind a tower of `width` features."""
    last = projection.out if isinstance(projection, Mlp) else projection
    return last.out_features if isinstance(last, nnx.Linear) else width


def read_projection(arrays: CheckpointArrays, width: int) -> nnx.Module:
    """Return a projection with the weights of a checkpoint.

    Args:
        arrays: `weight` and maybe `bias`; or `matrix` alone, [width, embed_dim]; or those of an
            `Mlp`; or nothing, for no projection.
        width: features of the tower.

    Raises:
        ValueError: if these names are no known projection's, or the shapes do not fit.
    """
    if set(arrays) == {"matrix"}:
        arrays = {"weight": arrays["matrix"].T}
    kind = _KINDS_BY_NAMES.get(frozenset(arrays))
    if kind is None:
        raise ValueError(f"its projection is of an unknown kind, with {', '.join(sorted(arrays))}")
    weight = arrays.get("out.weight", arrays.get("weight"))
    embed_dim = width if weight is None else len(weight)
    projection = nnx.eval_shape(lambda: make_projection(kind, width, embed_dim, rngs=nnx.Rngs(0)))
    assign_arrays(projection, arrays)
    return projection


_KINDS_BY_NAMES = {
    frozenset(): "none",
    frozenset({"weight"}): "linear_no_bias",
    frozenset({"weight", "bias"}): "linear",
    frozenset({"hidden.weight", "hidden.bias", "out.weight", "out.bias"}): "mlp",
}
