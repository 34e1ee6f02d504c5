"""Tests of putting a checkpoint's arrays into a tower."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from otter_jax.models.layers import Conv, LayerNorm
from otter_jax.models.weights import CheckpointLayout, checkpoint_arrays, load_weights


class Tower(nnx.Module):
    """One of each kind of layer, and a parameter of its own."""

    checkpoint_layouts = (
        CheckpointLayout(
            recognised_by="net.dense.weight",
            names=((r"^", "net."), (r"table", "words")),
            spellings=((r"^module\.", ""), (r"\.gamma$", ".weight")),
            ignored=("*.counter", "net.head.*"),
        ),
    )

    def __init__(self) -> None:
        """Draw random weights."""
        rngs = nnx.Rngs(0)
        self.dense = nnx.Linear(3, 2, rngs=rngs)
        self.conv = Conv(3, 4, 2, rngs=rngs)
        self.table = nnx.Embed(5, 2, rngs=rngs)
        self.layer_norm = LayerNorm(2, epsilon=1e-6, dtype=jnp.float32)
        self.batch_norm = nnx.BatchNorm(4, rngs=rngs)
        self.token = nnx.Param(jnp.zeros((1, 2)))


SHAPES = {
    "net.dense.weight": (2, 3),
    "net.dense.bias": (2,),
    "net.conv.weight": (4, 3, 2, 2),
    "net.words.weight": (5, 2),
    "net.layer_norm.weight": (2,),
    "net.layer_norm.bias": (2,),
    "net.batch_norm.weight": (4,),
    "net.batch_norm.bias": (4,),
    "net.batch_norm.running_mean": (4,),
    "net.batch_norm.running_var": (4,),
    "net.token": (1, 2),
}


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    return {name: generator.random(shape, np.float32) for name, shape in SHAPES.items()}


@pytest.fixture(scope="module")
def template() -> tuple[nnx.GraphDef, nnx.State]:
    return nnx.split(Tower())


@pytest.fixture
def tower(template: tuple[nnx.GraphDef, nnx.State]) -> Tower:
    return nnx.merge(*template, copy=True)


def test_every_array_arrives_with_its_axes_in_order(tower: Tower, arrays: dict[str, np.ndarray]):
    load_weights(tower, arrays)
    x = np.random.default_rng(1).random((6, 3), np.float32)
    dense = x @ arrays["net.dense.weight"].T + arrays["net.dense.bias"]
    np.testing.assert_allclose(tower.dense(x), dense, atol=1e-6)
    kernel = tower.conv.kernel[...]
    for out, in_, row, column in np.ndindex(4, 3, 2, 2):
        expected = arrays["net.conv.weight"][out, in_, row, column]
        assert kernel[row, column, in_, out] == expected
    np.testing.assert_array_equal(tower.table(jnp.array([3])), arrays["net.words.weight"][[3]])
    np.testing.assert_array_equal(tower.layer_norm.scale[...], arrays["net.layer_norm.weight"])
    np.testing.assert_array_equal(tower.batch_norm.mean[...], arrays["net.batch_norm.running_mean"])
    np.testing.assert_array_equal(tower.batch_norm.var[...], arrays["net.batch_norm.running_var"])
    np.testing.assert_array_equal(tower.batch_norm.scale[...], arrays["net.batch_norm.weight"])
    np.testing.assert_array_equal(tower.token[...], arrays["net.token"])


def test_other_spellings_and_ignored_names_are_taken(tower: Tower, arrays: dict[str, np.ndarray]):
    spelt = {f"module.{name}": array for name, array in arrays.items()}
    spelt["module.net.layer_norm.gamma"] = spelt.pop("module.net.layer_norm.weight")
    spelt["module.net.batch_norm.counter"] = np.array(7)
    spelt["net.head.weight"] = np.zeros((9, 9))
    load_weights(tower, spelt)
    np.testing.assert_array_equal(tower.layer_norm.scale[...], arrays["net.layer_norm.weight"])


def test_half_precision_arrays_become_float32(tower: Tower, arrays: dict[str, np.ndarray]):
    load_weights(tower, {name: array.astype(np.float16) for name, array in arrays.items()})
    assert tower.dense.kernel[...].dtype == jnp.float32
    np.testing.assert_allclose(tower.token[...], arrays["net.token"], atol=1e-3)


def test_all_that_differs_is_listed_and_nothing_is_changed(
    tower: Tower, arrays: dict[str, np.ndarray]
):
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(tower)))
    del arrays["net.token"]
    arrays["net.dense.weight"] = np.zeros((3, 2))
    arrays["other"] = np.zeros((7,))
    with pytest.raises(ValueError) as refusal:
        load_weights(tower, arrays)
    assert str(refusal.value).splitlines() == [
        "the checkpoint does not fit Tower: 3 names differ",
        "  name              checkpoint  expected",
        "  net.token         missing     (1, 2)",
        "  net.dense.weight  (3, 2)      (2, 3)",
        "  other             (7,)        unexpected",
    ]
    jax.tree.map(np.testing.assert_array_equal, before, nnx.to_pure_dict(nnx.state(tower)))


def test_what_is_allowed_to_differ_may(tower: Tower, arrays: dict[str, np.ndarray]):
    kept = np.asarray(tower.dense.bias[...])
    del arrays["net.dense.bias"], arrays["net.token"]
    arrays["extra.one"] = arrays["extra.two"] = np.zeros(3)
    load_weights(tower, arrays, allow_missing=["net.dense.b*", "*token"], allow_unexpected=["e*"])
    np.testing.assert_array_equal(tower.dense.bias[...], kept)
    with pytest.raises(ValueError, match=r"2 names differ"):
        load_weights(tower, arrays, allow_missing=["*"])
    # A wrong shape is never allowed.
    arrays["net.words.weight"] = np.zeros((6, 2))
    with pytest.raises(ValueError, match=r"net\.words\.weight +\(6, 2\) +\(5, 2\)"):
        load_weights(tower, arrays, allow_missing=["*"], allow_unexpected=["*"])


def test_weights_are_given_back_under_the_same_names(tower: Tower, arrays: dict[str, np.ndarray]):
    load_weights(tower, arrays)
    found = checkpoint_arrays(tower, Tower.checkpoint_layouts[0].names)
    assert found.keys() == arrays.keys()
    for name, array in found.items():
        np.testing.assert_array_equal(array, arrays[name], err_msg=name)
        assert array.flags.c_contiguous
