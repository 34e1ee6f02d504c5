"""Two towers, projections and scales; taken apart and put together again."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from otter_jax.embedding import encoder
from otter_jax.models import dual_encoder
from otter_jax.training.optimizers import make_optimizer, make_schedule


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


def paths(arrays: dict) -> set[str]:
    found, _ = jax.tree_util.tree_flatten_with_path(arrays)
    return {jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in found}


def test_a_pattern_divides_the_parameters(tiny_config: Callable) -> None:
    everything = dual_encoder.split(encoder.build_module(tiny_config()))[1]
    pattern = r"blocks\.1|^projection"
    config = tiny_config(**{"model.image.trainable": pattern})
    _, variables = dual_encoder.split(encoder.build_module(config))
    trained, kept = paths(variables.params), paths(variables.frozen)
    assert trained | kept == paths(everything.params) and not trained & kept
    image = {name for name in trained if name.startswith("image")}
    assert {"image_projection.kernel", "image_projection.bias"} < image
    inside = {name for name in image if not name.startswith("image_projection")}
    assert inside and all(name.startswith("image.blocks.1.") for name in inside)
    assert kept and all(name.startswith("image.") for name in kept)  # Of the text side nothing.


def test_without_the_word_projection_it_is_locked(tiny_config: Callable) -> None:
    config = tiny_config(**{"model.image.trainable": "head", "model.text.trainable": "projection"})
    _, variables = dual_encoder.split(encoder.build_module(config))
    assert {"image_projection.kernel", "text.word_embeddings.embedding"} < paths(variables.frozen)
    wanted = {"text_projection.kernel", "text_projection.bias"}
    assert {name for name in paths(variables.params) if name.startswith("text")} == wanted


def test_a_pattern_without_a_parameter_is_refused_with_some_names(tiny_config: Callable) -> None:
    config = tiny_config(**{"model.text.trainable": "layer4"})
    with pytest.raises(ValueError, match=r"text tower has no .*'layer4' in .*: .*embedding.*, "):
        encoder.build_module(config)


def test_locks_that_contradict_themselves_are_refused() -> None:
    with pytest.raises(ValueError, match="frozen, or trainable in part"):
        dual_encoder.TrainableParts(frozen=True, trainable="head")
    with pytest.raises(ValueError, match=r"trainable='\(' is no regular expression"):
        dual_encoder.TrainableParts(trainable="(")


def test_sides_of_other_sizes_do_not_meet(tiny_config: Callable) -> None:
    module = encoder.build_module(tiny_config())
    text = nnx.Linear(16, 5, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="have 8 numbers and the text side's 5"):
        dual_encoder.DualEncoder(module.image, module.text, module.image_projection, text)


@pytest.mark.parametrize(
    ("settings", "moves"),
    [
        ({"trainable": "projection"}, True),  # As OTTER's released lock.
        ({"trainable": "projection", "keep_batch_stats": True}, False),
        ({"keep_batch_stats": True}, False),
        ({"frozen": True}, False),
    ],
)
def test_batch_statistics_move_unless_kept(
    tiny_config: Callable, settings: dict[str, object], moves: bool
) -> None:
    config = tiny_config(**{f"model.image.{key}": value for key, value in settings.items()})
    model, variables = dual_encoder.split(encoder.build_module(config))
    embed = jax.jit(model.embed, static_argnames="train")
    (image, _), moved = embed(variables, batch_of(), train=True)
    same = jax.tree.map(lambda a, b: bool((a == b).all()), variables.batch_stats, moved)
    assert all(jax.tree.leaves(same)) != moves
    evaluated = embed(variables, batch_of(), train=False)[0][0]
    if not moves:  # No stochastic depth without a key: the same numbers as in evaluation.
        np.testing.assert_allclose(image, evaluated, rtol=1e-5, atol=1e-6)
    else:
        assert np.abs(np.asarray(image - evaluated)).max() > 1e-3


def test_kept_statistics_do_not_stop_stochastic_depth(tiny_config: Callable) -> None:
    config = tiny_config(**{"model.image.keep_batch_stats": True})
    with config.unlocked():
        config.model.image.overrides.stochastic_depth_rate = 0.9
        config.model.image.overrides.num_stages = 3
    model, variables = dual_encoder.split(encoder.build_module(config))
    run = jax.jit(lambda key: model.embed(variables, batch_of(), train=True, dropout_key=key)[0][0])
    embed = [run(jax.random.key(seed)) for seed in (0, 1)]
    assert np.abs(np.asarray(embed[0] - embed[1])).max() > 1e-4


def test_locked_parameters_have_neither_gradient_nor_optimizer_state(tiny_config: Callable) -> None:
    config = tiny_config(**{"model.image.trainable": "projection", "optimizer.name": "adamw"})
    model, variables = dual_encoder.split(encoder.build_module(config))
    optimizer = make_optimizer(config, make_schedule(config, 6))
    moments = optimizer.init(variables.params)
    sizes = sum(leaf.size for leaf in jax.tree.leaves(moments) if leaf.ndim)
    assert sizes == 2 * dual_encoder.count(jax.tree.map(
        lambda x: x if x.ndim else jnp.zeros((0,)), variables.params))  # fmt: skip

    @jax.jit
    @jax.grad
    def gradient(params: dict) -> jax.Array:
        return model.embed(variables._replace(params=params), batch_of())[0][0].sum()

    gradients = gradient(variables.params)
    assert "image" not in gradients and np.any(gradients["image_projection"]["kernel"])


def test_half_precision_towers_keep_float32_parameters(tiny_config: Callable) -> None:
    config = tiny_config(**{"model.dtype": "bfloat16"})
    module = encoder.build_module(config)
    _, variables = dual_encoder.split(module)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    output = module.text(batch_of()["tokens"], batch_of()["token_mask"])
    assert output.sequence.dtype == jnp.bfloat16 and output.pooled.dtype == jnp.float32


def test_rematerialisation_changes_no_number(tiny_config: Callable) -> None:
    gradients = []
    for remat in (False, True):
        config = tiny_config(**{"model.text.remat": remat})
        model, variables = dual_encoder.split(encoder.build_module(config))
        assert model.bind(variables).text.config.remat is remat

        def loss(params: dict, model: object = model, variables: object = variables) -> jax.Array:
            return (model.embed(variables._replace(params=params), batch_of())[0][1] ** 2).sum()

        gradients.append(jax.jit(jax.grad(loss))(variables.params)["text"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *gradients)


def test_count() -> None:
    assert dual_encoder.count({"a": jnp.ones((2, 3)), "b": {0: jnp.ones(4)}}) == 10


def declip_batch() -> dict[str, jax.Array]:
    """Two views of everything, and masked tokens."""
    batch, other = batch_of(), batch_of()
    masked = batch["tokens"].at[:, 1].set(21)
    return batch | {
        "image2": batch["image"][::-1],
        "tokens2": other["tokens"][::-1],
        "token_mask2": other["token_mask"],
        "masked_tokens": masked,
        "masked_positions": jnp.ones((4, 2), jnp.int32),
        "masked_labels": batch["tokens"][:, 1:3],
    }


def test_views_are_what_the_towers_make_of_each(tiny_config: Callable) -> None:
    module = encoder.build_module(tiny_config(**{"objective.name": "declip"}))
    batch = declip_batch()
    views = module.views(batch)
    image, text = module(batch)
    np.testing.assert_allclose(views["image"], image, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(views["image2"], image[::-1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(views["text2"], text[::-1], rtol=1e-5, atol=1e-6)
    _, masked = module(batch | {"tokens": batch["masked_tokens"]})
    np.testing.assert_allclose(views["text"], masked, rtol=1e-5, atol=1e-6)
    predictions, projections = module.simsiam(image, False)
    np.testing.assert_allclose(views["p1"], predictions, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(views["z1"], projections, rtol=1e-4, atol=1e-5)


def test_tokens_are_predicted_where_they_are_masked(tiny_config: Callable) -> None:
    module = encoder.build_module(tiny_config(**{"objective.name": "declip"}))
    batch = declip_batch()
    states = module.text(batch["masked_tokens"], batch["token_mask"]).sequence
    scores = module.views(batch)["mlm_logits"]
    assert scores.shape == (4, 2, 32)
    np.testing.assert_allclose(scores[:, 0], module.tokens(states[:, 1]), rtol=1e-4, atol=1e-5)


def test_a_tower_with_a_head_for_tokens_gets_no_other(tiny_config: Callable) -> None:
    config = tiny_config(**{"objective.name": "declip"})
    with config.unlocked():
        config.model.text.overrides.mlm_head = True
    module = encoder.build_module(config)
    assert not hasattr(module, "tokens")
    batch = declip_batch()
    states = module.text(batch["masked_tokens"], batch["token_mask"]).sequence
    wanted = module.text.predict_tokens(states[:, 1])
    np.testing.assert_allclose(module.views(batch)["mlm_logits"][:, 0], wanted, rtol=1e-4)


def test_slip_projects_its_further_views_before_the_projection(tiny_config: Callable) -> None:
    module = encoder.build_module(tiny_config(**{"objective.name": "slip"}))
    batch = batch_of()
    views = module.views(batch | {"image2": batch["image"], "image3": batch["image"][::-1]})
    assert set(views) == {"image", "text", "simclr1", "simclr2"}
    wanted = module.simclr(module.image_features(batch["image"]), False)
    np.testing.assert_allclose(views["simclr1"], wanted, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(views["simclr2"], wanted[::-1], rtol=1e-4, atol=1e-4)
