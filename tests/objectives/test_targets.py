"""Targets: rows that sum to one, symmetry under permutation, closed forms."""

import jax.numpy as jnp
import numpy as np
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from otter_jax import objectives
from otter_jax.objectives import targets

NAMES = st.sampled_from(["infonce", "label_smoothing", "kd", "otter"])


def teacher(num_pairs: int, seed: int) -> objectives.Embeddings:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(2, num_pairs, 6)).astype(np.float32)
    return objectives.Embeddings(*(objectives.normalize(jnp.asarray(x)) for x in rows))


def soft_targets(name: str, rows: objectives.Embeddings) -> objectives.Directions:
    options = objectives.make_method(name)
    given_rows = rows if options.uses_teacher else None
    return objectives.soft_targets(options, given_rows, rows.image.shape[0])


@settings(max_examples=30, deadline=None)
@given(name=NAMES, num_pairs=st.sampled_from([2, 7, 16]), seed=st.integers(0, 99))
def test_rows_sum_to_one(name, num_pairs, seed) -> None:
    for target in soft_targets(name, teacher(num_pairs, seed)):
        assert target.shape == (num_pairs, num_pairs)
        np.testing.assert_allclose(np.asarray(target).sum(1), 1.0, atol=1e-5)
        assert (np.asarray(target) >= 0).all()


@settings(max_examples=20, deadline=None)
@given(name=NAMES, seed=st.integers(0, 99))
def test_permuting_the_batch_permutes_the_targets(name, seed) -> None:
    rows = teacher(9, seed)
    order = np.random.default_rng(seed).permutation(9)
    permuted = objectives.Embeddings(*(x[order] for x in rows))
    for target, other in zip(soft_targets(name, rows), soft_targets(name, permuted), strict=True):
        np.testing.assert_allclose(np.asarray(target)[np.ix_(order, order)], other, atol=1e-5)


def test_smoothed_without_smoothing_is_the_identity() -> None:
    np.testing.assert_array_equal(targets.Smoothed(0.0).dense(None, 5), np.eye(5))
    np.testing.assert_allclose(
        targets.Smoothed(0.2).dense(None, 5)[0], [0.8, 0.05, 0.05, 0.05, 0.05]
    )


@settings(max_examples=20, deadline=None)
@given(smoothing=st.floats(0.0, 0.99), num_pairs=st.integers(2, 50))
def test_entropy_of_a_smoothed_row_is_that_of_its_matrix(smoothing: float, num_pairs: int) -> None:
    target = targets.Smoothed(smoothing)
    row = np.full(num_pairs, target.off_diagonal(num_pairs))
    row[0] = 1.0 - smoothing
    expected = scipy.stats.entropy(row)
    np.testing.assert_allclose(target.entropy(num_pairs), expected, rtol=1e-9, atol=1e-12)


def test_softened_tends_to_the_best_match() -> None:
    similarity = jnp.asarray([[0.9, 0.1, 0.3], [0.2, 0.8, 0.1], [0.0, 0.5, 0.6]])
    np.testing.assert_allclose(targets.softened(similarity, 1e3), np.eye(3), atol=1e-6)


def test_similarity_is_the_sum_of_three_products() -> None:
    image, text = (np.asarray(x, np.float64) for x in teacher(8, seed=4))
    found = targets.teacher_similarity(
        jnp.asarray(image), jnp.asarray(text), image_weight=0.7, text_weight=0.4,
        remove_diagonal=True,
    )  # fmt: skip
    wanted = 0.7 * image @ image.T + 0.4 * text @ text.T + image @ text.T - 200 * np.eye(8)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_without_image_text_similarity_images_speak_of_images_alone() -> None:
    image, text = teacher(8, seed=4)
    weights = {"image_weight": 0.5, "text_weight": 0.25, "cross_weight": 0.0}
    found = targets.teacher_similarity(image, text, **weights, remove_diagonal=False)
    wanted = 0.5 * np.asarray(image) @ image.T + 0.25 * np.asarray(text) @ text.T
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    weights = {"image_weight": 0.0, "text_weight": 0.0, "cross_weight": 0.5}
    found = targets.teacher_similarity(image, text, **weights, remove_diagonal=False)
    np.testing.assert_allclose(found, 0.5 * np.asarray(image) @ text.T, rtol=1e-5, atol=1e-5)


def test_removed_pairs_get_no_mass_on_any_row() -> None:
    for target in soft_targets("otter", teacher(12, seed=5)):
        np.testing.assert_array_equal(np.diagonal(target), 0.0)


@settings(max_examples=15, deadline=None)
@given(name=st.sampled_from(["kd", "otter"]), seed=st.integers(0, 99))
def test_the_text_directions_cost_is_the_transpose(name, seed) -> None:
    """Swapping images and texts swaps the targets, where both weights are the same."""
    rows = teacher(9, seed)
    swapped = objectives.Embeddings(rows.text, rows.image)
    image, text = soft_targets(name, rows)
    other_image, other_text = soft_targets(name, swapped)
    np.testing.assert_allclose(image, other_text, atol=1e-5)
    np.testing.assert_allclose(text, other_image, atol=1e-5)
