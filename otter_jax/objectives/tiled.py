"""The same losses without any N x N array, forward or backward, on one device or many.

Three facts make one block of rows at a time enough:

* The teacher's matrix is one inner product of concatenated features, K = F G^T, and the text
  direction's is its transpose, so every tile serves both directions.
* Every soft target is exp(K_ij / epsilon + a_i + b_j) with two vectors a and b. Sinkhorn finds them
  in one sweep over the tiles an iteration, for both directions at once (`plan_potentials`).
* With the student's S = V T^T and a scale s, the gradient of both cross-entropies with respect to
  S_ij is s (softmax over row i + softmax over column j - P_ij - P'_ji) / N. So backward needs no
  more than what a first sweep leaves, the log-sum-exps of rows and columns.

The gradient is computed along with the value, by a second sweep that forms every tile again.
Differentiating the sweeps instead takes about one and a half times as long (docs/targets.md).
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp, xlogy
from jax.sharding import Mesh, PartitionSpec

from otter_jax.objectives import sinkhorn, targets, tiles
from otter_jax.objectives.contrastive import (
    Embeddings,
    Statistics,
    Term,
    sigmoid_losses,
    similarity,
)
from otter_jax.objectives.tiles import ColumnSum, Rows, Tiling

AXIS = "data"  # Of the mesh: the one that splits the batch.


class Potentials(NamedTuple):
    """Both directions' targets as functions of one teacher matrix K.

    P_ij = exp(K_ij / epsilon + rows[i, 0] + columns[j, 0]), images over texts, and
    P'_ji = exp(K_ij / epsilon + rows[i, 1] + columns[j, 1]), texts over images.
    """

    rows: jax.Array  # [rows of this device, 2]
    columns: jax.Array  # [N, 2]


class Teacher(NamedTuple):
    """What the teacher's matrix is made of; its rows here, its columns on every device."""

    rows: jax.Array  # [rows of this device, k]
    columns: jax.Array  # [N, k]


@dataclasses.dataclass(frozen=True)
class Loss:
    """What to compute from a batch; static.

    Attributes:
      target: the soft target of both directions.
      terms: cross-entropies to mixtures of the given pairs and the soft target.
      remove_diagonal: take the given pairs out of the teacher's matrix.
      stop_gradient_keys: a direction's gradient flows through its queries alone.
    """

    target: targets.Smoothed | targets.Transported
    terms: tuple[Term, ...]
    remove_diagonal: bool = True
    stop_gradient_keys: bool = False


def plan_potentials(
    tiling: Tiling, teacher: Teacher, target: targets.Transported, remove_diagonal: bool
) -> Potentials:
    """Both directions' potentials after the target's Sinkhorn iterations, rows first.

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

    columns = jax.lax.fori_loop(0, target.iterations, iteration, columns)
    last = no_text_rows if target.iterations == 0 else jnp.ones_like(no_text_rows)
    rows, normalised = sweep(columns, last)
    return Potentials(rows, jnp.stack([columns[:, 0], normalised[:, 1]], axis=1))


def _teacher_logits(
    rows: Rows, features: jax.Array, columns: jax.Array, epsilon: float, remove_diagonal: bool
) -> jax.Array:
    """K / epsilon of a tile, [tile, N]."""
    logits = similarity(features, columns) / epsilon
    if remove_diagonal:
        logits -= jnp.where(_is_given(rows, logits), targets.DIAGONAL_PENALTY / epsilon, 0.0)
    return logits


def _is_given(rows: Rows, tile: jax.Array) -> jax.Array:
    """Where a tile holds a given pair, bool [tile, N]."""
    return rows.index[:, None] == jnp.arange(tile.shape[1])[None, :]


def _scaling_sweep(
    tiling: Tiling,
    teacher: Teacher,
    epsilon: float,
    remove_diagonal: bool,
    columns: jax.Array,
    use_rows: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Row potentials from column potentials, then new column potentials, [., 2] each.

    `use_rows` [2] is 0 for a direction whose rows have no potential yet.
    """
    scaling = jnp.exp(columns)

    def step(sums: jax.Array, rows: Rows, features: jax.Array) -> tuple[jax.Array, jax.Array]:
        kernel = jnp.exp(_teacher_logits(rows, features, teacher.columns, epsilon, remove_diagonal))
        potentials = -jnp.log(jnp.matmul(kernel, scaling, precision="highest")) * use_rows
        weights = jnp.where(rows.valid[:, None], jnp.exp(potentials), 0.0)
        return sums + jnp.matmul(kernel.T, weights, precision="highest"), potentials

    sums, potentials = tiles.scan(tiling, step, jnp.zeros_like(columns), teacher.rows)
    return potentials, -jnp.log(tiles.total(sums, tiling.axis))


def _logarithmic_sweep(
    tiling: Tiling,
    teacher: Teacher,
    epsilon: float,
    remove_diagonal: bool,
    columns: jax.Array,
    use_rows: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """As `_scaling_sweep`, for logits of any size."""

    def step(
        sums: tuple[ColumnSum, ...], rows: Rows, features: jax.Array
    ) -> tuple[tuple[ColumnSum, ...], jax.Array]:
        logits = _teacher_logits(rows, features, teacher.columns, epsilon, remove_diagonal)
        potentials = -jnp.stack([logsumexp(logits + column, axis=1) for column in columns.T], 1)
        potentials *= use_rows
        padded = jnp.where(rows.valid[:, None], potentials, -jnp.inf)
        return tuple(
            tiles.add_rows(sum_, logits + padded[:, [k]]) for k, sum_ in enumerate(sums)
        ), potentials

    empty = tiles.empty_sum(len(columns), columns.dtype)
    sums, potentials = tiles.scan(tiling, step, (empty, empty), teacher.rows)
    logs = [tiles.log_of_sum(sum_, tiling.axis) for sum_ in sums]
    return potentials, -jnp.stack(logs, axis=1)


def _normalisers(
    tiling: Tiling, image: jax.Array, texts: jax.Array, scales: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """log-sum-exps of scale * S over rows and over columns, [rows or N, number of scales]."""

    def step(
        sums: tuple[ColumnSum, ...], rows: Rows, image: jax.Array
    ) -> tuple[tuple[ColumnSum, ...], jax.Array]:
        cosines = similarity(image, texts)
        over_rows = jnp.stack([logsumexp(scale * cosines, axis=1) for scale in scales], axis=1)
        padded = jnp.where(rows.valid[:, None], cosines, -jnp.inf)
        sums = tuple(
            tiles.add_rows(sum_, scale * padded) for sum_, scale in zip(sums, scales, strict=True)
        )
        return sums, over_rows

    empty = tiles.empty_sum(len(texts), image.dtype)
    sums, over_rows = tiles.scan(tiling, step, (empty,) * len(scales), image)
    over_columns = [tiles.log_of_sum(sum_, tiling.axis) for sum_ in sums]
    return over_rows, jnp.stack(over_columns, axis=1)


class _Tile(NamedTuple):
    """A block of rows of everything that has N columns; arrays [tile, N]."""

    cosines: jax.Array  # S, of the student.
    given: jax.Array  # bool: the given pairs.
    image: jax.Array  # P, images over texts.
    text: jax.Array  # P', texts over images.
    entropy: jax.Array  # Scalar: of both targets, summed over the tile.


def _transported_tile(
    loss: Loss,
    rows: Rows,
    cosines: jax.Array,
    features: jax.Array,
    columns: jax.Array,
    potentials: Potentials,
) -> _Tile:
    """The tile with the teacher's targets."""
    epsilon = loss.target.epsilon
    logits = _teacher_logits(rows, features, columns, epsilon, loss.remove_diagonal)
    entropy, plans = 0.0, []
    for k in range(2):
        log_plan = logits + potentials.rows[:, k, None] + potentials.columns[None, :, k]
        plan = jnp.where(rows.valid[:, None], jnp.exp(log_plan), 0.0)
        entropy -= jnp.sum(plan * log_plan)
        plans.append(plan)
    return _Tile(cosines, _is_given(rows, cosines), *plans, entropy)


def _smoothed_tile(loss: Loss, rows: Rows, cosines: jax.Array) -> _Tile:
    """The tile with a target that needs no teacher."""
    num_pairs = cosines.shape[1]
    given = _is_given(rows, cosines) & rows.valid[:, None]
    on, off = loss.target.on_diagonal, loss.target.off_diagonal(num_pairs)
    target = jnp.where(given, on, jnp.where(rows.valid[:, None], off, 0.0)).astype(cosines.dtype)
    row_entropy = -(xlogy(on, on) + (num_pairs - 1) * xlogy(off, off))
    entropy = (2 * row_entropy * rows.valid.sum()).astype(cosines.dtype)
    return _Tile(cosines, given, target, target, entropy)


def _slopes(
    loss: Loss, tile: _Tile, scales: jax.Array, over_rows: jax.Array, over_columns: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Derivatives of N times the loss that a tile holds.

    Returns:
      By S as the image direction and as the text direction see it, [tile, N] each; by the scales,
      [terms]; and each term's sum of target times S, [terms].
    """
    by_image = by_text = jnp.zeros_like(tile.cosines)
    by_scale, matched = [], []
    for k, term in enumerate(loss.terms):
        logits = scales[k] * tile.cosines
        hard = term.given * tile.given
        image_target = hard + (1.0 - term.given) * tile.image
        text_target = hard + (1.0 - term.given) * tile.text
        image_error = jnp.exp(logits - over_rows[:, k, None]) - image_target
        text_error = jnp.exp(logits - over_columns[None, :, k]) - text_target
        by_image += term.weight * scales[k] * image_error
        by_text += term.weight * scales[k] * text_error
        by_scale.append(term.weight * jnp.sum((image_error + text_error) * tile.cosines))
        matched.append(jnp.sum((image_target + text_target) * tile.cosines))
    return by_image, by_text, jnp.stack(by_scale), jnp.stack(matched)


class Gradients(NamedTuple):
    """Derivatives of the weighted sum of the terms; rows of this device."""

    image: jax.Array  # [rows, d]
    text: jax.Array  # [rows, d]
    scales: jax.Array  # [terms]


class _Sums(NamedTuple):
    """What the tiles add up to, over both directions."""

    matched: jax.Array  # [terms] target times S.
    by_scale: jax.Array  # [terms]
    entropy: jax.Array
    diagonal: jax.Array
    by_text: jax.Array  # [N, d]


def value_and_gradients(
    loss: Loss, tiling: Tiling, student: Embeddings, teacher: Teacher | None, scales: jax.Array
) -> tuple[Statistics, Gradients]:
    """Means over the batch, and the gradient of their weighted sum; works inside `shard_map`.

    Args:
      loss: what to compute.
      tiling: how this device goes through its rows.
      student: [rows, d] unit rows of this device.
      teacher: this device's rows and columns, [rows, k] each; None for a `Smoothed` target.
      scales: [terms] factor of the similarities in each term.
    """
    axis = tiling.axis
    texts = tiles.gather(student.text, axis)
    over_rows, over_columns = _normalisers(tiling, student.image, texts, scales)
    potentials = None
    if teacher is not None:
        teacher = teacher._replace(columns=tiles.gather(teacher.columns, axis))
        potentials = plan_potentials(tiling, teacher, loss.target, loss.remove_diagonal)

    def step(sums: _Sums, rows: Rows, inputs: tuple) -> tuple[_Sums, jax.Array]:
        image, over_rows, features, row_potentials = inputs
        cosines = similarity(image, texts)
        if teacher is None:
            tile = _smoothed_tile(loss, rows, cosines)
        else:
            here = potentials._replace(rows=row_potentials)
            tile = _transported_tile(loss, rows, cosines, features, teacher.columns, here)
        by_image, by_text, by_scale, matched = _slopes(loss, tile, scales, over_rows, over_columns)
        if not loss.stop_gradient_keys:
            by_image = by_text = by_image + by_text
        diagonal = jnp.sum((tile.image + tile.text) * tile.given)
        added = _Sums(matched, by_scale, tile.entropy, diagonal, _product(by_text.T, image))
        return jax.tree.map(jnp.add, sums, added), _product(by_image, texts)

    inputs = (student.image, over_rows, teacher and teacher.rows, potentials and potentials.rows)
    zero = jnp.zeros((), texts.dtype)
    none = jnp.zeros_like(scales)
    sums, by_image = tiles.scan(
        tiling, step, _Sums(none, none, zero, zero, jnp.zeros_like(texts)), inputs
    )
    num_pairs = len(texts)
    totals = tiles.total(tuple(sums[:4]), axis)
    logs = tiles.total(over_rows.sum(axis=0), axis) + over_columns.sum(axis=0)
    matched, by_scale, entropy, diagonal = (x / num_pairs for x in totals)
    statistics = Statistics(logs / num_pairs - scales * matched, entropy, diagonal)
    by_text = sums.by_text
    if axis is not None:
        by_text = jax.lax.psum_scatter(by_text, axis, tiled=True)
    return statistics, Gradients(by_image / num_pairs, by_text / num_pairs, by_scale)


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision="highest")


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def cross_entropies(
    loss: Loss,
    tile: int,
    mesh: Mesh | None,
    student: Embeddings,
    teacher: Teacher | None,
    scales: jax.Array,
) -> tuple[jax.Array, Statistics]:
    """The weighted sum of the loss's terms, and statistics that carry no gradient.

    Args:
      loss: what to compute.
      tile: most rows in a tile.
      mesh: its axis `data` splits the rows; None or a mesh of one device for one device.
      student: [N, d] unit rows.
      teacher: features whose inner products are the similarities, constants.
      scales: [terms] factor of the similarities in each term.
    """
    return _forward(loss, tile, mesh, student, teacher, scales)[0]


def sigmoid_cross_entropy(
    tile: int, mesh: Mesh | None, student: Embeddings, scale: jax.Array, bias: jax.Array
) -> jax.Array:
    """Mean over images of the sigmoid loss (SigLIP, eq. 1); it has no normaliser to wait for.

    So every tile stands for itself, and differentiating the one sweep is all that backward needs.

    Args:
      tile: most rows in a tile.
      mesh: as in `cross_entropies`.
      student: [N, d] unit rows.
      scale: scalar factor of the similarities.
      bias: scalar added to them.
    """
    num_pairs = len(student.image)

    def rows_of_device(
        tiling: Tiling, student: Embeddings, scale: jax.Array, bias: jax.Array
    ) -> jax.Array:
        texts = tiles.gather(student.text, tiling.axis)

        @jax.checkpoint
        def step(total: jax.Array, rows: Rows, image: jax.Array) -> tuple[jax.Array, None]:
            logits = scale * similarity(image, texts) + bias
            losses = sigmoid_losses(logits, _is_given(rows, logits))
            return total + jnp.sum(jnp.where(rows.valid[:, None], losses, 0.0)), None

        return tiles.scan(tiling, step, jnp.zeros((1,), scale.dtype), student.image)[0]

    if not _is_split(mesh):
        tiling = tiles.make_tiling(num_pairs, tile)
        return rows_of_device(tiling, student, scale, bias)[0] / num_pairs
    tiling = tiles.make_tiling(num_pairs, tile, AXIS, mesh.shape[AXIS])
    split, whole = PartitionSpec(AXIS), PartitionSpec()
    sums = jax.shard_map(
        functools.partial(rows_of_device, tiling),
        mesh=mesh,
        in_specs=(split, whole, whole),
        out_specs=split,
        check_vma=False,
    )(student, scale, bias)
    return jnp.sum(sums) / num_pairs


def _is_split(mesh: Mesh | None) -> bool:
    return mesh is not None and mesh.shape[AXIS] > 1


def _forward(
    loss: Loss,
    tile: int,
    mesh: Mesh | None,
    student: Embeddings,
    teacher: Teacher | None,
    scales: jax.Array,
) -> tuple[tuple[jax.Array, Statistics], tuple[Gradients, Teacher | None]]:
    num_pairs = len(student.image)
    if not _is_split(mesh):
        run = functools.partial(value_and_gradients, loss, tiles.make_tiling(num_pairs, tile))
    else:
        tiling = tiles.make_tiling(num_pairs, tile, AXIS, mesh.shape[AXIS])
        split, whole = PartitionSpec(AXIS), PartitionSpec()
        run = jax.shard_map(
            functools.partial(value_and_gradients, loss, tiling),
            mesh=mesh,
            in_specs=(split, split, whole),
            out_specs=(whole, Gradients(split, split, whole)),
            check_vma=False,  # It cannot see that sums over all devices are the same on each.
        )
    statistics, gradients = run(student, teacher, scales)
    weights = jnp.array([term.weight for term in loss.terms], scales.dtype)
    value = jnp.sum(weights * statistics.cross_entropy)
    return (value, statistics), (gradients, teacher)


def _backward(
    loss: Loss,
    tile: int,
    mesh: Mesh | None,
    saved: tuple[Gradients, Teacher | None],
    cotangents: tuple[jax.Array, Statistics],
) -> tuple[Embeddings, Teacher | None, jax.Array]:
    gradients, teacher = saved
    image, text, scales = jax.tree.map(lambda x: x * cotangents[0], gradients)
    return Embeddings(image, text), jax.tree.map(jnp.zeros_like, teacher), scales


cross_entropies.defvjp(_forward, _backward)
