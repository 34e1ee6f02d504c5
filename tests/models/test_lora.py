"""Low-rank updates: nothing at first, learned beside a layer that stays, merged in the end."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from otter_jax.models import bert, clip_text, dual_encoder, export, from_pretrained, vit
from otter_jax.models.dual_encoder import TrainableParts
from otter_jax.models.lora import Lora, LoraLinear, add, merge
from otter_jax.models.projections import make_projection

SHAPE = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
TOKENS = jnp.asarray(np.random.default_rng(0).integers(2, 20, size=(4, 8)), jnp.int32)
IMAGES = jnp.asarray(np.random.default_rng(1).integers(0, 255, size=(4, 32, 32, 3)), jnp.uint8)
BATCH = {"image": IMAGES, "tokens": TOKENS, "token_mask": jnp.ones((4, 8), bool)}


def small_model(**parts: TrainableParts) -> dual_encoder.DualEncoder:
    """The same random towers and projections whatever updates they have."""
    rngs = nnx.Rngs(0)
    image = vit.ViT(vit.ViTConfig(image_size=32, patch_size=8, **SHAPE), rngs=rngs)
    config = bert.BertConfig(
        vocab_size=32,
        max_position_embeddings=16,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **SHAPE,
    )
    text = bert.Bert(config, rngs=rngs)
    projections = [make_projection("linear", 16, 8, rngs=rngs) for _ in range(2)]
    return dual_encoder.DualEncoder(image, text, *projections, rngs=nnx.Rngs(1), **parts)


def with_lora(**settings) -> dict[str, TrainableParts]:
    parts = TrainableParts(lora=Lora(rank=4, **settings))
    return {"image_trainable": parts, "text_trainable": parts}


def learn(module: dual_encoder.DualEncoder) -> None:
    """Give all updates some values, as training does."""
    rng = np.random.default_rng(2)
    for _, layer in nnx.iter_modules(module):
        if isinstance(layer, LoraLinear):
            values = rng.normal(scale=0.3, size=layer.lora_b.shape)
            layer.lora_b.set_value(jnp.asarray(values, jnp.float32))


def embed(module: dual_encoder.DualEncoder, batch: dict = BATCH, **how) -> list[np.ndarray]:
    model, variables = dual_encoder.split(module)
    return jax.device_get(jax.jit(lambda *a: model.embed(*a, **how)[0])(variables, batch))


def test_training_starts_at_the_towers_themselves() -> None:
    for found, wanted in zip(embed(small_model(**with_lora())), embed(small_model()), strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_merged_layers_give_the_same_embeddings(tmp_path: Path) -> None:
    module = small_model(**with_lora(alpha=3.0))
    learn(module)
    wanted = embed(module)
    assert abs(wanted[0] - embed(small_model())[0]).max() > 1e-2
    plain = merge(module)
    assert not any(isinstance(layer, LoraLinear) for _, layer in nnx.iter_modules(plain))
    assert any(isinstance(layer, LoraLinear) for _, layer in nnx.iter_modules(module))
    export.export_dual_encoder(module, tmp_path / "model")
    for each in (plain, from_pretrained(tmp_path / "model")):
        for found, expected in zip(embed(each), wanted, strict=True):
            np.testing.assert_allclose(found, expected, atol=1e-6 * abs(expected).max())


@pytest.mark.parametrize("trainable", [None, "norm"])
def test_updates_are_trained_and_the_layers_are_not(trainable: str | None) -> None:
    parts = TrainableParts(lora=Lora(rank=4, layers="query|value"), trainable=trainable)
    _, variables = dual_encoder.split(small_model(text_trainable=parts))
    paths = [
        jax.tree_util.keystr(path, simple=True, separator=".")
        for path, _ in jax.tree.leaves_with_path(variables.params["text"])
    ]
    updates = [path for path in paths if path.endswith(("lora_a", "lora_b"))]
    assert len(updates) == 2 * 2  # Query and value, A and B.
    assert set(paths) - set(updates) == {path for path in paths if trainable and "norm" in path}
    assert ("text_projection" in variables.params) == (trainable is None)


def test_inputs_of_a_row_are_dropped_whatever_rows_are_beside_it() -> None:
    module = small_model(**with_lora(dropout=0.5))
    learn(module)
    keys = jax.random.split(jax.random.key(0), 4)
    whole = embed(module, train=True, dropout_key=keys)
    rows = {name: array[1:3] for name, array in BATCH.items()}
    part = embed(module, rows, train=True, dropout_key=keys[1:3])
    np.testing.assert_allclose(whole[1][1:3], part[1], atol=1e-6)
    assert abs(whole[1] - embed(module)[1]).max() > 1e-3  # Evaluation drops nothing.


def test_inputs_are_dropped_of_masked_texts_too() -> None:
    module = small_model(**with_lora(dropout=0.5))
    learn(module)
    masked = BATCH | {"masked_tokens": TOKENS, "masked_positions": jnp.zeros((4, 1), jnp.int32)}
    keys = jax.random.split(jax.random.key(0), 4)
    # Masking hid nothing here: the texts, and what is drawn for them, are those of the plain view.
    wanted = embed(module, train=True, dropout_key=keys)[1]
    found = module.views(masked, train=True, dropout_key=keys)["text"]
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_remat_gives_the_same_gradients() -> None:
    def gradient(remat: bool):
        module = small_model(**with_lora(dropout=0.5))
        for layer in (module.image, module.text):
            layer.config = type(layer.config)(**vars(layer.config) | {"remat": remat})
        learn(module)
        model, variables = dual_encoder.split(module)
        keys = jax.random.split(jax.random.key(0), 4)

        def loss(params):
            (image, text), _ = model.embed(
                variables._replace(params=params), BATCH, train=True, dropout_key=keys
            )
            return jnp.sum(image * text)

        return jax.jit(jax.grad(loss))(variables.params)

    for found, wanted in zip(*map(jax.tree.leaves, (gradient(True), gradient(False))), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5 * abs(wanted).max())


def test_rank_8_trains_less_than_3_percent_of_a_clip() -> None:
    """State in training is parameters, two moments and a teacher of each that is trained."""

    def trained(parts: TrainableParts) -> int:
        def make() -> dual_encoder.DualEncoder:
            rngs = nnx.Rngs(0)
            fields = {"pre_norm": True, "patch_bias": False}
            image = vit.ViT(vit.ViTConfig(image_size=224, patch_size=32, **fields), rngs=rngs)
            text = clip_text.ClipText(clip_text.ClipTextConfig(), rngs=rngs)
            projections = [
                make_projection("linear_no_bias", tower.width, 512, rngs=rngs)
                for tower in (image, text)
            ]
            return dual_encoder.DualEncoder(
                image, text, *projections, image_trainable=parts, text_trainable=parts
            )

        return dual_encoder.count(dual_encoder.split_shapes(make)[1].params)

    whole, updates = trained(TrainableParts()), trained(TrainableParts(lora=Lora(rank=8)))
    assert whole > 150e6  # ViT-B/32's CLIP.
    assert updates < 0.03 * whole


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rank": 4, "layers": "nothing"}, "Bert has no linear layer with 'nothing' in its path; "),
        ({"rank": 17}, "LoRA's rank 17 is above the width of layers.0.*, a layer with 16 inputs"),
    ],
)
def test_impossible_updates_are_refused(settings: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        add(small_model().text, Lora(**settings), rngs=nnx.Rngs(0))


def test_a_tower_without_linear_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="Module has no linear layers; choose another tower"):
        add(nnx.Module(), Lora(rank=4), rngs=nnx.Rngs(0))


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="frozen, or has trained low-rank updates"):
        TrainableParts(frozen=True, lora=Lora(rank=4))
    for settings in ({"rank": 0}, {"rank": 1, "alpha": 0.0}, {"rank": 1, "dropout": 1.0}):
        with pytest.raises(ValueError, match="rank must be at least 1"):
            Lora(**settings)
    with pytest.raises(ValueError, match="no regular expression"):
        Lora(rank=1, layers="(")
