"""Two towers, two projections and two log-scales: the network that every method here trains.

The module library stays in this folder. `split` takes a module apart once, into its definition and
plain nested dicts of arrays; `FunctionalModel` puts it together again inside jitted functions. So
the step, the losses, the sharding and the checkpoints handle plain pytrees only.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

INITIAL_LOG_SCALE = 3.9  # exp(3.9) = 49.4, for both scales (OTTER's released code).

Arrays = dict[Any, Any]  # Nested dict of arrays.


class Variables(NamedTuple):
    """A model's arrays: what is trained, what is not, and batch norm's running statistics."""

    params: Arrays
    frozen: Arrays
    batch_stats: Arrays


class Mlp(nnx.Module):
    """A projection with one hidden layer as wide as the tower, and GELU."""

    def __init__(self, width: int, embed_dim: int, *, rngs: nnx.Rngs):
        """`width` features in, `embed_dim` out."""
        self.hidden = nnx.Linear(width, width, rngs=rngs, precision="highest")
        self.out = nnx.Linear(width, embed_dim, rngs=rngs, precision="highest")

    def __call__(self, features: jax.Array) -> jax.Array:
        """[N, width] -> [N, embed_dim]."""
        return self.out(nnx.gelu(self.hidden(features)))


class Identity(nnx.Module):
    """No projection: the tower's features are the embedding."""

    def __call__(self, features: jax.Array) -> jax.Array:
        """Returns `features` as they are."""
        return features


def make_projection(kind: str, width: int, embed_dim: int, *, rngs: nnx.Rngs) -> nnx.Module:
    """`linear` (with bias), `mlp`, or `auto`: none where the widths agree, else linear."""
    if kind == "mlp":
        return Mlp(width, embed_dim, rngs=rngs)
    if kind == "auto" and width == embed_dim:
        return Identity()
    return nnx.Linear(width, embed_dim, rngs=rngs, precision="highest")


class DualEncoder(nnx.Module):
    """An image tower and a text tower that meet in one embedding space."""

    def __init__(
        self,
        image: nnx.Module,
        text: nnx.Module,
        *,
        embed_dim: int,
        image_projection: str = "linear",
        text_projection: str = "linear",
        freeze_image: bool = False,
        freeze_text: bool = False,
        rngs: nnx.Rngs,
    ):
        """Fresh projections on top of towers that have `width` features each.

        A frozen tower keeps its parameters and batch statistics and always runs in evaluation
        mode; its projection still learns.
        """
        self.freeze_image = freeze_image
        self.freeze_text = freeze_text
        self.image = image
        self.text = text
        self.image_projection = make_projection(image_projection, image.width, embed_dim, rngs=rngs)
        self.text_projection = make_projection(text_projection, text.width, embed_dim, rngs=rngs)
        self.log_scale = nnx.Param(jnp.float32(INITIAL_LOG_SCALE))
        self.distillation_log_scale = nnx.Param(jnp.float32(INITIAL_LOG_SCALE))

    def image_features(
        self, images: jax.Array, *, train: bool = False, dropout_key: jax.Array | None = None
    ) -> jax.Array:
        """uint8 [N, H, W, 3] -> tower features [N, width], float32."""
        mean, std = jnp.asarray(self.image.mean), jnp.asarray(self.image.std)
        images = (images.astype(jnp.float32) / 255.0 - mean) / std
        return self.image(images, train=train, dropout_key=dropout_key).pooled

    def text_features(
        self,
        tokens: jax.Array,
        token_mask: jax.Array,
        *,
        train: bool = False,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """int32 [N, L] tokens and their mask -> tower features [N, width], float32."""
        return self.text(tokens, token_mask, train=train, dropout_key=dropout_key).pooled

    def __call__(
        self,
        batch: Mapping[str, jax.Array],
        *,
        train: bool = False,
        dropout_key: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """A batch's image and text embeddings, [N, embed_dim] each, not yet normalised.

        Where the batch brings `image_features` or `text_features`, computed once because nothing
        upstream of them varies, the tower is skipped.
        """
        keys = (None, None) if dropout_key is None else jax.random.split(dropout_key)
        image = batch.get("image_features")
        if image is None:
            image = self.image_features(
                batch["image"], train=train and not self.freeze_image, dropout_key=keys[0]
            )
        text = batch.get("text_features")
        if text is None:
            text = self.text_features(
                batch["tokens"],
                batch["token_mask"],
                train=train and not self.freeze_text,
                dropout_key=keys[1],
            )
        return self.image_projection(image), self.text_projection(text)


@dataclasses.dataclass(frozen=True)
class FunctionalModel:
    """A dual encoder as pure functions of its variables."""

    definition: nnx.GraphDef

    def bind(self, variables: Variables) -> DualEncoder:
        """The module with these arrays; cheap, also under jit."""
        # copy=True: batch norm updates its statistics, which must not reach the arguments.
        return nnx.merge(self.definition, *variables, copy=True)

    def embed(
        self,
        variables: Variables,
        batch: Mapping[str, jax.Array],
        *,
        train: bool = False,
        dropout_key: jax.Array | None = None,
    ) -> tuple[tuple[jax.Array, jax.Array], Arrays]:
        """Embeddings of both sides, [N, embed_dim] each, and the batch statistics afterwards."""
        module = self.bind(variables)
        embeddings = module(batch, train=train, dropout_key=dropout_key)
        return embeddings, nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))


def split(module: DualEncoder) -> tuple[FunctionalModel, Variables]:
    """Takes a module apart: its definition, and its arrays by what becomes of them."""
    frozen_towers = {"image": module.freeze_image, "text": module.freeze_text}

    def is_trained(path: tuple, value: Any) -> bool:
        return isinstance(value, nnx.Param) and not frozen_towers.get(path[0], False)

    definition, *states = nnx.split(module, is_trained, nnx.Param, nnx.BatchStat)
    return FunctionalModel(definition), Variables(*map(nnx.to_pure_dict, states))


def count(arrays: Arrays) -> int:
    """Number of scalars in a nested dict of arrays."""
    return sum(leaf.size for leaf in jax.tree.leaves(arrays))
