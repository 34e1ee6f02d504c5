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

from otter_jax.models.abstract import without_values
from otter_jax.models.descriptions import PART, SIZE, TEXT, TRUTH
from otter_jax.models.dual_encoder import DualEncoder, Heads, TrainableParts
from otter_jax.models.own_descriptions import read_entries, read_entry
from otter_jax.models.pretrained import make_config, read_description
from otter_jax.models.projections import kind_of, make_projection, settings_of
from otter_jax.models.two_towers import KINDS

Blueprint = dict[str, Any]  # Holds what JSON can hold.
PERCEPTRON_KINDS = {"hidden": SIZE, "hidden_bias": TRUTH, "bias": TRUTH}
SOURCE = "the description of the model"  # In messages.


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
        ValueError: if it names what this version of the package does not have, or lacks an entry,
            or has one of another kind.
    """
    trainable = trainable or {kind: TrainableParts() for kind in KINDS}
    embed_dim = read_entry(blueprint, "embed_dim", SIZE, SOURCE)
    has_bias = read_entry(blueprint, "has_bias", TRUTH, SOURCE)
    heads = _read_heads(blueprint)
    sides = {kind: read_entry(blueprint, kind, PART, SOURCE) for kind in KINDS}
    settings = {kind: _read_projection(side, f"{SOURCE}.{kind}") for kind, side in sides.items()}

    def make(rngs: nnx.Rngs) -> DualEncoder:
        towers = {
            kind: build_tower(sides[kind], dtype, f"{SOURCE}.{kind}", rngs=rngs) for kind in KINDS
        }
        projections = {
            kind: make_projection(
                side["projection"],
                towers[kind].width,
                embed_dim,
                rngs=rngs,
                **settings[kind],
            )
            for kind, side in sides.items()
        }
        return DualEncoder(
            towers["image"],
            towers["text"],
            projections["image"],
            projections["text"],
            image_trainable=trainable["image"],
            text_trainable=trainable["text"],
            initial_bias=0.0 if has_bias else None,
            heads=heads,
            rngs=rngs,
        )

    return without_values(make)


def _read_heads(blueprint: Blueprint) -> Heads:
    if "heads" not in blueprint:  # Of an early version, which had none.
        return Heads()
    names = [field.name for field in dataclasses.fields(Heads)]
    return Heads(**read_entries(blueprint["heads"], dict.fromkeys(names, TRUTH), f"{SOURCE}.heads"))


def _read_projection(side: Blueprint, source: str) -> dict[str, Any]:
    """Return the settings of one side's projection, and refuse a kind that is no text."""
    kind = read_entry(side, "projection", TEXT, source)
    wanted = PERCEPTRON_KINDS if kind == "perceptron" else {}
    saved = side.get("projection_settings", {})  # Version 0.1.0 had no projection with any.
    return read_entries(saved, wanted, f"{source}.projection_settings")


def build_tower(
    blueprint: Any, dtype: DTypeLike = jnp.float32, source: str = SOURCE, *, rngs: nnx.Rngs
) -> nnx.Module:
    """Return the tower of a description, to be called where only shapes are made."""
    tower_class, fields = read_description(blueprint, source)
    return tower_class(make_config(tower_class, fields, {}), rngs=rngs, dtype=dtype)
