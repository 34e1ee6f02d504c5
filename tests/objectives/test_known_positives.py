"""Known positives: dense and tiled, on one device and on eight, against the definition in loops."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otter_jax import objectives, sharding
from otter_jax.objectives.known_positives import number_groups

NUM_PAIRS, WIDTH, LOG_SCALES = 8, 5, (2.2, 1.7, -1.0)
GROUPS = np.array([0, 1, 0, 2, 3, 3, 0, 1])
METHODS = {
    "infonce": {},
    "label_smoothing": {"smoothing": 0.3},
    "kd": {"teacher_scale": 5.0},
    "otter": {},
    "otter with given pairs": {"remove_diagonal": False},
    "otter mixed": {"mixed_target": True, "alpha": 0.3},
    "sigmoid": {},
}
FAST = ("label_smoothing", "otter", "sigmoid")


def make(method: str, mode: str, tile: int) -> objectives.Method:
    name, options = method.split()[0], METHODS[method]
    return objectives.make_method(name, known_positives=mode, tile=tile, **options)


def embeddings(seed: int) -> objectives.Embeddings:
    rows = np.random.default_rng(seed).normal(size=(2, NUM_PAIRS, WIDTH))
    return objectives.Embeddings(*map(jnp.asarray, rows))


def plan_in_loops(method: objectives.Method, kernel: jax.Array) -> jax.Array:
    """OTTER's target of a kernel exp(K / epsilon) by plain scaling, rows first."""
    columns = jnp.ones(NUM_PAIRS)
    for _ in range(method.target.iterations):
        rows = 1 / (kernel @ columns)
        columns = 1 / (kernel.T @ rows)
    plan = kernel * columns
    return plan / plan.sum(axis=1, keepdims=True)


def loss_in_loops(
    method: objectives.Method,
    mode: str,
    student: objectives.Embeddings,
    teacher: objectives.Embeddings,
    log_scales: Sequence[jax.Array],
) -> jax.Array:
    """The loss pair by pair: lists of the columns that a row sees, no masks."""
    image, text = (x / jnp.linalg.norm(x, axis=1, keepdims=True) for x in student)
    same = [[j for j in range(NUM_PAIRS) if GROUPS[j] == GROUPS[i]] for i in range(NUM_PAIRS)]
    given = [[i] if mode == "ignore" else same[i] for i in range(NUM_PAIRS)]
    seen = [
        [j for j in range(NUM_PAIRS) if mode == "share" or j == i or j not in same[i]]
        for i in range(NUM_PAIRS)
    ]
    scales = [jnp.exp(each) for each in log_scales[:2]]
    if method.name == "sigmoid":
        total = 0.0
        for i in range(NUM_PAIRS):
            for j in seen[i]:
                logit = scales[0] * image[i] @ text[j] + log_scales[2]
                total += jnp.logaddexp(0.0, -logit if j in given[i] else logit)
        return total / NUM_PAIRS
    kernel = None
    if method.uses_teacher:
        v, t = (x / jnp.linalg.norm(x, axis=1, keepdims=True) for x in teacher)
        k = v @ t.T + method.image_weight * v @ v.T + method.text_weight * t @ t.T
        removed = np.zeros((NUM_PAIRS, NUM_PAIRS), bool)
        for i in range(NUM_PAIRS):
            if mode == "ignore" or method.remove_diagonal:
                removed[i, same[i]] = True
            removed[i, i] = method.remove_diagonal
        kernel = jnp.where(removed, 0.0, jnp.exp(k / method.target.epsilon))
    total = 0.0
    for flip in (False, True):
        queries, keys = (text, image) if flip else (image, text)
        plan = None if kernel is None else plan_in_loops(method, kernel.T if flip else kernel)
        for i in range(NUM_PAIRS):
            share = {j: 1 / len(given[i]) for j in given[i]}
            if plan is None:
                others = [j for j in range(NUM_PAIRS) if j not in same[i]]
                e = method.target.smoothing
                soft = {j: (1 - e) * mass for j, mass in share.items()}
                soft |= {j: e / len(others) for j in others}
            else:
                soft = {j: jax.lax.stop_gradient(plan[i, j]) for j in seen[i]}
            for term, scale in zip(method.terms(), scales, strict=False):
                logs = jax.nn.log_softmax(
                    jnp.stack([scale * queries[i] @ keys[j] for j in seen[i]])
                )
                for j, log in zip(seen[i], logs, strict=True):
                    mass = term.identity * share.get(j, 0.0)
                    total -= term.weight * (mass + (1 - term.identity) * soft.get(j, 0.0)) * log
            if plan is not None and not method.mixed_target:
                entropy = -sum(p * jnp.log(p) for p in soft.values() if p > 0)
                total -= method.terms()[1].weight * entropy
    return total / NUM_PAIRS


def differentiate(function) -> tuple:
    """Value and gradients by the student and the scales."""
    student = embeddings(0)
    scales = tuple(jnp.float64(each) for each in LOG_SCALES)
    value, gradients = jax.value_and_grad(function, argnums=(0, 1))(student, scales)
    return value, jax.tree.leaves(gradients)


@pytest.mark.parametrize("mode", ["ignore", "share"])
@pytest.mark.parametrize(
    "method",
    [each if each in FAST else pytest.param(each, marks=pytest.mark.slow) for each in METHODS],
)
def test_dense_and_tiled_are_the_definition(method: str, mode: str) -> None:
    with jax.enable_x64(True):
        teacher, groups = embeddings(1), jnp.asarray(GROUPS)[:, None]
        wanted = differentiate(
            lambda student, scales: loss_in_loops(
                make(method, mode, NUM_PAIRS), mode, student, teacher, scales
            )
        )
        devices = sharding.make_mesh(devices=jax.devices()[:2])
        for tile, mesh in ((NUM_PAIRS, None), (3, devices)):  # Nor does 3 divide four rows.
            options = make(method, mode, tile)

            def loss(student, scales, options=options, mesh=mesh):
                return objectives.total_loss(
                    options,
                    student,
                    teacher if options.uses_teacher else None,
                    objectives.LogScales(*scales),
                    mesh,
                    groups=groups,
                )[0]

            value, gradients = differentiate(jax.jit(loss))
            np.testing.assert_allclose(value, wanted[0], rtol=1e-9)
            for found, expected in zip(gradients, wanted[1], strict=True):
                np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-10)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=6, max_size=6))
@settings(max_examples=30, deadline=None)
def test_groups_are_numbered_and_counted(groups: list[tuple[int, int]]) -> None:
    number, count = number_groups(jnp.array(groups, jnp.int32), jnp.float32)
    for i, one in enumerate(groups):
        for j, other in enumerate(groups):
            expected = one == other if len(set(groups)) > 1 else i == j
            assert (number[i] == number[j]) == expected
        assert count[i] == (groups.count(one) if len(set(groups)) > 1 else 1)


@pytest.mark.parametrize("mode", ["ignore", "share"])
@pytest.mark.parametrize("method", ["infonce", "otter", "sigmoid"])
def test_pairs_that_share_nothing_change_nothing(method: str, mode: str) -> None:
    scales = objectives.LogScales(*map(jnp.float32, LOG_SCALES))
    for tile in (5, NUM_PAIRS):
        plain = objectives.make_method(method, tile=tile)
        student, teacher = (jax.tree.map(jnp.float32, embeddings(seed)) for seed in (0, 1))
        teacher = teacher if plain.uses_teacher else None
        wanted, facts = objectives.total_loss(plain, student, teacher, scales)
        for numbers in (np.arange(NUM_PAIRS), np.zeros(NUM_PAIRS, int)):  # Or one group alone.
            found, found_facts = objectives.total_loss(
                make(method, mode, tile), student, teacher, scales, groups=numbers[:, None]
            )
            np.testing.assert_allclose(found, wanted, rtol=1e-6)
            for name, value in facts.items():
                np.testing.assert_allclose(found_facts[name], value, rtol=1e-5, atol=1e-6)


def test_sharing_among_equal_captions_is_infonce_where_they_are_embedded_alike() -> None:
    """As docs/targets.md says: a row's mass may lie on any of some columns that are the same."""
    image, text = embeddings(0)
    text = text[np.array([list(GROUPS).index(group) for group in GROUPS])]  # Equal in a group.
    scales = objectives.LogScales(*map(jnp.asarray, LOG_SCALES))

    def loss(image: jax.Array, text: jax.Array, mode: str | None) -> jax.Array:
        method = objectives.make_method("infonce", known_positives=mode)
        groups = None if mode is None else GROUPS[:, None]
        student = objectives.Embeddings(image, text)
        return objectives.total_loss(method, student, None, scales, groups=groups)[0]

    value_and_gradient = jax.value_and_grad(loss)
    plain, shared, masked = (
        value_and_gradient(image, text, mode) for mode in (None, "share", "ignore")
    )
    for found, wanted in zip(shared, plain, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-7)
    assert masked[0] < plain[0] - 0.01  # Another loss: fewer negatives.


def test_what_cannot_be_is_refused() -> None:
    scales = objectives.LogScales(*map(jnp.float32, LOG_SCALES))
    with pytest.raises(ValueError, match="known_positives='ignore' needs the pairs' groups"):
        objectives.total_loss(make("infonce", "ignore", 3), embeddings(0), None, scales)
    with pytest.raises(ValueError, match="known_positives=None does not use the pairs' groups"):
        plain = objectives.make_method("infonce")
        objectives.total_loss(plain, embeddings(0), None, scales, groups=GROUPS[:, None])
    with pytest.raises(ValueError, match=r"groups have shape \(8,\); it must be \(8, k\)"):
        objectives.total_loss(
            make("infonce", "share", 3), embeddings(0), None, scales, groups=GROUPS
        )
    with pytest.raises(ValueError, match=r"known_positives=both: it must be unset, ignore or sha"):
        make("infonce", "both", 3)
    with pytest.raises(ValueError, match=r"declip compares several views"):
        objectives.make_method("declip", known_positives="share")
