"""The four row-stochastic targets; the methods differ in nothing else.

    identity     I                                          InfoNCE
    smoothed     (1 - e) I + e / (N - 1) (1 - I)            label smoothing
    softened     softmax_j(t K_ij)                          knowledge and self-distillation
    transported  softmax_j((K_ij + g_j) / epsilon)          OTTER

K is the EMA teacher's similarity of image i and text j. The text direction's similarity is its
transpose, so each constructor here serves both directions.
"""

import jax
import jax.numpy as jnp

from otter_jax.objectives import contrastive, sinkhorn

# What is taken from a given pair's own similarity so that its target is left to the others: the
# released code's 100 on each of the image-image and the text-text part. exp(-200 / epsilon) is 0
# in float32 for every epsilon below 1.9, far above any that makes sense for cosines.
DIAGONAL_PENALTY = 200.0


def identity(num_pairs: int) -> jax.Array:
    """[N, N] identity: every image belongs to its own caption alone."""
    return jnp.eye(num_pairs)


def smoothed(num_pairs: int, smoothing: float) -> jax.Array:
    """[N, N] with 1 - `smoothing` on the diagonal and the rest spread evenly off it."""
    return jnp.where(jnp.eye(num_pairs, dtype=bool), 1.0 - smoothing, smoothing / (num_pairs - 1))


def softened(similarity: jax.Array, scale: float) -> jax.Array:
    """[N, N] row softmax of the teacher's similarity times `scale` (self-distillation, sec. 3)."""
    return jax.nn.softmax(scale * jax.lax.stop_gradient(similarity), axis=1)


def transported(similarity: jax.Array, epsilon: float, iterations: int) -> jax.Array:
    """[N, N] row-normalised entropic transport plan of the teacher's similarity (OTTER, eq. 5)."""
    return sinkhorn.row_plan(similarity, epsilon, iterations)


def teacher_similarity(
    image: jax.Array,
    text: jax.Array,
    *,
    image_weight: float,
    text_weight: float,
    remove_diagonal: bool,
) -> jax.Array:
    """What the teacher says about every image and every text of the batch.

    Args:
      image: [N, d] teacher image embeddings, unit rows.
      text: [N, d] teacher text embeddings, unit rows.
      image_weight: weight of image-image similarity (gamma_v).
      text_weight: weight of text-text similarity (gamma_t).
      remove_diagonal: take every given pair out. The released multi-process code does so for
        the rows of the first process only; here it is done for all of them.

    Returns:
      [N, N] similarity, rows are images. Its transpose is the text direction's.
    """
    # image_weight VV + text_weight TT + VT is one inner product of concatenated features.
    rows = jnp.concatenate([image, text], axis=1)
    columns = jnp.concatenate([image_weight * image + text, text_weight * text], axis=1)
    similarity = contrastive.similarity(rows, columns)
    if remove_diagonal:
        similarity -= DIAGONAL_PENALTY * jnp.eye(image.shape[0], dtype=similarity.dtype)
    return similarity
