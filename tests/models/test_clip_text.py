"""Tests of CLIP's text tower against outputs of transformers and open_clip.

`golden/towers/make_golden_transformers.py` wrote the reference data: a random network of odd sizes
in each library's own form.
"""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from otter_jax.models import bert, clip_text, create_text_tower, from_pretrained
from otter_jax.models.clip_text import PRESETS, ClipText, ClipTextConfig
from otter_jax.models.weights import checkpoint_arrays, recognise_layout

GOLDEN = Path(__file__).parents[1] / "golden" / "towers"
REFERENCE = SimpleNamespace(**runpy.run_path(str(GOLDEN / "make_golden_transformers.py")))
TOKENS, MASK = REFERENCE.text_batch()
LENGTHS = MASK.sum(1)
SMALL_CLIP, OPEN_CLIP = GOLDEN / "small_clip", GOLDEN / "small_open_clip.safetensors"
OPEN_CLIP_HEADS = {"num_attention_heads": 4}  # A state dict does not tell.


@pytest.fixture(scope="module")
def small() -> ClipText:
    return from_pretrained(SMALL_CLIP, tower="text")


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN / "small_clip_text.npz"))


def text_half(folder: Path, prefix: str = "", **changed: Any) -> Path:
    """Write the text half of the small CLIP alone, with other fields in its config.json."""
    saved = json.loads((SMALL_CLIP / "config.json").read_text())["text_config"]
    (folder / "config.json").write_text(json.dumps(saved | changed))
    whole = load_file(SMALL_CLIP / "model.safetensors")
    half = {name: array for name, array in whole.items() if name.startswith("text_model.")}
    half = {name.replace("text_model.", prefix): array for name, array in half.items()}
    save_file(half, folder / "model.safetensors")
    return folder


def gradients_of_cubes(tower: nnx.Module) -> nnx.Module:
    """Return a tower that holds, in place of each parameter, its gradient."""
    graph, params = nnx.split(tower, nnx.Param)

    @jax.jit
    def gradients(params: nnx.State) -> nnx.State:
        return jax.grad(lambda p: jnp.sum(nnx.merge(graph, p)(TOKENS, MASK).pooled ** 3))(params)

    return nnx.merge(graph, gradients(params))


def assert_same_gradients(tower: nnx.Module, golden: dict[str, np.ndarray]):
    layout = recognise_layout(tower, {name.removeprefix("gradient/"): 0 for name in golden})
    gradients = checkpoint_arrays(gradients_of_cubes(tower), layout.names)
    for name, gradient in gradients.items():
        norm = golden[f"gradient/{name}"][0]
        difference = np.abs(REFERENCE.summary(gradient) - golden[f"gradient/{name}"])
        # A key's bias adds the same to all scores of a query, which the softmax takes out again.
        assert difference.max() < 1e-3 * norm + 1e-4, name


def test_outputs_and_gradients_are_those_of_transformers(
    small: ClipText, golden: dict[str, np.ndarray]
):
    pooled, sequence = small(TOKENS, MASK)
    assert pooled.shape == (4, small.width) and pooled.dtype == jnp.float32
    np.testing.assert_allclose(pooled, golden["pooled"], atol=1e-5)
    np.testing.assert_allclose(sequence, golden["sequence"], atol=1e-5)
    assert_same_gradients(small, golden)


def test_projected_outputs_are_those_of_open_clip():
    tower = from_pretrained(OPEN_CLIP, tower="text", **OPEN_CLIP_HEADS)
    assert tower.config == ClipTextConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        vocab_size=97,
        max_position_embeddings=11,
    )
    projected = tower(TOKENS, MASK).pooled @ load_file(OPEN_CLIP)["text_projection"].astype("f4")
    expected = np.load(GOLDEN / "small_open_clip.npz")["text"]
    np.testing.assert_allclose(projected, expected, atol=1e-5)


@pytest.mark.parametrize("prefix", ["module.encode_text.", "text."], ids=["DeCLIP", "open_clip"])
def test_towers_kept_apart_are_read(tmp_path: Path, prefix: str):
    arrays = {
        name if name.startswith(("visual.", "logit_scale")) else f"{prefix}{name}": array
        for name, array in load_file(OPEN_CLIP).items()
    }
    if prefix.startswith("module."):
        arrays = {
            name if name.startswith("module.") else f"module.{name}": a
            for name, a in arrays.items()
        }
        # DeCLIP's projection is a layer with bias, not a matrix.
        matrix = arrays.pop("module.encode_text.text_projection")
        arrays["module.encode_text.text_projection.weight"] = matrix.T.copy()
        arrays["module.encode_text.text_projection.bias"] = np.zeros(20, np.float16)
        arrays["module.projector.linear1.weight"] = np.zeros((3, 20), np.float16)
    save_file(arrays, tmp_path / "apart.safetensors")
    tower = from_pretrained(tmp_path / "apart.safetensors", tower="text", **OPEN_CLIP_HEADS)
    original = from_pretrained(OPEN_CLIP, tower="text", **OPEN_CLIP_HEADS)
    np.testing.assert_array_equal(tower(TOKENS, MASK).pooled, original(TOKENS, MASK).pooled)


@pytest.mark.parametrize("prefix", ["", "text_model."])
def test_text_half_may_stand_alone(tmp_path: Path, golden: dict[str, np.ndarray], prefix: str):
    # The wrong end-of-text id of older files stands for the highest id in the text.
    for changed in ({}, {"eos_token_id": 2}):
        tower = from_pretrained(text_half(tmp_path, prefix, **changed))
        assert tower.config.eos_token_id == (None if changed else REFERENCE.END_OF_TEXT)
        np.testing.assert_allclose(tower(TOKENS, MASK).pooled, golden["pooled"], atol=1e-5)


def test_features_are_those_of_the_first_end_of_text_token(small: ClipText, tmp_path: Path):
    # As Hugging Face's tokenizer pads: with the same token.
    tokens = np.where(MASK, TOKENS, REFERENCE.END_OF_TEXT)
    pooled, sequence = small(tokens, MASK)
    np.testing.assert_array_equal(pooled, sequence[np.arange(4), LENGTHS - 1])
    other = from_pretrained(text_half(tmp_path, eos_token_id=int(TOKENS[0, 4])))
    pooled, sequence = other(TOKENS[:1], MASK[:1])
    np.testing.assert_array_equal(pooled[0], sequence[0, 4])


@settings(max_examples=10, deadline=None)
@given(position=st.integers(1, 10), seed=st.integers(0, 999))
def test_no_token_sees_those_after_it(small: ClipText, position: int, seed: int):
    noise = np.random.default_rng(seed).integers(0, 97, TOKENS.shape, dtype=np.int32)
    changed = np.where(np.arange(11) < position, TOKENS, noise)
    everything = np.ones_like(MASK)
    before = small(TOKENS, everything).sequence
    after = small(changed, everything).sequence
    np.testing.assert_allclose(before[:, :position], after[:, :position], atol=1e-5)
    if np.any(changed[:, position] != TOKENS[:, position]):
        assert np.abs(before[:, position:] - after[:, position:]).max() > 1e-3


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 999), masked=st.booleans())
def test_padding_tokens_never_matter(
    small: ClipText, golden: dict[str, np.ndarray], seed: int, masked: bool
):
    noise = np.random.default_rng(seed).integers(0, 97, TOKENS.shape, dtype=np.int32)
    mask = MASK if masked else np.ones_like(MASK)
    pooled, sequence = small(np.where(MASK, TOKENS, noise), mask)
    np.testing.assert_allclose(pooled, golden["pooled"], atol=1e-5)
    np.testing.assert_allclose(sequence[MASK], golden["sequence"][MASK], atol=1e-5)


def test_length_of_the_padding_does_not_matter(small: ClipText, golden: dict[str, np.ndarray]):
    pooled = small(TOKENS[1:, :7], MASK[1:, :7].astype(np.int32)).pooled
    np.testing.assert_allclose(pooled, golden["pooled"][1:], atol=1e-5)


def test_nothing_attends_to_masked_tokens(small: ClipText):
    mask = np.ones((1, 11), bool)
    mask[0, 3] = False
    changed = TOKENS[:1].copy()
    changed[0, 3] += 1
    before, after = (small(tokens, mask) for tokens in (TOKENS[:1], changed))
    np.testing.assert_array_equal(before.pooled, after.pooled)
    assert np.abs(before.pooled - small(TOKENS[:1], np.ones_like(mask)).pooled).max() > 1e-3


def test_text_without_tokens_gives_finite_features(small: ClipText):
    assert np.all(np.isfinite(small(TOKENS[:1], np.zeros_like(MASK[:1])).pooled))


@pytest.mark.parametrize("rate", ["hidden_dropout_prob", "attention_probs_dropout_prob"])
def test_dropout_needs_training_a_key_and_a_rate(rate: str, golden: dict[str, np.ndarray]):
    key = jax.random.key(0)
    tower = from_pretrained(SMALL_CLIP, tower="text", **{rate: 0.5})
    for arguments in ({"dropout_key": key}, {"train": True}):
        pooled = tower(TOKENS, MASK, **arguments).pooled
        np.testing.assert_allclose(pooled, golden["pooled"], atol=1e-5)
    dropped = tower(TOKENS, MASK, train=True, dropout_key=key).pooled
    assert np.abs(dropped - golden["pooled"]).max() > 0.01
    again = tower(TOKENS, MASK, train=True, dropout_key=key).pooled
    np.testing.assert_array_equal(dropped, again)


def test_dropout_rate_of_config_json_is_kept(tmp_path: Path):
    tower = from_pretrained(text_half(tmp_path, attention_dropout=0.25))
    assert tower.config.attention_probs_dropout_prob == 0.25


def test_bfloat16_computes_nearby_with_float32_parameters(golden: dict[str, np.ndarray]):
    tower = from_pretrained(SMALL_CLIP, tower="text", dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(tower))} == {jnp.dtype("float32")}
    pooled, sequence = tower(TOKENS, MASK)
    assert pooled.dtype == jnp.float32 and sequence.dtype == jnp.bfloat16
    assert 1e-5 < np.abs(pooled - golden["pooled"]).max() < 0.2


# OpenAI's text towers without projection, and DeCLIP's vocabulary with one token more.
@pytest.mark.parametrize(
    ("name", "overrides", "count"),
    [
        ("clip_text", {}, 63_428_096 - 512 * 512),
        ("clip_text", {"vocab_size": 49409}, 63_428_096 - 512 * 512 + 512),
        ("clip_text_l14", {}, 123_650_304 - 768 * 768),
    ],
)
def test_presets_have_the_published_number_of_parameters(
    name: str, overrides: dict[str, int], count: int
):
    config = ClipTextConfig(**{**PRESETS[name].fields, **overrides})
    tower = nnx.eval_shape(lambda: ClipText(config, rngs=nnx.Rngs(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(tower, nnx.Param))) == count


def test_presets_are_made_by_name():
    shape = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 97}
    tower = create_text_tower("clip_text", rngs=nnx.Rngs(0), num_hidden_layers=1, **shape)
    assert isinstance(tower, ClipText) and tower(TOKENS, MASK).sequence.shape == (4, 11, 16)


def test_too_long_texts_are_refused(small: ClipText):
    with pytest.raises(ValueError, match="texts have 14 tokens; this ClipText takes at most 13"):
        small(np.zeros((1, 14), np.int32), np.ones((1, 14), bool))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_act": "silu"}, r"ClipTextConfig's hidden_act is 'silu'; it must be one of"),
        ({"num_attention_heads": 7}, "hidden_size 512 does not divide into 7 attention heads"),
        ({"eos_token_id": [1, 2]}, r"eos_token_id is \[1, 2\]; it must be one token id, or None"),
    ],
)
def test_what_this_tower_cannot_compute_is_refused(fields: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        ClipTextConfig(**fields)


@pytest.mark.oracle
@pytest.mark.parametrize("half", ["text_model", None], ids=["text half", "both halves"])
def test_clips_saved_by_live_transformers_are_the_same(tmp_path: Path, half: str | None):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    changed = {"hidden_act": "quick_gelu", "intermediate_size": 72, "num_hidden_layers": 2}
    network = REFERENCE.hugging_face_clip({}, changed)
    (getattr(network, half) if half else network).save_pretrained(tmp_path)
    golden = REFERENCE.hugging_face_text_outputs(network.text_model, TOKENS, MASK)
    tower = from_pretrained(tmp_path, tower="text")
    np.testing.assert_allclose(tower(TOKENS, MASK).pooled, golden["pooled"], atol=1e-5)
    np.testing.assert_allclose(tower(TOKENS, MASK).sequence, golden["sequence"], atol=1e-5)
    assert_same_gradients(tower, golden)


def small_text(**fields: Any) -> ClipText:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 8, "vocab_size": 20, "max_position_embeddings": 6}
    return ClipText(ClipTextConfig(**sizes, **fields), rngs=nnx.Rngs(0))


@pytest.mark.parametrize("causal", [True, False])
def test_the_last_position_sees_padding(causal: bool) -> None:
    """As SigLIP and CLIPA were trained: what fills a text up to its length counts."""
    tower = small_text(pooling="last", causal=causal)
    tokens = np.array([[1, 5, 2, 0, 0, 0]])
    mask = tokens > 0
    pooled, states = tower(tokens, mask)
    np.testing.assert_array_equal(pooled, states[:, -1])
    np.testing.assert_array_equal(pooled, tower(tokens, np.ones_like(mask)).pooled)
    others = np.array([[1, 5, 2, 3, 3, 0]])
    assert np.abs(tower(others, others > 0).pooled - pooled).max() > 1e-3
    with pytest.raises(ValueError, match=r"looks at the last of 6 positions.*max_tokens=6"):
        tower(tokens[:, :5], mask[:, :5])


def test_first_position_and_unknown_ones() -> None:
    tower = small_text(pooling="first", causal=False)
    tokens = np.array([[1, 5, 2, 0]])
    pooled, states = tower(tokens, tokens > 0)
    np.testing.assert_array_equal(pooled, states[:, 0])
    with pytest.raises(ValueError, match="pooling is 'mean'; it must be 'eos', 'last' or 'first'"):
        small_text(pooling="mean")


def test_positions_are_stretched_as_long_clip_does() -> None:
    """The first 20 stay; each of the others becomes four, the last by the slope before it."""
    config = clip_text.ClipTextConfig(hidden_size=8, num_attention_heads=1, num_hidden_layers=1)
    tower = clip_text.ClipText(config, rngs=nnx.Rngs(0))
    old = np.asarray(tower.position_embeddings[...], np.float64)
    wanted = list(old[:20])
    for place in range(20, 77):
        one, other = old[place : place + 2] if place < 76 else (old[76], 2 * old[76] - old[75])
        wanted += [one + part * (other - one) for part in (0, 0.25, 0.5, 0.75)]
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 9, size=(2, 20)), jnp.int32)
    before = tower(tokens, jnp.ones((2, 20), bool)).pooled
    clip_text.stretch_positions(tower, 248)
    np.testing.assert_allclose(tower.position_embeddings[...], np.stack(wanted), atol=1e-6)
    np.testing.assert_array_equal(tower(tokens, jnp.ones((2, 20), bool)).pooled, before)
    longer = jnp.zeros((1, 248), jnp.int32)
    assert tower(longer, jnp.ones((1, 248), bool)).pooled.shape == (1, 8)


def test_what_cannot_be_stretched_is_refused() -> None:
    tower = clip_text.ClipText(
        clip_text.ClipTextConfig(hidden_size=8, num_attention_heads=1, num_hidden_layers=1),
        rngs=nnx.Rngs(0),
    )
    with pytest.raises(ValueError, match=r"positions=77: the tower has 77; more than these"):
        clip_text.stretch_positions(tower, 77)
    other = bert.Bert(
        bert.BertConfig(hidden_size=8, num_attention_heads=1, num_hidden_layers=1),
        rngs=nnx.Rngs(0),
    )
    with pytest.raises(ValueError, match=r"Bert has another kind of positions"):
        clip_text.stretch_positions(other, 600)
