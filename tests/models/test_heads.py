"""The heads of self-supervision against their definition in float64."""

import jax
import numpy as np
from flax import nnx

from otter_jax.models import heads


def rows(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def definition(head: heads.HeadPerceptron, x: np.ndarray, norm_output: bool) -> np.ndarray:
    """Linear, batch norm with the batch's statistics, ReLU; the last layer without ReLU."""
    x = x.astype(np.float64)
    for index, layer in enumerate(head.layers):
        last = index == len(head.layers) - 1
        x = x @ np.asarray(layer.kernel[...], np.float64) + np.asarray(layer.bias[...])
        if norm_output or not last:
            x = (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + head.norms[index].epsilon)
        if not last:
            x = np.maximum(x, 0)
    return x


def test_perceptron_is_its_definition() -> None:
    for norm_output in (True, False):
        head = heads.HeadPerceptron([5, 7, 6, 4], norm_output=norm_output, rngs=nnx.Rngs(0))
        x = rows(16, 5)
        np.testing.assert_allclose(head(x, True), definition(head, x, norm_output), atol=1e-4)


def test_simsiam_has_the_released_sizes() -> None:
    head = nnx.eval_shape(lambda: heads.SimSiamHead(512, rngs=nnx.Rngs(0)))
    sizes = {
        name: [(layer.in_features, layer.out_features) for layer in perceptron.layers]
        for name, perceptron in (("projector", head.projector), ("predictor", head.predictor))
    }
    assert sizes == {
        "projector": [(512, 1024), (1024, 1024), (1024, 1024)],
        "predictor": [(1024, 512), (512, 1024)],
    }
    assert (len(head.projector.norms), len(head.predictor.norms)) == (3, 1)


def test_simsiam_predicts_from_its_projections() -> None:
    head = heads.SimSiamHead(8, rngs=nnx.Rngs(0))
    predictions, projections = head(rows(12, 8), True)
    again = definition(head.predictor, np.asarray(projections), norm_output=False)
    np.testing.assert_allclose(predictions, again, atol=1e-3)


def test_simclr_projects_the_tower_s_features() -> None:
    head = nnx.eval_shape(lambda: heads.SimCLRHead(768, rngs=nnx.Rngs(0)))
    sizes = [(layer.in_features, layer.out_features) for layer in head.projection.layers]
    assert sizes == [(768, 4096), (4096, 4096), (4096, 256)]
    assert len(head.projection.norms) == 2


def test_token_head_scores_the_vocabulary_in_float32() -> None:
    head = heads.TokenHead(6, 11, rngs=nnx.Rngs(0))
    states = rows(3, 4, 6)
    scores = head(jax.numpy.asarray(states, jax.numpy.bfloat16))
    assert scores.shape == (3, 4, 11) and scores.dtype == np.float32
    rounded = np.asarray(jax.numpy.asarray(states, jax.numpy.bfloat16), np.float64)
    wanted = rounded @ np.asarray(head.decoder.kernel[...], np.float64)
    np.testing.assert_allclose(scores, wanted, atol=1e-4)
