"""Several heads that attend at once, against one after the other."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from otter_jax.models import bert, transformer


@pytest.mark.parametrize("heads, width", [(6, 64), (4, 32), (3, 64)])  # Three do not go in twos.
@pytest.mark.parametrize("rate", [0.0, 0.4])
def test_heads_that_attend_at_once_are_those_that_do_so_one_by_one(
    heads: int, width: int, rate: float
):
    keys = jax.random.split(jax.random.key(0), 5)
    query = jax.random.normal(keys[0], (3, 10, heads * width))
    key, value = (jax.random.normal(each, (3, 7, heads * width)) for each in keys[1:3])
    lengths = jnp.array([7, 4, 1])
    bias = transformer.mask_bias(jnp.arange(7) < lengths[:, None])[:, None, None]
    bias = bias + jax.random.normal(keys[3], (1, heads, 10, 7))
    of_rows = jax.random.split(keys[4], 3)

    def run(attend):
        def total(*arrays):
            mixed = attend(*arrays, heads, bias, rate, of_rows)
            return jnp.sum(jnp.sin(mixed)), mixed

        return jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))(query, key, value)

    expected, found = run(transformer.attend), run(transformer.attend_packed)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), found, expected)
    assert all(jnp.max(jnp.abs(x)) > 0.1 for x in jax.tree.leaves(expected))


def test_a_tower_has_the_same_features_and_dropout_with_its_heads_packed():
    config = bert.BertConfig(
        vocab_size=50, hidden_size=128, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=64,
    )  # fmt: skip
    tokens = jnp.arange(24).reshape(3, 8) + 1
    mask = jnp.arange(8) < jnp.array([8, 3, 1])[:, None]

    def features(packed: bool) -> jax.Array:
        tower = bert.Bert(dataclasses.replace(config, pack_heads=packed), rngs=nnx.Rngs(0))
        return tower(tokens, mask, train=True, dropout_key=jax.random.key(1)).pooled

    np.testing.assert_allclose(features(True), features(False), atol=1e-5)
