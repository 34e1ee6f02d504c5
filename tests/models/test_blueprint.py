"""Tests of writing down a model's shape and building the same network from it."""

import json
from collections.abc import Callable

import jax
import pytest

from otter_jax.embedding import encoder
from otter_jax.models import blueprint, dual_encoder


def test_the_same_network_without_values(tiny_config: Callable) -> None:
    config = tiny_config(**{"model.image.projection": "mlp", "model.text.trainable": "layers"})
    module = encoder.build_module(config)
    written = json.loads(json.dumps(blueprint.describe(module)))
    trainable = {
        "image": dual_encoder.TrainableParts(),
        "text": dual_encoder.TrainableParts(trainable="layers"),
    }
    again = blueprint.build(written, trainable=trainable)
    assert (again.image.config, again.text.config) == (module.image.config, module.text.config)
    wanted, found = (dual_encoder.split(each)[1] for each in (module, again))
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for shape, array in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert isinstance(shape, jax.ShapeDtypeStruct)
        assert (shape.shape, shape.dtype) == (array.shape, array.dtype)


def test_what_this_version_does_not_have_is_named(tiny_config: Callable) -> None:
    written = blueprint.describe(encoder.build_module(tiny_config()))
    with pytest.raises(ValueError, match="there is no tower class 'Gru'"):
        blueprint.build(written | {"text": written["text"] | {"tower": "Gru"}})
    del written["embed_dim"]
    with pytest.raises(ValueError, match="the description of the model lacks 'embed_dim'"):
        blueprint.build(written)
