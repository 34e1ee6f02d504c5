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
    """One cross-entropy of a loss, to the method's `target`, or to a mixture with the identity.

    What is matched is identity * I + (1 - identity) * target, where I has all mass on the given
    pairs. Both fields are numbers or [N], one for each pair: row i of both directions has the i-th.
    """

    weight: jax.Array | float
    identity: jax.Array | float = 0.0  # In [0, 1].


class Statistics(NamedTuple):
    """What a loss consists of, for each pair: sums over its rows in both directions."""

    cross_entropy: jax.Array  # [terms, N], not weighted.
    entropy: jax.Array  # [N] of the soft target, nats.
    diagonal: jax.Array  # [N] mass that the soft target leaves on the given pair.


class Directions(NamedTuple):
    """A matrix for each direction, [N, N]: images over texts, and texts over images."""

    image: jax.Array
    text: jax.Array


def normalize(x: jax.Array) -> jax.Array:
    """Return unit rows in float32 (or wider); a zero row stays zero and has a finite gradient."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-24))


def similarity(rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Return inner products [N, M] in full float32, also where a device would multiply in less."""
    return jnp.matmul(rows, columns.T, precision="highest")


def clip_log_scale(
    log_scale: jax.Array, lowest: float | None = 1.0, highest: float | None = MAX_SCALE
) -> jax.Array:
    """Return the logarithm of a scale, brought into bounds of the scale; None for no bound."""
    bounds = (None if bound is None else math.log(bound) for bound in (lowest, highest))
    return jnp.clip(log_scale, *bounds)


def scale_from_log(
    log_scale: jax.Array, lowest: float | None = 1.0, highest: float | None = MAX_SCALE
) -> jax.Array:
    """Return exp(log_scale) within bounds: beyond them no gradient, at their rims the full one."""
    log_scale = jnp.asarray(log_scale)
    log_scale = log_scale.astype(jnp.promote_types(log_scale.dtype, jnp.float32))
    # Compared as logarithms: float32's exp(log 100) is a little more than 100.
    bounded = jax.lax.stop_gradient(clip_log_scale(log_scale, lowest, highest))
    return jnp.exp(jnp.where(log_scale == bounded, log_scale, bounded))


def cross_entropy(
    logits: jax.Array, target: jax.Array, hidden: jax.Array | None = None
) -> jax.Array:
    """Return - sum_j target_ij log softmax_j(logits_ij) of each row, [N]; targets sum to 1.

    Where `hidden`, bool [N, N], the softmax leaves an entry out; the target has no mass there.
    """
    matched = jnp.sum(target * logits, axis=1)
    seen = logits if hidden is None else jnp.where(hidden, -jnp.inf, logits)
    return jax.scipy.special.logsumexp(seen, axis=1) - matched


def entropy(target: jax.Array) -> jax.Array:
    """Return entropy of each row in nats, [N] in [0, log N]."""
    return -jnp.sum(jax.scipy.special.xlogy(target, target), axis=1)


def sigmoid_losses(logits: jax.Array, given: jax.Array) -> jax.Array:
    """Return -log sigmoid(logit) of given pairs, -log sigmoid(-logit) of others (SigLIP, eq. 1).

    Args:
        logits: [N, M] scale * similarity + bias.
        given: [N, M] bool.

    Returns:
        [N, M].
    """
    return jax.nn.softplus(jnp.where(given, -logits, logits))


def both_directions(student: Embeddings, *, stop_gradient_keys: bool = False) -> Directions:
    """Return cosines of images with texts, and of texts with images, [N, N] each.

    Args:
        student: embeddings with unit rows.
        stop_gradient_keys: if True, a direction's gradient flows through its queries alone.
    """
    if not stop_gradient_keys:
        cosines = similarity(student.image, student.text)
        return Directions(cosines, cosines.T)
    keys = jax.lax.stop_gradient(student)
    return Directions(similarity(student.image, keys.text), similarity(student.text, keys.image))


def weighted_mean(weight: jax.Array | float, rows: jax.Array) -> jax.Array:
    """Return the mean of [N], times what all of them or each weighs.

    One number for all is taken out of the mean: with per-pair arrays a compiler that splits rows
    over devices has more to exchange.
    """
    return weight * jnp.mean(rows) if jnp.ndim(weight) == 0 else jnp.mean(weight * rows)
