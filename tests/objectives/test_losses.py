"""The loss of a batch: how methods relate, what it reports, what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh

from otter_jax import objectives, sharding
from otter_jax.objectives import contrastive


def embeddings(num_pairs: int = 6, seed: int = 0) -> objectives.Embeddings:
    rows = np.random.default_rng(seed).normal(size=(2, num_pairs, 5)).astype(np.float32)
    return objectives.Embeddings(*map(jnp.asarray, rows))


def loss(
    options: objectives.Method, student=None, teacher=None, log_scale: float = 3.0, trust=None
):
    scales = objectives.LogScales(jnp.float32(log_scale), jnp.float32(log_scale))
    return objectives.total_loss(options, student or embeddings(), teacher, scales, trust=trust)


def test_perfect_pairs_cost_nothing() -> None:
    rows = jnp.eye(6)
    value, _ = loss(objectives.make_method("infonce"), objectives.Embeddings(rows, rows), None, 9)
    assert value < 1e-5


@pytest.mark.parametrize("mixed", [False, True])
def test_otter_with_alpha_one_is_infonce(mixed: bool) -> None:
    plain, _ = loss(objectives.make_method("infonce"))
    options = objectives.make_method("otter", alpha=1.0, mixed_target=mixed)
    value, _ = loss(options, teacher=embeddings(seed=1))
    np.testing.assert_allclose(value, plain, rtol=1e-6)


def test_mixed_target_equals_two_losses_at_one_temperature() -> None:
    teacher = embeddings(seed=1)
    two, metrics = loss(objectives.make_method("otter"), teacher=teacher)
    one, _ = loss(objectives.make_method("otter", mixed_target=True), teacher=teacher)
    # KL is the cross-entropy less the target's entropy, here once for each direction.
    np.testing.assert_allclose(one, two + 0.5 * 2 * metrics["target_entropy"], rtol=1e-5)


def test_parts_add_up() -> None:
    value, metrics = loss(objectives.make_method("otter"), teacher=embeddings(seed=1))
    parts = metrics["loss_contrastive"] + metrics["loss_distillation"]
    np.testing.assert_allclose(value, parts, rtol=1e-6)


def test_stopped_keys_leave_each_encoder_its_own_direction() -> None:
    options = objectives.make_method("infonce", stop_gradient_keys=True)
    student = embeddings()
    found = jax.grad(lambda s: loss(options, s)[0])(student)

    def image_to_text(image: jax.Array) -> jax.Array:
        rows = contrastive.normalize(image) @ contrastive.normalize(student.text).T
        return contrastive.cross_entropy(jnp.exp(3.0) * rows, jnp.eye(len(rows))).mean()

    np.testing.assert_allclose(found.image, jax.grad(image_to_text)(student.image), atol=1e-6)


def test_losses_stay_in_float32_for_bfloat16_towers() -> None:
    student = objectives.Embeddings(*(x.astype(jnp.bfloat16) for x in embeddings()))
    value, metrics = loss(objectives.make_method("otter"), student, student)
    assert value.dtype == jnp.float32
    assert all(x.dtype == jnp.float32 for x in metrics.values())


def test_label_smoothing_by_nothing_is_infonce() -> None:
    plain, _ = loss(objectives.make_method("infonce"))
    smoothed, _ = loss(objectives.make_method("label_smoothing", smoothing=0.0))
    np.testing.assert_allclose(smoothed, plain, rtol=1e-6)


@pytest.mark.parametrize("tile", [None, 4])
def test_sigmoid_loss_is_that_of_its_paper(tile: int | None) -> None:
    """Against the published sum over pairs, in float64, and its gradient by differences."""
    student = embeddings(num_pairs=6)
    options = objectives.make_method("sigmoid", tile=tile)

    def reference(image: np.ndarray, text: np.ndarray, bias: float = -10.0) -> float:
        rows = [np.asarray(x, np.float64) for x in (image, text)]
        unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in rows]
        signs = 2 * np.eye(6) - 1
        logits = signs * (np.exp(np.float64(np.float32(2.3))) * unit[0] @ unit[1].T + bias)
        return float(np.log1p(np.exp(-logits)).sum() / 6)

    def value(student: objectives.Embeddings, bias: jax.Array) -> jax.Array:
        scales = objectives.LogScales(jnp.float32(2.3), jnp.float32(0.0), bias)
        return objectives.total_loss(options, student, None, scales)[0]

    found, (gradient, by_bias) = jax.value_and_grad(value, (0, 1))(student, jnp.float32(-10.0))
    np.testing.assert_allclose(found, reference(*student), rtol=1e-5)
    moved = np.asarray(student.image, np.float64).copy()
    moved[2, 1] += 1e-5
    slope = (reference(moved, student.text) - reference(*student)) / 1e-5
    np.testing.assert_allclose(gradient.image[2, 1], slope, rtol=1e-3)
    slope = (reference(*student, bias=-10 + 1e-6) - reference(*student)) / 1e-6
    np.testing.assert_allclose(by_bias, slope, rtol=1e-3)


def test_softened_target_tends_to_the_identity_where_the_teacher_is_right() -> None:
    rows = embeddings()
    agreeing = objectives.Embeddings(rows.image, rows.image)
    options = objectives.make_method("kd", teacher_scale=1e3)
    _, metrics = loss(options, rows, agreeing)
    np.testing.assert_allclose(metrics["target_diagonal"], 1.0, atol=1e-4)
    plain, _ = loss(objectives.make_method("infonce"), rows)
    np.testing.assert_allclose(loss(options, rows, agreeing)[0], plain, rtol=1e-4)


def test_statistics_are_those_of_the_targets() -> None:
    student, teacher = embeddings(), embeddings(seed=1)
    options = objectives.make_method("otter")
    unit = objectives.Embeddings(*map(objectives.normalize, teacher))
    image, text = (np.asarray(x, np.float64) for x in objectives.soft_targets(options, unit, 6))
    entropy = np.mean([-(x * np.log(np.maximum(x, 1e-300))).sum(axis=1) for x in (image, text)])
    _, metrics = loss(options, student, teacher)
    np.testing.assert_allclose(metrics["target_entropy"], entropy, rtol=1e-5)
    np.testing.assert_allclose(metrics["target_diagonal"], 0.0, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "student", "teacher", "message"),
    [
        ("infonce", embeddings(1), None, "a contrastive loss needs at least 2 pairs, found 1"),
        ("label_smoothing", embeddings(1), None, "at least 2 pairs"),
        ("otter", embeddings(), None, "objective 'otter' needs a teacher's embeddings"),
        ("infonce", embeddings(), embeddings(), "'infonce' does not use a teacher's embeddings"),
        (
            "otter",
            embeddings(),
            embeddings(5),
            r"teacher.image has shape \(5, 5\); it must be \(6, 5\)",
        ),
        (
            "infonce",
            embeddings()._replace(text=jnp.zeros((6, 5)).at[2, 1].set(jnp.nan)),
            None,
            "student.text has values that are not finite in 1 of 6 rows, first in row 2",
        ),
    ],
)
def test_bad_batches_are_refused(name, student, teacher, message) -> None:
    with pytest.raises(ValueError, match=message):
        loss(objectives.make_method(name), student, teacher)


def test_values_are_looked_at_under_an_eager_gradient_too() -> None:
    student = embeddings()._replace(image=jnp.full((6, 5), jnp.inf))
    with pytest.raises(ValueError, match=r"student\.image has values that are not finite in 6"):
        jax.grad(lambda s: loss(objectives.make_method("infonce"), s)[0])(student)


def test_widths_and_meshes_must_fit() -> None:
    options = objectives.make_method("infonce")
    with pytest.raises(ValueError, match=r"student\.text has shape \(6, 4\); it must be \(6, 5\)"):
        loss(options, embeddings()._replace(text=jnp.ones((6, 4))))
    scales = objectives.LogScales(3.0, 3.0)
    with pytest.raises(ValueError, match="6 pairs do not divide over 8 devices"):
        objectives.total_loss(options, embeddings(), None, scales, sharding.make_mesh())
    other = Mesh(np.array(jax.devices()[:2]), ("model",))
    with pytest.raises(ValueError, match=r"the mesh has axes \('model',\); one must be 'data'"):
        objectives.total_loss(options, embeddings(), None, scales, other)


@pytest.mark.parametrize("tile", [None, 4])
def test_metrics_carry_no_gradient(tile: int | None) -> None:
    options = objectives.make_method("otter", tile=tile)

    def part(student: objectives.Embeddings) -> jax.Array:
        return loss(options, student, embeddings(seed=1))[1]["loss_contrastive"]

    for gradient in jax.grad(part)(embeddings()):
        np.testing.assert_array_equal(gradient, 0.0)


@pytest.mark.parametrize("tile", [None, 4])
def test_types_may_be_mixed(tile: int | None) -> None:
    options = objectives.make_method("otter", tile=tile)
    half = objectives.Embeddings(*(x.astype(jnp.bfloat16) for x in embeddings()))
    scales = objectives.LogScales(3.0, jnp.float32(3.0))
    value, _ = objectives.total_loss(options, half, embeddings(seed=1), scales)
    wide = objectives.Embeddings(*(x.astype(jnp.float32) for x in half))
    wanted, _ = objectives.total_loss(options, wide, embeddings(seed=1), scales)
    np.testing.assert_array_equal(value, wanted)


def test_the_sigmoid_losss_scale_is_not_clamped() -> None:
    def value(log_scale: jax.Array) -> jax.Array:
        scales = objectives.LogScales(log_scale, 0.0, -10.0)
        options = objectives.make_method("sigmoid")
        return objectives.total_loss(options, embeddings(), None, scales)[0]

    assert value(4.8) != value(4.7) and abs(jax.grad(value)(4.8)) > 0


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 999), epsilon=st.sampled_from([0.02, 0.15, 1.0]))
def test_alpha_one_has_the_gradient_of_infonce(seed: int, epsilon: float) -> None:
    options = objectives.make_method("otter", alpha=1.0, epsilon=epsilon)
    student, teacher = embeddings(seed=seed), embeddings(seed=seed + 1)
    found = jax.grad(lambda s: loss(options, s, teacher)[0])(student)
    wanted = jax.grad(lambda s: loss(objectives.make_method("infonce"), s)[0])(student)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, wanted)


TRUST = jnp.array([0.9, 0.0, 1.0, 0.35, 0.5, 0.2])
ESTIMATED = {"alpha": "estimated"}
WEIGHTED = {"pair_weight": "estimated"}


def log_softmax(cosines: np.ndarray) -> np.ndarray:
    logits = np.exp(np.float64(np.float32(3.0))) * cosines
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def cosines_of(student: objectives.Embeddings) -> np.ndarray:
    rows = [np.asarray(x, np.float64) for x in student]
    image, text = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in rows)
    return image @ text.T


@pytest.mark.parametrize("tile", [None, 4])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("name", ["kd", "otter"])
def test_every_pair_has_an_alpha_of_its_own(name, mixed, weighted, tile) -> None:
    """Row by row in float64, from the same targets."""
    options = objectives.make_method(
        name, tile=tile, mixed_target=mixed, **ESTIMATED, **(WEIGHTED if weighted else {})
    )
    student, teacher = embeddings(), embeddings(seed=1)
    unit = objectives.Embeddings(*map(objectives.normalize, teacher))
    trust, cosines = np.asarray(TRUST, np.float64), cosines_of(student)
    hard = soft = 0.0
    for matrix, targets in zip(
        (cosines, cosines.T), objectives.soft_targets(options, unit, 6), strict=True
    ):
        logs, targets = log_softmax(matrix), np.asarray(targets, np.float64)
        for i, alpha in enumerate(trust):
            weight = alpha / trust.mean() / 6 if weighted else 1 / 6
            there = targets[i] > 0
            entropy = 0 if mixed else -(targets[i, there] * np.log(targets[i, there])).sum()
            hard -= weight * alpha * logs[i, i]
            soft -= weight * (1 - alpha) * (targets[i] @ logs[i] + entropy)
    value, metrics = loss(options, student, teacher, trust=TRUST)
    np.testing.assert_allclose(value, hard + soft, rtol=1e-5)
    if not mixed:
        np.testing.assert_allclose(metrics["loss_contrastive"], hard, rtol=1e-5)
        np.testing.assert_allclose(metrics["loss_distillation"], soft, rtol=1e-5)


@pytest.mark.parametrize("tile", [None, 4])
@pytest.mark.parametrize("name", ["infonce", "label_smoothing"])
def test_rows_weigh_in_proportion_to_trust(name: str, tile: int | None) -> None:
    options = objectives.make_method(name, tile=tile, **WEIGHTED)
    smoothing = options.smoothing if name == "label_smoothing" else 0.0
    target = np.where(np.eye(6, dtype=bool), 1 - smoothing, smoothing / 5)
    cosines = cosines_of(embeddings())
    rows = sum(-(target * log_softmax(x)).sum(axis=1) for x in (cosines, cosines.T))
    wanted = np.average(rows, weights=TRUST)
    np.testing.assert_allclose(loss(options, trust=TRUST)[0], wanted, rtol=1e-5)


@pytest.mark.parametrize("tile", [None, 4])
def test_sigmoid_losses_weigh_what_row_and_column_do(tile: int | None) -> None:
    cosines = np.exp(np.float64(np.float32(3.0))) * cosines_of(embeddings())
    losses = np.log1p(np.exp(-(2 * np.eye(6) - 1) * cosines))
    wanted = np.average(losses.sum(axis=0) + losses.sum(axis=1), weights=TRUST) / 2
    found, _ = loss(objectives.make_method("sigmoid", tile=tile, **WEIGHTED), trust=TRUST)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


@pytest.mark.parametrize("tile", [None, 4])
@pytest.mark.parametrize(
    ("name", "choice", "number"),
    [
        ("kd", ESTIMATED, {"alpha": 0.3}),
        ("otter", ESTIMATED, {"alpha": 0.3}),
        ("otter", ESTIMATED | {"mixed_target": True}, {"alpha": 0.3, "mixed_target": True}),
        ("otter", WEIGHTED, {}),
        ("infonce", WEIGHTED, {}),
        ("sigmoid", WEIGHTED, {}),
    ],
)
def test_the_same_trust_in_all_pairs_is_one_number(name, choice, number, tile) -> None:
    teacher = embeddings(seed=1) if name in ("kd", "otter") else None

    def outcome(options: dict, trust: jax.Array | None) -> tuple:
        objective = objectives.make_method(name, tile=tile, **options)
        value = jax.value_and_grad(
            lambda student: loss(objective, student, teacher, trust=trust), has_aux=True
        )
        return value(embeddings())

    found, wanted = outcome(choice, jnp.full(6, 0.3)), outcome(number, None)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), found, wanted)


@pytest.mark.parametrize("tile", [None, 4])
@pytest.mark.parametrize("name", ["infonce", "sigmoid", "otter"])
def test_where_no_pair_is_trusted_nothing_is_learnt(name: str, tile: int | None) -> None:
    options = objectives.make_method(name, tile=tile, **WEIGHTED)
    teacher = embeddings(seed=1) if options.uses_teacher else None
    value, gradients = jax.value_and_grad(
        lambda student: loss(options, student, teacher, trust=jnp.zeros(6))[0]
    )(embeddings())
    assert value == 0.0
    jax.tree.map(lambda gradient: np.testing.assert_array_equal(gradient, 0.0), gradients)


@pytest.mark.parametrize("tile", [None, 4])
def test_trust_has_no_gradient(tile: int | None) -> None:
    options = objectives.make_method("otter", tile=tile, **ESTIMATED, **WEIGHTED)
    gradient = jax.grad(lambda trust: loss(options, teacher=embeddings(seed=1), trust=trust)[0])
    np.testing.assert_array_equal(gradient(TRUST), 0.0)


@pytest.mark.parametrize(
    ("options", "trust", "message"),
    [
        (WEIGHTED, None, "'infonce' with pair_weight='estimated' needs the pairs' trust"),
        ({}, TRUST, "pair_weight=None does not use the pairs' trust"),
        (WEIGHTED, TRUST[:5], r"trust has shape \(5,\); it must be \(6,\)"),
        (WEIGHTED, TRUST[:, None], r"trust has shape \(6, 1\); it must be \(6,\)"),
        (WEIGHTED, TRUST.at[4].set(1.5), r"outside \[0, 1\] in 1 of 6 rows, first in row 4"),
        (WEIGHTED, TRUST.at[2:4].set(jnp.nan), r"outside \[0, 1\] in 2 of 6 rows, first in row 2"),
    ],
)
def test_bad_trust_is_refused(options: dict, trust: jax.Array | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loss(objectives.make_method("infonce", **options), trust=trust)
