"""Equal layers as one loop have the numbers, gradients and statistics of layers one by one."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from otter_jax.models import bert, clip_text, layers, lora, resnet, vit

TRANSFORMER = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
               "intermediate_size": 16, "hidden_dropout_prob": 0.3,
               "attention_probs_dropout_prob": 0.3}  # fmt: skip
TEXT = TRANSFORMER | {"vocab_size": 16, "max_position_embeddings": 8}
IMAGE = TRANSFORMER | {"image_size": 16, "patch_size": 8}
STAGES = {"depths": (3, 1, 2), "stem_width": 8, "stage_widths": (8, 8, 16)}
# A tower, its configuration, and how many layers each of its loops has.
CASES = {
    "bert": (bert.Bert, bert.BertConfig(**TEXT), [2]),
    "albert": (bert.Albert, bert.AlbertConfig(**TEXT | {"embedding_size": 4}), [2]),
    "clip_text": (clip_text.ClipText, clip_text.ClipTextConfig(**TEXT), [2]),
    "vit": (vit.ViT, vit.ViTConfig(**IMAGE, remat=True), [2]),
    # Layers that are dropped with different probabilities are different.
    "stochastic": (vit.ViT, vit.ViTConfig(**IMAGE, stochastic_depth_rate=0.3), []),
    # A block that changes the size stands alone, and so does the one after it in a stage of two.
    "resnet": (resnet.ResNet, resnet.ResNetConfig(block="basic", **STAGES), [3]),
}


def towers(name: str) -> list[nnx.Module]:
    """The same tower with layers one by one, and in loops."""
    kind, config, _ = CASES[name]
    return [
        kind(dataclasses.replace(config, scan_layers=scan), rngs=nnx.Rngs(0))
        for scan in (False, True)
    ]


def inputs(tower: nnx.Module) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(0)
    if hasattr(tower.config, "vocab_size"):
        return rng.integers(1, 16, (4, 6)), np.arange(6) < rng.integers(3, 7, (4, 1))
    return (rng.normal(size=(4, 16, 16, 3)).astype(np.float32),)


def trained(tower: nnx.Module, keys: jax.Array) -> Any:
    """A loss with its gradients, and the batch statistics afterwards."""
    definition, params, rest = nnx.split(tower, nnx.Param, ...)
    weights = np.random.default_rng(1).normal(size=(4, tower.width))

    def loss(params: nnx.State) -> tuple[jax.Array, nnx.State]:
        bound = nnx.merge(definition, params, rest, copy=True)
        lora.set_dropout_key(bound, keys)
        pooled = bound(*inputs(tower), train=True, dropout_key=keys).pooled
        return jnp.sum(pooled * weights), nnx.state(bound, nnx.BatchStat)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)


def assert_same(found: Any, wanted: Any) -> None:
    for (path, a), b in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(wanted), strict=True):
        scale = np.abs(b).max()
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6 * max(scale, 1.0), err_msg=str(path))


# All compile, and so take seconds each; a tower with nothing of its own in a loop is slow.
@pytest.mark.parametrize(
    "name",
    [
        *("bert", "vit", "resnet"),
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("albert", "clip_text", "stochastic")),
    ],
)
def test_loops_have_the_same_numbers(name: str) -> None:
    plain, scanned = towers(name)
    key = jax.random.split(jax.random.key(2), 4)  # A key for each row.
    assert_same(trained(scanned, key), trained(plain, key))


@pytest.mark.parametrize("name", CASES)
def test_equal_layers_are_compiled_once(name: str) -> None:
    _, scanned = towers(name)
    definition, state = nnx.split(scanned)

    def run(state: nnx.State) -> jax.Array:
        return nnx.merge(definition, state, copy=True)(*inputs(scanned)).pooled

    program = jax.make_jaxpr(run)(state)
    loops = [each.params["length"] for each in program.eqns if each.primitive.name == "scan"]
    assert loops == CASES[name][2]
    with layers.portable_operations():  # What is exported has no loops.
        exported = jax.make_jaxpr(lambda state: run(state))(state)  # JAX has kept the other.
    assert "scan" not in {each.primitive.name for each in exported.eqns}


@pytest.mark.slow
def test_low_rank_updates_are_dropped_by_the_same_keys() -> None:
    plain, scanned = towers("bert")
    settings = lora.Lora(rank=2, alpha=2.0, dropout=0.5, layers="attention")
    for tower in (plain, scanned):
        lora.add(tower, settings, rngs=nnx.Rngs(1))
        for number, (path, value) in enumerate(nnx.iter_graph(tower)):
            if path and path[-1] == "lora_b" and isinstance(value, nnx.Param):
                value[...] = jnp.full(value.shape, 0.1 + 0.001 * number)
    key = jax.random.split(jax.random.key(3), 4)
    assert_same(trained(scanned, key), trained(plain, key))
