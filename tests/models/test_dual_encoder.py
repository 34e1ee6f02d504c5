"""Two towers, projections and scales; taken apart and put together again."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from otter_jax import encoder
from otter_jax.models import dual_encoder


def batch_of(rows: int = 4) -> dict[str, jax.Array]:
    rng = np.random.default_rng(0)
    return {
        "image": jnp.asarray(rng.integers(0, 255, size=(rows, 32, 32, 3)), jnp.uint8),
        "tokens": jnp.asarray(rng.integers(2, 20, size=(rows, 8)), jnp.int32),
        "token_mask": jnp.ones((rows, 8), bool),
    }


def test_functional_form_equals_the_module(tiny_config: Callable) -> None:
    module = encoder.build_module(tiny_config())
    wanted = module(batch_of())
    model, variables = dual_encoder.split(module)
    found, _ = model.embed(variables, batch_of())
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    assert found[0].shape == (4, 8)


def test_same_seed_same_model(tiny_config: Callable) -> None:
    def variables(seed: int) -> dual_encoder.Variables:
        return dual_encoder.split(encoder.build_module(tiny_config(seed=seed)))[1]

    jax.tree.map(np.testing.assert_array_equal, variables(1), variables(1))
    kernels = [variables(seed).params["image_projection"]["kernel"] for seed in (1, 2)]
    assert (kernels[0] != kernels[1]).any()


def test_cached_features_replace_the_towers(tiny_config: Callable) -> None:
    module = encoder.build_module(tiny_config())
    batch = batch_of()
    cached = {
        "image_features": module.image_features(batch["image"]),
        "text_features": module.text_features(batch["tokens"], batch["token_mask"]),
    }
    for found, wanted in zip(module(cached), module(batch), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_training_mode_leaves_the_given_arrays_alone(tiny_config: Callable) -> None:
    model, variables = dual_encoder.split(encoder.build_module(tiny_config()))
    before = jax.device_get(variables.batch_stats)
    _, moved = model.embed(variables, batch_of(), train=True, dropout_key=jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(variables.batch_stats))
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), before, jax.device_get(moved))
    assert any(jax.tree.leaves(changed))


@pytest.mark.parametrize(
    ("kind", "width", "kernels"),
    [("linear", 8, 1), ("linear", 6, 1), ("auto", 8, 0), ("auto", 6, 1), ("mlp", 8, 2)],
)
def test_projections(kind: str, width: int, kernels: int) -> None:
    projection = dual_encoder.make_projection(kind, width, 8, rngs=nnx.Rngs(0))
    matrices = [x for x in jax.tree.leaves(nnx.state(projection, nnx.Param)) if x.ndim == 2]
    assert len(matrices) == kernels
    assert projection(jnp.ones((3, width))).shape == (3, 8)


def test_count() -> None:
    assert dual_encoder.count({"a": jnp.ones((2, 3)), "b": {0: jnp.ones(4)}}) == 10
