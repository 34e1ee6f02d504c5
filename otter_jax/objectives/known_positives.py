"""Pairs of a batch that are known to match each other: they are no negatives.

Two pictures of one product, or two images with the same caption, would be pushed apart by a loss
that takes every pair but the given one for wrong. Which pairs belong together is said by a number,
equal within a group. Then either

    ignore   other pairs of the group are left out of the student's softmax and of the target
    share    every pair of the group is given: mass on the given pair is shared by all of them
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

IGNORE, SHARE = "ignore", "share"


class Known(NamedTuple):
    """The groups of some pairs; floats, as what a loss has no gradient by still needs a zero."""

    number: jax.Array  # [n] equal within a group.
    count: jax.Array  # [n] pairs of the batch in its group, itself among them.


class Relation(NamedTuple):
    """What some rows of a matrix are to its columns, [n, N] each."""

    given: jax.Array  # bool: the given pairs.
    target: jax.Array  # What a row should match by what is given: its mass is 1.
    hidden: jax.Array | None = None  # bool: what the student's softmax leaves out.


def number_groups(groups: jax.Array, dtype: jnp.dtype) -> Known:
    """Return the groups of a batch, numbered.

    A batch of one group alone has nothing to be told from: it is taken as if nothing were known.

    Args:
        groups: int [N, k], rows equal within a group.
        dtype: of the result; float32 counts 16,777,216 pairs.
    """
    order = jnp.lexsort(groups.T)
    ordered = groups[order]
    begins = jnp.any(ordered[1:] != ordered[:-1], axis=1)
    numbers = jnp.concatenate([jnp.zeros(1, int), jnp.cumsum(begins)])
    number = jnp.zeros(len(groups), int).at[order].set(numbers)
    number = jnp.where(numbers[-1] == 0, jnp.arange(len(groups)), number)
    count = jnp.zeros(len(groups), int).at[number].add(1)[number]
    return Known(number.astype(dtype), count.astype(dtype))


def is_same(rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Return where rows and columns, by their groups' numbers [n] and [N], are of one group."""
    return rows[:, None] == columns[None, :]


def relate(mode: str | None, rows: Known | None, columns: jax.Array, own: jax.Array) -> Relation:
    """Return what rows are to columns.

    Args:
        mode: `IGNORE` or `SHARE`; None where nothing is known.
        rows: groups of the rows.
        columns: [N] numbers of the columns' groups.
        own: bool [n, N], where a row's own pair is.
    """
    if mode is None:
        return Relation(own, own)
    same = is_same(rows.number, columns)
    if mode == IGNORE:
        return Relation(own, own, same & ~own)
    # Rows that fill up a tile count none.
    return Relation(same, same / jnp.maximum(rows.count, 1.0)[:, None])


def smoothed(smoothing: float, relation: Relation, same: jax.Array, counts: jax.Array) -> jax.Array:
    """Return the smoothed target [n, N]: what leaves the given pairs goes to all other groups.

    Args:
        smoothing: that mass.
        relation: of the rows.
        same: bool [n, N], where both are of one group.
        counts: pairs in the group of the pair that the target is of, to be spread over [n, N].
    """
    others = smoothing / (same.shape[1] - counts)
    return (1.0 - smoothing) * relation.target + jnp.where(same, 0.0, others)
