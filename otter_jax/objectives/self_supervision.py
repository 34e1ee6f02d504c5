"""Losses that need no other modality: SimSiam, masked language modelling, NT-Xent (SimCLR).

They see the whole batch: under a mesh the compiler splits their rows and adds up over the devices.
"""

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp

from otter_jax.objectives.contrastive import normalize, similarity

IGNORED = -100  # The label of a token that is not to be predicted.


def negative_cosine(predictions: jax.Array, projections: jax.Array) -> jax.Array:
    """Return the mean of -cos(prediction, projection), in [-1, 1]: half of SimSiam's loss.

    Args:
        predictions: [N, d].
        projections: [N, d] of the other view, constants: without that both would collapse to a
            point (SimSiam, sec. 4.1).
    """
    constants = normalize(jax.lax.stop_gradient(projections))
    return -jnp.mean(jnp.sum(normalize(predictions) * constants, axis=-1))


def simsiam_loss(p1: jax.Array, p2: jax.Array, z1: jax.Array, z2: jax.Array) -> jax.Array:
    """Return how far each view is from predicting the other's projection (SimSiam, eq. 2).

    Args:
        p1: [N, d] predictions from the first view of each image.
        p2: [N, d] predictions from the second view.
        z1: [N, d] projections of the first view, constants.
        z2: [N, d] projections of the second view, constants.

    Returns:
        A scalar in [-1, 1], the mean of both `negative_cosine`s.
    """
    return (negative_cosine(p1, z2) + negative_cosine(p2, z1)) / 2


def token_losses(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the cross-entropy in nats of each masked token (BERT, sec. 3.1).

    Args:
        logits: [..., V] over the vocabulary; of all tokens, or of some that include the masked
            ones.
        labels: [...] integers, what stood there before masking; `IGNORED` for all other tokens.

    Returns:
        [...], float32 or wider; 0 without gradient for tokens that are not masked.
    """
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    masked = labels != IGNORED
    tokens = jnp.where(masked, labels, 0)[..., None]
    wanted = jnp.take_along_axis(logits, tokens, axis=-1)[..., 0]
    return jnp.where(masked, logsumexp(logits, axis=-1) - wanted, 0.0)


def masked_language_loss(losses: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the mean over the masked tokens of the batch, a scalar; 0 where nothing is masked.

    Args:
        losses: [...] of `token_losses`.
        labels: [...] as there.
    """
    return jnp.sum(losses) / jnp.maximum(jnp.sum(labels != IGNORED), 1)


def ntxent_loss(z1: jax.Array, z2: jax.Array, temperature: float = 0.1) -> jax.Array:
    """Tell an image's other view from all other views of the batch (SimCLR, eq. 1; SLIP).

    Args:
        z1: [N, d] projections of the first view of each image, N >= 2.
        z2: [N, d] projections of the second view.
        temperature: what the cosines are divided by, > 0.

    Returns:
        A scalar: the mean over all 2 N views of the cross-entropy among the 2 N - 1 others, in
        nats.
    """

    # One direction at a time, computed again for the gradient: two [N, N] are all that is alive.
    @jax.checkpoint
    def direction(views: jax.Array, others: jax.Array) -> jax.Array:
        itself = jnp.eye(len(views), dtype=bool)
        to_same = jnp.where(itself, -jnp.inf, similarity(views, views) / temperature)
        to_other = similarity(views, others) / temperature
        normaliser = jnp.logaddexp(logsumexp(to_same, axis=1), logsumexp(to_other, axis=1))
        return jnp.mean(normaliser - jnp.sum(views * others, axis=1) / temperature)

    z1, z2 = normalize(z1), normalize(z2)
    return (direction(z1, z2) + direction(z2, z1)) / 2
