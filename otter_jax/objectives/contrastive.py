"""One cross-entropy for all methods: student similarities against a row-stochastic target."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

MAX_SCALE = 100.0


class Embeddings(NamedTuple):
    """Image and text embeddings of one batch, [N, d] each; row i of both is one given pair."""

    image: jax.Array
    text: jax.Array


class Term(NamedTuple):
    """One cross-entropy of a loss: to `given` I + (1 - `given`) P, P the soft target."""

    weight: float
    given: float  # Mass on the given pair, in [0, 1].


class Statistics(NamedTuple):
    """What a loss consists of, means over the batch, sums over both directions."""

    cross_entropy: jax.Array  # [terms], not weighted.
    entropy: jax.Array  # Scalar: of the soft target, nats.
    diagonal: jax.Array  # Scalar: mass that the soft target leaves on the given pairs.


class Directions(NamedTuple):
    """A matrix for each direction, [N, N]: images over texts, and texts over images."""

    image: jax.Array
    text: jax.Array


def normalize(x: jax.Array) -> jax.Array:
    """Unit rows in float32 (or wider); a zero row stays zero and has a finite gradient."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-24))


def similarity(rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Inner products [N, M] in full float32, also where a device would multiply in less."""
    return jnp.matmul(rows, columns.T, precision="highest")


def scale_from_log(log_scale: jax.Array) -> jax.Array:
    """exp(log_scale) clamped to [1, 100]; beyond it no gradient, at its rims the full one."""
    log_scale = jnp.asarray(log_scale)
    log_scale = log_scale.astype(jnp.promote_types(log_scale.dtype, jnp.float32))
    # Compared as logarithms: float32's exp(log 100) is a little more than 100.
    highest = jnp.asarray(math.log(MAX_SCALE), log_scale.dtype)
    inside = (log_scale >= 0.0) & (log_scale <= highest)
    scale = jnp.exp(log_scale)
    return jnp.where(inside, scale, jax.lax.stop_gradient(jnp.clip(scale, 1.0, MAX_SCALE)))


def cross_entropy(logits: jax.Array, target: jax.Array) -> jax.Array:
    """Mean over rows of - sum_j target_ij log softmax_j(logits_ij), a scalar; targets sum to 1."""
    matched = jnp.sum(target * logits, axis=1)
    return jnp.mean(jax.scipy.special.logsumexp(logits, axis=1) - matched)


def entropy(target: jax.Array) -> jax.Array:
    """Mean entropy of the rows in nats, a scalar in [0, log N]."""
    return -jnp.mean(jnp.sum(jax.scipy.special.xlogy(target, target), axis=1))


def sigmoid_losses(logits: jax.Array, given: jax.Array) -> jax.Array:
    """-log sigmoid(logit) of the given pairs, -log sigmoid(-logit) of all others (SigLIP, eq. 1).

    Args:
      logits: [N, M] scale * similarity + bias.
      given: [N, M] bool.

    Returns:
      [N, M].
    """
    return jax.nn.softplus(jnp.where(given, -logits, logits))


def both_directions(student: Embeddings, *, stop_gradient_keys: bool = False) -> Directions:
    """Cosines of images with texts, and of texts with images, [N, N] each.

    Args:
      student: embeddings with unit rows.
      stop_gradient_keys: if True, a direction's gradient flows through its queries alone.
    """
    if not stop_gradient_keys:
        cosines = similarity(student.image, student.text)
        return Directions(cosines, cosines.T)
    keys = jax.lax.stop_gradient(student)
    return Directions(similarity(student.image, keys.text), similarity(student.text, keys.image))


def symmetric_cross_entropy(
    cosines: Directions, scale: jax.Array, targets: Directions
) -> jax.Array:
    """The loss of both directions, summed as in the released code (not averaged).

    Args:
      cosines: of `both_directions`.
      scale: scalar factor of the cosines, 1 / temperature.
      targets: what each direction should predict.
    """
    return sum(cross_entropy(scale * each, to) for each, to in zip(cosines, targets, strict=True))
