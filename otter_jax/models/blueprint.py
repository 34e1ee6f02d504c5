"""A dual encoder's shape as plain data, from which the same network can be built without weights.

What the shape is often comes out of a checkpoint. Written down, it lets a trained model be loaded
where that checkpoint is not.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from otter_jax.models.dual_encoder import DualEncoder, Heads, TrainableParts
from otter_jax.models.pretrained import make_config, read_description
from otter_jax.models.projections import kind_of, make_projection, settings_of
from otter_jax.models.two_towers import KINDS

Blueprint = dict[str, Any]  # Holds what JSON can hold.


def describe_tower(tower: nnx.Module) -> Blueprint:
    """Return the class of a tower and its configuration."""
    return {"tower": type(tower).__name__, "config": dataclasses.asdict(tower.config)}


def describe(module: DualEncoder) -> Blueprint:
    """Return the shape of a dual encoder: towers, kinds of projections, heads, embedding size."""
    sides = {
        kind: describe_tower(getattr(module, kind))
        | {
            "projection": kind_of(getattr(module, f"{kind}_projection")),
            "projection_settings": settings_of(getattr(module, f"{kind}_projection")),
        }
        for kind in KINDS
    }
    has_bias = hasattr(module, "logit_bias")
    heads = dataclasses.asdict(module.heads)
    return {"embed_dim": module.embed_dim, "has_bias": has_bias, "heads": heads} | sides


def build(
    blueprint: Mapping[str, Any],
    *,
    dtype: DTypeLike = jnp.float32,
    trainable: Mapping[str, TrainableParts] | None = None,
) -> DualEncoder:
    """Return a dual encoder whose arrays have shapes but no values yet.

    Args:
        blueprint: as `describe` gives it, also after a way through JSON.
        dtype: type of the towers' computation.
        trainable: by "image" and "text"; none if None.

    Raises:
        ValueError: if it names what this version of the package does not have.
    """
    trainable = trainable or {kind: TrainableParts() for kind in KINDS}

    def make() -> DualEncoder:
        towers = {kind: build_tower(blueprint[kind], dtype) for kind in KINDS}
        projections = {
            kind: make_projection(
                blueprint[kind]["projection"],
                towers[kind].width,
                blueprint["embed_dim"],
                rngs=nnx.Rngs(0),
                **blueprint[kind].get("projection_settings", {}),
            )
            for kind in KINDS
        }
        return DualEncoder(
            towers["image"],
            towers["text"],
            projections["image"],
            projections["text"],
            image_trainable=trainable["image"],
            text_trainable=trainable["text"],
            initial_bias=0.0 if blueprint["has_bias"] else None,
            heads=Heads(**blueprint.get("heads", {})),
            rngs=nnx.Rngs(0),
        )

    try:
        return nnx.eval_shape(make)
    except KeyError as error:
        raise ValueError(f"the description of the model lacks {error}") from None


def build_tower(blueprint: Mapping[str, Any], dtype: DTypeLike = jnp.float32) -> nnx.Module:
    """Return the tower of a description, to be called where only shapes are made."""
    tower_class, fields = read_description(blueprint)
    return tower_class(make_config(tower_class, fields, {}), rngs=nnx.Rngs(0), dtype=dtype)
