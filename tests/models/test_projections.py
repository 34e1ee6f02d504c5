"""Tests of the layer between a tower's features and the embedding space."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from otter_jax.models.projections import (
    kind_of,
    make_projection,
    output_width,
    read_projection,
    settings_of,
)
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
    with pytest.raises(ValueError, match=r"unknown kind, with 0\.weight, 1\.weight"):
        read_projection({"0.weight": np.ones((3, 2)), "1.weight": np.ones((4, 3))}, 2)
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


@pytest.mark.parametrize("names", [("0", "2"), ("fc1", "fc2")])
@pytest.mark.parametrize("biased", [True, False])
def test_two_layers_of_open_clip(names: tuple[str, str], biased: bool) -> None:
    draw = np.random.default_rng(0)
    first, second = (draw.normal(size=shape).astype(np.float32) for shape in ((7, 3), (4, 7)))
    arrays = {f"{names[0]}.weight": first, f"{names[1]}.weight": second}
    biases = [np.zeros(7, np.float32), np.zeros(4, np.float32)]
    if biased:
        biases = [draw.normal(size=width).astype(np.float32) for width in (7, 4)]
        arrays |= {f"{name}.bias": bias for name, bias in zip(names, biases, strict=True)}
    projection = read_projection(arrays, 3)
    assert kind_of(projection) == "perceptron" and output_width(projection, 3) == 4
    x = draw.normal(size=(5, 3)).astype(np.float32)
    hidden = x @ first.T + biases[0]
    hidden = hidden * np.vectorize(lambda v: 0.5 * (1 + math.erf(v / math.sqrt(2))))(hidden)
    np.testing.assert_allclose(projection(x), hidden @ second.T + biases[1], atol=1e-5)
    written = read_projection(checkpoint_arrays(projection), 3)
    np.testing.assert_array_equal(written(x), projection(x))
    settings = settings_of(projection)
    made = make_projection("perceptron", 3, 4, rngs=nnx.Rngs(0), **settings)
    assert settings["hidden"] == 7 and settings_of(made) == settings
