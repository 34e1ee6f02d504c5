"""The cross-entropy core: closed forms, temperatures, gradients through keys."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from otter_jax import objectives
from otter_jax.objectives import contrastive


def embeddings(num_pairs: int = 6, seed: int = 0) -> objectives.Embeddings:
    rows = np.random.default_rng(seed).normal(size=(2, num_pairs, 5)).astype(np.float32)
    return objectives.Embeddings(*map(jnp.asarray, rows))


def loss(options: objectives.Options, student=None, teacher=None, log_scale: float = 3.0):
    scales = objectives.LogScales(jnp.float32(log_scale), jnp.float32(log_scale))
    return objectives.total_loss(options, student or embeddings(), teacher, scales)


def test_cross_entropy_of_uniform_logits() -> None:
    target = jnp.eye(7)
    np.testing.assert_allclose(
        contrastive.cross_entropy(jnp.zeros((7, 7)), target), np.log(7), rtol=1e-6
    )


def test_perfect_pairs_cost_nothing() -> None:
    rows = jnp.eye(6)
    value, _ = loss(objectives.make_options("infonce"), objectives.Embeddings(rows, rows), None, 9)
    assert value < 1e-5


@pytest.mark.parametrize("mixed", [False, True])
def test_otter_with_alpha_one_is_infonce(mixed: bool) -> None:
    plain, _ = loss(objectives.make_options("infonce"))
    options = objectives.make_options("otter", alpha=1.0, mixed_target=mixed)
    value, _ = loss(options, teacher=embeddings(seed=1))
    np.testing.assert_allclose(value, plain, rtol=1e-6)


def test_mixed_target_equals_two_losses_at_one_temperature() -> None:
    teacher = embeddings(seed=1)
    two, metrics = loss(objectives.make_options("otter"), teacher=teacher)
    one, _ = loss(objectives.make_options("otter", mixed_target=True), teacher=teacher)
    # KL is the cross-entropy less the target's entropy, here once for each direction.
    np.testing.assert_allclose(one, two + 0.5 * 2 * metrics["target_entropy"], rtol=1e-5)


def test_parts_add_up() -> None:
    value, metrics = loss(objectives.make_options("otter"), teacher=embeddings(seed=1))
    parts = metrics["loss_contrastive"] + metrics["loss_distillation"]
    np.testing.assert_allclose(value, parts, rtol=1e-6)


def test_stopped_keys_leave_each_encoder_its_own_direction() -> None:
    options = objectives.make_options("infonce", stop_gradient_keys=True)
    student = embeddings()
    found = jax.grad(lambda s: loss(options, s)[0])(student)

    def image_to_text(image: jax.Array) -> jax.Array:
        rows = contrastive.normalize(image) @ contrastive.normalize(student.text).T
        return contrastive.cross_entropy(jnp.exp(3.0) * rows, jnp.eye(len(rows)))

    np.testing.assert_allclose(found.image, jax.grad(image_to_text)(student.image), atol=1e-6)


@pytest.mark.parametrize(
    ("log_scale", "scale", "gradient"),
    [(-1.0, 1.0, 0.0), (0.0, 1.0, 1.0), (2.0, np.exp(2.0), np.exp(2.0)), (5.0, 100.0, 0.0)],
)
def test_scale_is_clamped_with_its_gradient(log_scale, scale, gradient) -> None:
    value, slope = jax.value_and_grad(contrastive.scale_from_log)(jnp.float32(log_scale))
    np.testing.assert_allclose([value, slope], [scale, gradient], rtol=1e-6)


def test_losses_stay_in_float32_for_bfloat16_towers() -> None:
    student = objectives.Embeddings(*(x.astype(jnp.bfloat16) for x in embeddings()))
    value, metrics = loss(objectives.make_options("otter"), student, student)
    assert value.dtype == jnp.float32
    assert all(x.dtype == jnp.float32 for x in metrics.values())


def test_zero_row_has_a_finite_gradient() -> None:
    gradient = jax.grad(lambda x: contrastive.normalize(x).sum())(jnp.zeros((1, 3)))
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("clip", {}, "choose from infonce, label_smoothing, kd, otter"),
        ("otter", {"epsilon": 0.0}, r"objective\.epsilon=0\.0"),
        ("otter", {"iterations": 0}, r"objective\.iterations=0"),
        ("kd", {"alpha": 1.5}, r"objective\.alpha=1\.5"),
        ("label_smoothing", {"smoothing": 1.0}, r"objective\.smoothing"),
    ],
)
def test_bad_options_are_named(name: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        objectives.make_options(name, **options)


def test_unset_options_follow_the_method() -> None:
    kd = objectives.make_options("kd", image_weight=None, remove_diagonal=None)
    otter = objectives.make_options("otter", image_weight=None, remove_diagonal=None)
    assert (kd.image_weight, kd.remove_diagonal) == (0.0, False)
    assert (otter.image_weight, otter.remove_diagonal) == (1.0, True)
