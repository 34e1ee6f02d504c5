"""Tests of towers against small checkpoints of the libraries they come from.

`golden/towers/make_golden_families.py` wrote these: random weights, with norms, biases, tables and
scales that count, and the features that the library itself computes.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from otter_jax.models import create_text_tower, from_pretrained
from otter_jax.models.dual_encoder import DualEncoder
from otter_jax.models.export import export_tower

FAMILIES = Path(__file__).parents[1] / "golden" / "towers" / "families"
NAMES = sorted(path.name for path in FAMILIES.iterdir())


def features(tower: nnx.Module, saved: dict[str, np.ndarray]) -> jax.Array:
    if "images" in saved:
        return tower(jnp.moveaxis(saved["images"], 1, -1)).pooled
    return tower(saved["tokens"], saved["mask"]).pooled


@pytest.mark.parametrize("name", NAMES)
def test_features_are_the_librarys_and_survive_an_export(name: str, tmp_path: Path) -> None:
    saved = dict(np.load(FAMILIES / name / "outputs.npz"))
    tower = from_pretrained(FAMILIES / name)
    assert not isinstance(tower, DualEncoder)
    found = features(tower, saved)
    np.testing.assert_allclose(found, saved["features"], atol=1e-5 * np.abs(found).max())
    assert tower.width == found.shape[1]
    export_tower(tower, tmp_path / "out")
    again = features(from_pretrained(tmp_path / "out"), saved)
    np.testing.assert_allclose(again, found, atol=1e-6 * np.abs(found).max())


@pytest.mark.parametrize("name", ["siglip_vision", "dinov2", "modernbert", "deberta", "convnext"])
def test_gradients_and_recomputation(name: str) -> None:
    """Every weight matters, and recomputing activations changes nothing."""
    saved = dict(np.load(FAMILIES / name / "outputs.npz"))
    gradients = []
    for remat in (False, True):
        model, params = nnx.split(from_pretrained(FAMILIES / name, remat=remat), nnx.Param)[:2]

        def loss(params: nnx.State, model: nnx.GraphDef = model) -> jax.Array:
            return jnp.sum(jnp.square(features(nnx.merge(model, params), saved)))

        gradients.append(nnx.to_pure_dict(jax.jit(jax.grad(loss))(params)))
    for first, second in zip(*map(jax.tree.leaves, gradients), strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-3, atol=1e-3 * np.abs(first).max())
    largest = max(float(np.abs(x).max()) for x in jax.tree.leaves(gradients[0]))
    paths = jax.tree_util.tree_leaves_with_path(gradients[0])
    idle = [jax.tree_util.keystr(path) for path, x in paths if np.abs(x).max() < 1e-9 * largest]
    # A softmax does not see what is added to all of its scores.
    assert all("key" in path and "bias" in path for path in idle), idle


@pytest.mark.parametrize("name", ["bert", "clip_text", "deberta", "modernbert", "mpnet", "roberta"])
def test_padding_behind_a_text_changes_nothing(name: str) -> None:
    shape = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 20}
    tower = create_text_tower(name, rngs=nnx.Rngs(0), num_hidden_layers=1, **shape)
    assert tower.ignores_padding
    tokens = np.array([[3, 5, 2, 9], [3, 2, 1, 1]])
    mask = tokens != 1
    longer = [np.pad(array, [(0, 0), (0, 5)]) for array in (tokens, mask)]
    np.testing.assert_allclose(tower(*longer).pooled, tower(tokens, mask).pooled, atol=1e-6)
