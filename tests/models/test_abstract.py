"""Tests of modules that are made without values."""

import jax
import jax.numpy as jnp
from flax import nnx

from otter_jax.models.abstract import without_values


class Noisy(nnx.Module):
    """Asks for keys in every way that flax has."""

    def __init__(self, rngs: nnx.Rngs):
        self.first = nnx.Linear(2, 3, rngs=rngs)
        self.drawn = nnx.Param(jax.random.normal(rngs(), (4,)))
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.forked = nnx.Param(rngs.fork().noise.uniform((2, 2), jnp.bfloat16))


def test_shapes_are_those_of_the_module_and_nothing_has_a_value() -> None:
    found = nnx.state(without_values(Noisy), nnx.Param)
    wanted = nnx.state(Noisy(nnx.Rngs(0)), nnx.Param)
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert isinstance(one, jax.ShapeDtypeStruct)
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
