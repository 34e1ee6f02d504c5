"""Sinkhorn without any N x N array: both directions' plans of a batch, in sweeps over tiles.

Two facts make one block of rows at a time enough:

* The teacher's matrix is one inner product of concatenated features, K = F G^T, and the text
  direction's is its transpose, so every tile serves both directions.
* Every soft target is exp(K_ij / epsilon + a_i + b_j) with two vectors a and b. Sinkhorn finds them
  in one sweep over the tiles an iteration, for both directions at once.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp

from otter_jax.objectives import known_positives, sinkhorn, targets, tiles
from otter_jax.objectives.contrastive import similarity
from otter_jax.objectives.tiles import ColumnSum, Rows, Tiling, is_given


class Potentials(NamedTuple):
    """Both directions' targets as functions of one teacher matrix K.

    P_ij = exp(K_ij / epsilon + rows[i, 0] + columns[j, 0]), images over texts, and
    P'_ji = exp(K_ij / epsilon + rows[i, 1] + columns[j, 1]), texts over images.
    """

    rows: jax.Array  # [rows of this device, 2]
    columns: jax.Array  # [N, 2]


class TeacherFeatures(NamedTuple):
    """What the teacher's matrix is made of; its rows here, its columns on every device.

    With groups (known_positives.py), by their numbers, all pairs of a group are taken out of it.
    """

    rows: jax.Array  # [rows of this device, k]
    columns: jax.Array  # [N, k]
    row_groups: jax.Array | None = None  # [rows of this device]
    column_groups: jax.Array | None = None  # [N]

    @property
    def by_row(self) -> tuple[jax.Array, jax.Array | None]:
        """What goes with the rows of a tile."""
        return self.rows, self.row_groups


def plan_potentials(
    tiling: Tiling, teacher: TeacherFeatures, target: targets.Transported, remove_diagonal: bool
) -> Potentials:
    """Return both directions' potentials after the target's Sinkhorn iterations, rows first.

    The image direction updates rows of K, then columns; the text direction columns, then rows. One
    sweep does the image direction's rows and columns, and the rows of the text direction's last
    iteration with the columns of its next. So one sweep more than iterations ends both with their
    own normalisation.
    """
    columns = jnp.zeros((teacher.columns.shape[0], 2), teacher.columns.dtype)
    sweep = functools.partial(
        _scaling_sweep
        if sinkhorn.scaling_is_safe(target.epsilon, target.bound)
        else _logarithmic_sweep,
        tiling,
        teacher,
        target.epsilon,
        remove_diagonal,
    )
    # The text direction has no row potential before its first column update.
    no_text_rows = jnp.array([1.0, 0.0], columns.dtype)

    def iteration(number: jax.Array, columns: jax.Array) -> jax.Array:
        return sweep(columns, jnp.where(number == 0, no_text_rows, 1.0))[1]

    # The count is static, but a loop compiles one sweep instead of five.
    columns = jax.lax.fori_loop(0, target.iterations, iteration, columns)
    last = no_text_rows if target.iterations == 0 else jnp.ones_like(no_text_rows)
    rows, normalised = sweep(columns, last)
    return Potentials(rows, jnp.stack([columns[:, 0], normalised[:, 1]], axis=1))


def _scaling_sweep(
    tiling: Tiling,
    teacher: TeacherFeatures,
    epsilon: float,
    remove_diagonal: bool,
    columns: jax.Array,
    use_rows: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Return row potentials from column potentials, then new column potentials, [., 2] each.

    `use_rows` [2] is 0 for a direction whose rows have no potential yet.
    """
    # exp(K / epsilon) stays within float32 here (`sinkhorn.scaling_is_safe`), so a sum of
    # exponentials is a matrix product, and both directions are its two columns.
    scaling = jnp.exp(columns)

    def step(sums: jax.Array, rows: Rows, by_row: tuple) -> tuple[jax.Array, jax.Array]:
        kernel = jnp.exp(teacher_logits(rows, by_row, teacher, epsilon, remove_diagonal))
        # Potentials are kept as logarithms from sweep to sweep: scalings would drift out of range.
        potentials = -jnp.log(jnp.matmul(kernel, scaling, precision="highest")) * use_rows
        # Rows of the padding must not enter a column's sum; their potential is arbitrary.
        weights = jnp.where(rows.valid[:, None], jnp.exp(potentials), 0.0)
        return sums + jnp.matmul(kernel.T, weights, precision="highest"), potentials

    sums, potentials = tiles.scan(tiling, step, jnp.zeros_like(columns), teacher.by_row)
    # Each device has seen its own rows only; columns are complete when all have added theirs.
    return potentials, -jnp.log(tiles.total(sums, tiling.axis))


def _logarithmic_sweep(
    tiling: Tiling,
    teacher: TeacherFeatures,
    epsilon: float,
    remove_diagonal: bool,
    columns: jax.Array,
    use_rows: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Return as `_scaling_sweep`, for logits of any size."""

    def step(
        sums: tuple[ColumnSum, ...], rows: Rows, by_row: tuple
    ) -> tuple[tuple[ColumnSum, ...], jax.Array]:
        logits = teacher_logits(rows, by_row, teacher, epsilon, remove_diagonal)
        potentials = -jnp.stack([logsumexp(logits + column, axis=1) for column in columns.T], 1)
        potentials *= use_rows
        # exp(-inf) = 0: so rows of the padding add nothing.
        padded = jnp.where(rows.valid[:, None], potentials, -jnp.inf)
        return tuple(
            tiles.add_rows(sum_, logits + padded[:, [k]]) for k, sum_ in enumerate(sums)
        ), potentials

    empty = tiles.empty_sum(len(columns), columns.dtype)
    sums, potentials = tiles.scan(tiling, step, (empty, empty), teacher.by_row)
    logs = [tiles.log_of_sum(sum_, tiling.axis) for sum_ in sums]
    return potentials, -jnp.stack(logs, axis=1)


def teacher_logits(
    rows: Rows,
    by_row: tuple[jax.Array, jax.Array | None],
    teacher: TeacherFeatures,
    epsilon: float,
    remove_diagonal: bool,
) -> jax.Array:
    """Return K / epsilon of a tile, [tile, N], given the tile of `TeacherFeatures.by_row`."""
    features, groups = by_row
    logits = similarity(features, teacher.columns) / epsilon
    removed = is_given(rows, logits) if remove_diagonal else None
    if groups is not None:
        same = known_positives.is_same(groups, teacher.column_groups)
        removed = same if remove_diagonal else same & ~is_given(rows, logits)
    if removed is not None:
        # Subtracted after the product: the features of one pair know nothing of the diagonal.
        logits -= jnp.where(removed, targets.DIAGONAL_PENALTY / epsilon, 0.0)
    return logits
