"""The row-stochastic targets, in which the cross-entropy methods differ.

    identity     I                                          InfoNCE
    smoothed     (1 - e) I + e / (N - 1) (1 - I)            label smoothing
    softened     softmax_j(t K_ij)                          knowledge and self-distillation
    transported  softmax_j((K_ij + g_j) / epsilon)          OTTER

K is the EMA teacher's similarity of image i and text j. The text direction's similarity is its
transpose, so each constructor here serves both directions. Two kinds are enough to describe all
four: the identity is smoothed by 0, and the softened target is transported in 0 iterations.
"""

import math
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from otter_jax.objectives import contrastive, sinkhorn

# What is taken from a given pair's own similarity so that its target is left to the others: the
# released code's 100 on each of the image-image and the text-text part. exp(-200 / epsilon) is 0
# in float32 for every epsilon below 1.9, far above any that makes sense for cosines.
DIAGONAL_PENALTY = 200.0


class Target(Protocol):
    """What one direction should match. The two kinds below are also computed in tiles."""

    def dense(self, similarity: jax.Array | None, num_pairs: int) -> jax.Array:
        """Return the target [N, N], rows that sum to 1, without gradient.

        Args:
            similarity: [N, N] of the teacher; None for a method that uses none.
            num_pairs: N.
        """
        ...


class Smoothed(NamedTuple):
    """A target that needs no teacher: `smoothing` is the mass that leaves the given pair."""

    smoothing: float = 0.0

    @property
    def on_diagonal(self) -> float:
        """Mass on the given pair."""
        return 1.0 - self.smoothing

    def off_diagonal(self, num_pairs: int) -> float:
        """Return the mass on each other pair of the row."""
        return self.smoothing / (num_pairs - 1)

    def entropy(self, num_pairs: int) -> float:
        """Return the entropy of each row in nats."""
        masses = (self.on_diagonal, 1), (self.off_diagonal(num_pairs), num_pairs - 1)
        return -sum(count * mass * math.log(mass) for mass, count in masses if mass > 0.0)

    def dense(self, similarity: jax.Array | None, num_pairs: int) -> jax.Array:
        """Return the target [N, N]; the similarity is not looked at."""
        del similarity
        diagonal = jnp.eye(num_pairs, dtype=bool)
        return jnp.where(diagonal, self.on_diagonal, self.off_diagonal(num_pairs))


class Transported(NamedTuple):
    """A target from the teacher's similarity, by `iterations` of Sinkhorn; 0 are a row softmax."""

    epsilon: float
    iterations: int
    bound: float  # No similarity is larger in magnitude, but for removed given pairs.

    def dense(self, similarity: jax.Array | None, num_pairs: int) -> jax.Array:
        """Return the target [N, N]."""
        del num_pairs
        if self.iterations == 0:
            return softened(similarity, 1.0 / self.epsilon)
        return transported(similarity, *self)


def identity(num_pairs: int) -> jax.Array:
    """Return [N, N] identity: every image belongs to its own caption alone."""
    return jnp.eye(num_pairs)


def softened(similarity: jax.Array, scale: float) -> jax.Array:
    """Return softmax_j(scale K_ij), [N, N] (contrastive self-distillation, sec. 3)."""
    return jax.nn.softmax(scale * jax.lax.stop_gradient(similarity), axis=1)


def transported(
    similarity: jax.Array, epsilon: float, iterations: int, bound: float | None = None
) -> jax.Array:
    """Return the row-normalised transport plan of the teacher's similarity, [N, N] (OTTER, eq. 5).

    Arguments as in `sinkhorn.row_plan`.
    """
    return sinkhorn.row_plan(similarity, epsilon, iterations, bound)


def mixed(target: jax.Array, given: jax.Array | float, known: jax.Array | None = None) -> jax.Array:
    """Return [N, N] `given` I + (1 - `given`) target; where `given` is [N], row i with the i-th.

    `known` [N, N] stands for I where more than the given pairs is known (known_positives.py).
    """
    matched = identity(len(target)) if known is None else known
    if isinstance(given, jax.Array):
        given = given[:, None]
    elif given == 0.0:
        return target
    elif given == 1.0:
        return matched
    return given * matched + (1.0 - given) * target


def teacher_features(
    image: jax.Array,
    text: jax.Array,
    *,
    image_weight: float,
    text_weight: float,
    cross_weight: float = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """Return features whose inner products are `teacher_similarity`.

    image_weight VV + text_weight TT + cross_weight VT is one inner product of concatenated
    features.

    Returns:
        Rows (images) and columns (texts), [N, 2 d] each; [N, d] where both weights are 0.
    """
    if image_weight == text_weight == 0.0:
        return image, cross_weight * text
    # [v; t] . [gv v' + c t'; gt t'] = gv vv' + c vt' + gt tt': one product, 2 d numbers a row.
    rows = jnp.concatenate([image, text], axis=1)
    mixed_columns = image_weight * image + cross_weight * text
    columns = jnp.concatenate([mixed_columns, text_weight * text], axis=1)
    return rows, columns


def teacher_similarity(
    image: jax.Array,
    text: jax.Array,
    *,
    image_weight: float,
    text_weight: float,
    remove_diagonal: bool,
    cross_weight: float = 1.0,
) -> jax.Array:
    """Return what the teacher says about every image and every text of the batch.

    Args:
        image: [N, d] teacher image embeddings, unit rows.
        text: [N, d] teacher text embeddings, unit rows.
        image_weight: weight of image-image similarity (gamma_v).
        text_weight: weight of text-text similarity (gamma_t).
        remove_diagonal: take every given pair out. The released multi-process code does so for the
            rows of the first process only; here it is done for all of them.
        cross_weight: weight of image-text similarity; at 0 only images are compared with images,
            and texts with texts.

    Returns:
        [N, N] similarity, rows are images. Its transpose is the text direction's.
    """
    features = teacher_features(
        image,
        text,
        image_weight=image_weight,
        text_weight=text_weight,
        cross_weight=cross_weight,
    )
    similarity = contrastive.similarity(*features)
    if remove_diagonal:
        similarity -= DIAGONAL_PENALTY * jnp.eye(image.shape[0], dtype=similarity.dtype)
    return similarity
