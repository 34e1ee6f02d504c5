"""Tests of the ResNet towers against outputs of PyTorch networks.

`golden/towers/make_golden_resnet.py` wrote the reference data: timm's ResNets of both blocks,
Hugging Face's, and open_clip's modified ResNet, all small with random weights.
"""

import math
import runpy
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from otter_jax.models.pretrained import IMAGE_TOWERS, create_image_tower, from_pretrained
from otter_jax.models.resnet import ClipResNetConfig, ResNetConfig
from otter_jax.models.weights import load_weights, recognise_layout

GOLDEN = Path(__file__).parents[1] / "golden" / "towers"
REFERENCE = SimpleNamespace(**runpy.run_path(str(GOLDEN / "make_golden_resnet.py")))
# File or folder of the weights, size of the images, fields that the file does not tell.
CASES = {
    "basic": ("small_resnet_basic.pth", 49, {}),
    "bottleneck": ("small_resnet_bottleneck.pth", 50, {}),
    "hugging_face": ("small_resnet", 49, {}),
    "clip": ("small_clip_resnet.pth", REFERENCE.IMAGE_SIZE, {"num_heads": 4}),
}


def load(case: str, **overrides: object) -> nnx.Module:
    path, _, fields = CASES[case]
    return from_pretrained(GOLDEN / path, **(fields | overrides))


def golden(case: str) -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN / f"{Path(CASES[case][0]).stem}.npz"))


def images(case: str) -> np.ndarray:
    return REFERENCE.synthetic_images(3, CASES[case][1])


def train_once(tower: nnx.Module, batch: np.ndarray) -> tuple[jax.Array, nnx.State, nnx.State]:
    """Return the features, the gradients of their sum of squares, and the running statistics."""
    graph, params, statistics = nnx.split(tower, nnx.Param, nnx.BatchStat)

    @jax.jit
    def step(params: nnx.State, statistics: nnx.State):
        def loss(params: nnx.State):
            tower = nnx.merge(graph, params, statistics, copy=True)
            features = tower(batch, train=True).pooled
            return jnp.sum(features**2), (features, nnx.state(tower, nnx.BatchStat))

        return jax.grad(loss, has_aux=True)(params)

    gradients, (features, statistics) = step(params, statistics)
    return features, gradients, statistics


@pytest.mark.parametrize("case", CASES)
def test_features_are_those_of_the_original(case: str):
    output = load(case)(images(case))
    assert output.pooled.dtype == jnp.float32
    np.testing.assert_allclose(output.pooled, golden(case)["pooled"], atol=1e-5)
    np.testing.assert_allclose(output.sequence, golden(case)["sequence"], atol=1e-5)


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_a_training_step_is_that_of_the_original(case: str, remat: bool):
    tower, expected = load(case, remat=remat), golden(case)
    features, gradients, statistics = train_once(tower, images(case))
    np.testing.assert_allclose(features, expected["trained"], atol=1e-4)
    # PyTorch's gradients and statistics, loaded like weights, stand where ours should be.
    after = {k.removeprefix("after/"): v for k, v in expected.items() if k.startswith("after/")}
    load_weights(tower, after)
    for ours, theirs in (
        (gradients, nnx.state(tower, nnx.Param)),
        (statistics, nnx.state(tower, nnx.BatchStat)),
    ):
        for (path, value), wanted in zip(
            nnx.to_flat_state(ours), jax.tree.leaves(theirs), strict=True
        ):
            wanted = np.asarray(wanted)
            tolerance = 1e-3 * np.abs(wanted).max() + 1e-6
            np.testing.assert_allclose(value[...], wanted, atol=tolerance, err_msg=str(path))
