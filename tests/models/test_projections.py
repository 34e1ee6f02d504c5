"""Tests of the layer between a tower's features and the embedding space."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from otter_jax.models.projections import kind_of, make_projection, output_width, read_projection
from otter_jax.models.weights import checkpoint_arrays


@pytest.mark.parametrize(
    ("kind", "width", "kernels"),
    [
        ("linear", 8, 1),
        ("linear", 6, 1),
        ("linear_no_bias", 6, 1),
        ("auto", 8, 0),
        ("none", 8, 0),
        ("auto", 6, 1),
        ("mlp", 8, 2),
    ],
)
def test_every_kind_leads_to_the_embedding(kind: str, width: int, kernels: int) -> None:
    projection = make_projection(kind, width, 8, rngs=nnx.Rngs(0))
    matrices = [x for x in jax.tree.leaves(nnx.state(projection, nnx.Param)) if x.ndim == 2]
    assert len(matrices) == kernels
    assert projection(jnp.ones((3, width))).shape == (3, 8)
    assert output_width(projection, width) == 8
    assert kind_of(projection) == {"auto": "linear" if kernels else "none"}.get(kind, kind)


def test_what_is_no_projection_is_refused() -> None:
    with pytest.raises(ValueError, match="'cubic'; it must be one of linear, linear_no_bias"):
        make_projection("cubic", 3, 3, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"'none' needs .*; they have 3, embed_dim is 4"):
        make_projection("none", 3, 4, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"unknown kind, with 0\.weight, 2\.weight"):
        read_projection({"0.weight": np.ones((3, 2)), "2.weight": np.ones((4, 3))}, 2)
    with pytest.raises(ValueError, match=r"weight +\(5, 3\) +\(5, 2\)"):
        read_projection({"weight": np.ones((5, 3), np.float32)}, 2)


@pytest.mark.parametrize("kind", ["linear", "linear_no_bias", "mlp", "none"])
def test_what_is_written_is_read_again(kind: str) -> None:
    projection = make_projection(kind, 6, 6, rngs=nnx.Rngs(1))
    again = read_projection(checkpoint_arrays(projection), 6)
    x = np.random.default_rng(0).random((4, 6), np.float32)
    np.testing.assert_array_equal(projection(x), again(x))


def test_a_bare_matrix_is_multiplied_from_the_right() -> None:
    matrix = np.random.default_rng(0).random((3, 5), np.float32)
    x = np.random.default_rng(1).random((4, 3), np.float32)
    np.testing.assert_allclose(read_projection({"matrix": matrix}, 3)(x), x @ matrix, rtol=1e-6)
