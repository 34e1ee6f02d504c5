"""The same losses without any N x N array, forward or backward, on one device or many.

Three facts make one block of rows at a time enough:

* The teacher's matrix is one inner product of concatenated features, K = F G^T, and the text
  direction's is its transpose, so every tile serves both directions.
* Every soft target is exp(K_ij / epsilon + a_i + b_j) with two vectors a and b. Sinkhorn finds them
  in one sweep over the tiles an iteration, for both directions at once (`plan_potentials`).
* With the student's S = V T^T and a scale s, the gradient of both cross-entropies with respect to
  S_ij is s (softmax over row i + softmax over column j - P_ij - P'_ji) / N. So backward needs no
  more than what a first sweep leaves, the log-sum-exps of rows and columns. What pair i weighs is a
  factor of row i and of column i, one for each direction.

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
    weighted_mean,
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


class Terms(NamedTuple):
    """What each pair weighs, and how much of the given pair is in its target."""

    rows: tuple[Term, ...]  # [rows of this device] each
    columns: tuple[Term, ...]  # [N] each


class Teacher(NamedTuple):
    """What the teacher's matrix is made of; its rows here, its columns on every device."""

    rows: jax.Array  # [rows of this device, k]
    columns: jax.Array  # [N, k]


@dataclasses.dataclass(frozen=True)
class Loss:
    """What to compute from a batch; static.

    Attributes:
        target: the soft target of both directions.
        remove_diagonal: take the given pairs out of the teacher's matrix.
        stop_gradient_keys: a direction's gradient flows through its queries alone.
    """

    target: targets.Smoothed | targets.Transported
    remove_diagonal: bool = True
    stop_gradient_keys: bool = False


def plan_potentials(
    tiling: Tiling, teacher: Teacher, target: targets.Transported, remove_diagonal: bool
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

    columns = jax.lax.fori_loop(0, target.iterations, iteration, columns)
    last = no_text_rows if target.iterations == 0 else jnp.ones_like(no_text_rows)
    rows, normalised = sweep(columns, last)
    return Potentials(rows, jnp.stack([columns[:, 0], normalised[:, 1]], axis=1))


def _teacher_logits(
    rows: Rows, features: jax.Array, columns: jax.Array, epsilon: float, remove_diagonal: bool
) -> jax.Array:
    """Return k / epsilon of a tile, [tile, N]."""
    logits = similarity(features, columns) / epsilon
    if remove_diagonal:
        logits -= jnp.where(_is_given(rows, logits), targets.DIAGONAL_PENALTY / epsilon, 0.0)
    return logits


def _is_given(rows: Rows, tile: jax.Array) -> jax.Array:
    """Return where a tile holds a given pair, bool [tile, N]."""
    return rows.index[:, None] == jnp.arange(tile.shape[1])[None, :]


def _scaling_sweep(
    tiling: Tiling,
    teacher: Teacher,
    epsilon: float,
    remove_diagonal: bool,
    columns: jax.Array,
    use_rows: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Return row potentials from column potentials, then new column potentials, [., 2] each.

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
    """Return as `_scaling_sweep`, for logits of any size."""

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
    """Return log-sum-exps of scale * S over rows and over columns, [rows or N, number of scales]."""

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
    image_entropy: jax.Array  # -P log P, each element.
    text_entropy: jax.Array


def _transported_tile(
    loss: Loss,
    rows: Rows,
    cosines: jax.Array,
    features: jax.Array,
    columns: jax.Array,
    potentials: Potentials,
) -> _Tile:
    """Return the tile with the teacher's targets."""
    epsilon = loss.target.epsilon
    logits = _teacher_logits(rows, features, columns, epsilon, loss.remove_diagonal)
    plans, entropies = [], []
    for k in range(2):
        log_plan = logits + potentials.rows[:, k, None] + potentials.columns[None, :, k]
        plan = jnp.where(rows.valid[:, None], jnp.exp(log_plan), 0.0)
        plans.append(plan)
        entropies.append(-plan * log_plan)
    return _Tile(cosines, _is_given(rows, cosines), *plans, *entropies)


def _smoothed_tile(loss: Loss, rows: Rows, cosines: jax.Array) -> _Tile:
    """Return the tile with a target that needs no teacher."""
    on, off = loss.target.on_diagonal, loss.target.off_diagonal(cosines.shape[1])
    given = _is_given(rows, cosines) & rows.valid[:, None]

    def spread(on: jax.Array | float, off: jax.Array | float) -> jax.Array:
        tile = jnp.where(given, on, jnp.where(rows.valid[:, None], off, 0.0))
        return tile.astype(cosines.dtype)

    target, entropy = spread(on, off), spread(-xlogy(on, on), -xlogy(off, off))
    return _Tile(cosines, given, target, target, entropy, entropy)


class _Slopes(NamedTuple):
    """Derivatives of N times the loss that a tile holds, and its terms' targets times S."""

    by_image: jax.Array  # [tile, N] by S as the image direction sees it.
    by_text: jax.Array  # [tile, N] by S as the text direction sees it.
    by_scale: jax.Array  # [terms]
    matched_image: jax.Array  # [tile, terms]
    matched_text: jax.Array  # [N, terms]


def _slopes(
    tile: _Tile, terms: Terms, scales: jax.Array, over_rows: jax.Array, over_columns: jax.Array
) -> _Slopes:
    """Return what a tile has to say about the gradient; terms and log-sum-exps are those of its rows."""
    by_image = by_text = jnp.zeros_like(tile.cosines)
    by_scale, matched_image, matched_text = [], [], []
    for k, (row, column) in enumerate(zip(*terms, strict=True)):
        logits, given = scales[k] * tile.cosines, row.given[:, None]
        image_target = given * tile.given + (1.0 - given) * tile.image
        text_target = column.given * tile.given + (1.0 - column.given) * tile.text
        image_error = row.weight[:, None] * (jnp.exp(logits - over_rows[:, k, None]) - image_target)
        text_error = column.weight * (jnp.exp(logits - over_columns[:, k]) - text_target)
        by_image += scales[k] * image_error
        by_text += scales[k] * text_error
        by_scale.append(jnp.sum((image_error + text_error) * tile.cosines))
        matched_image.append(jnp.sum(image_target * tile.cosines, axis=1))
        matched_text.append(jnp.sum(text_target * tile.cosines, axis=0))
    matched = (jnp.stack(x, axis=1) for x in (matched_image, matched_text))
    return _Slopes(by_image, by_text, jnp.stack(by_scale), *matched)


Constants = tuple[Teacher | None, tuple[Term, ...]]  # What a loss has no gradient by.


class Gradients(NamedTuple):
    """Derivatives of the weighted sum of the terms; rows of this device."""

    image: jax.Array  # [rows, d]
    text: jax.Array  # [rows, d]
    scales: jax.Array  # [terms]


class _Sums(NamedTuple):
    """What the tiles of this device add up to."""

    by_text: jax.Array  # [N, d]
    by_scale: jax.Array  # [terms]
    matched: jax.Array  # [N, terms] target times S of the text direction.
    entropy: jax.Array  # [N] of the text direction's target.


class _Rows(NamedTuple):
    """What a tile says about its own rows."""

    by_image: jax.Array  # [tile, d]
    matched: jax.Array  # [tile, terms] target times S of the image direction.
    entropy: jax.Array  # [tile] of the image direction's target.
    diagonal: jax.Array  # [tile] mass of both targets on the given pairs.


def value_and_gradients(
    loss: Loss,
    tiling: Tiling,
    student: Embeddings,
    teacher: Teacher | None,
    terms: tuple[Term, ...],
    scales: jax.Array,
) -> tuple[Statistics, Gradients]:
    """Return statistics of all pairs, and the gradient of the loss; works inside `shard_map`.

    Args:
        loss: what to compute.
        tiling: how this device goes through its rows.
        student: [rows, d] unit rows of this device.
        teacher: this device's rows and columns, [rows, k] each; None for a `Smoothed` target.
        terms: cross-entropies to mixtures of the given pairs and the soft target, [rows] each.
        scales: [terms] factor of the similarities in each term.
    """
    axis = tiling.axis
    texts, columns = jax.tree.map(lambda x: tiles.gather(x, axis), (student.text, terms))
    over_rows, over_columns = _normalisers(tiling, student.image, texts, scales)
    potentials = None
    if teacher is not None:
        teacher = teacher._replace(columns=tiles.gather(teacher.columns, axis))
        potentials = plan_potentials(tiling, teacher, loss.target, loss.remove_diagonal)

    def step(sums: _Sums, rows: Rows, inputs: tuple) -> tuple[_Sums, _Rows]:
        image, terms, over_rows, features, row_potentials = inputs
        cosines = similarity(image, texts)
        if teacher is None:
            tile = _smoothed_tile(loss, rows, cosines)
        else:
            here = potentials._replace(rows=row_potentials)
            tile = _transported_tile(loss, rows, cosines, features, teacher.columns, here)
        slopes = _slopes(tile, Terms(terms, columns), scales, over_rows, over_columns)
        by_image, by_text = slopes.by_image, slopes.by_text
        if not loss.stop_gradient_keys:
            by_image = by_text = by_image + by_text
        added = _Sums(
            by_text=_product(by_text.T, image),
            by_scale=slopes.by_scale,
            matched=slopes.matched_text,
            entropy=tile.text_entropy.sum(axis=0),
        )
        return jax.tree.map(jnp.add, sums, added), _Rows(
            by_image=_product(by_image, texts),
            matched=slopes.matched_image,
            entropy=tile.image_entropy.sum(axis=1),
            diagonal=jnp.sum((tile.image + tile.text) * tile.given, axis=1),
        )

    features = (teacher and teacher.rows, potentials and potentials.rows)
    none = _Sums(
        jnp.zeros_like(texts),
        jnp.zeros_like(scales),
        jnp.zeros_like(over_columns),
        jnp.zeros_like(texts[:, 0]),
    )
    sums, ours = tiles.scan(tiling, step, none, (student.image, terms, over_rows, *features))
    return _over_all_devices(axis, sums, ours, over_rows, over_columns, scales)


def _over_all_devices(
    axis: str | None,
    sums: _Sums,
    ours: _Rows,
    over_rows: jax.Array,
    over_columns: jax.Array,
    scales: jax.Array,
) -> tuple[Statistics, Gradients]:
    """Return both directions of all pairs together, and this device's rows of the gradients."""
    num_pairs = len(over_columns)
    by_scale, matched, entropy = tiles.total(tuple(sums[1:]), axis)
    image_losses, image_entropy, diagonal = tiles.gather(
        (over_rows - scales * ours.matched, ours.entropy, ours.diagonal), axis
    )
    losses = image_losses + over_columns - scales * matched
    by_text = sums.by_text
    if axis is not None:
        by_text = jax.lax.psum_scatter(by_text, axis, tiled=True)
    gradients = Gradients(ours.by_image / num_pairs, by_text / num_pairs, by_scale / num_pairs)
    return Statistics(losses.T, image_entropy + entropy, diagonal), gradients


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision="highest")


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def cross_entropies(
    loss: Loss,
    tile: int,
    mesh: Mesh | None,
    student: Embeddings,
    teacher: Teacher | None,
    terms: tuple[Term, ...],
    scales: jax.Array,
) -> tuple[jax.Array, Statistics]:
    """Return the weighted sum of the loss's terms, and statistics that carry no gradient.

    Args:
        loss: what to compute.
        tile: most rows in a tile.
        mesh: its axis `data` splits the rows; None or a mesh of one device for one device.
        student: [N, d] unit rows.
        teacher: features whose inner products are the similarities, constants.
        terms: cross-entropies to mixtures of the given pairs and the soft target; [N] each,
            constants.
        scales: [terms] factor of the similarities in each term.
    """
    return _forward(loss, tile, mesh, student, teacher, terms, scales)[0]


def sigmoid_cross_entropy(
    tile: int,
    mesh: Mesh | None,
    student: Embeddings,
    weights: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
) -> jax.Array:
    """Return mean over images of the sigmoid loss (SigLIP, eq. 1); it has no normaliser to wait for.

    So every tile stands for itself, and differentiating the one sweep is all that backward needs.

    Args:
        tile: most rows in a tile.
        mesh: as in `cross_entropies`.
        student: [N, d] unit rows.
        weights: [N] of the pairs; image i with text j has the mean of w_i and w_j.
        scale: scalar factor of the similarities.
        bias: scalar added to them.
    """
    num_pairs = len(student.image)

    def rows_of_device(
        tiling: Tiling, student: Embeddings, weights: jax.Array, scale: jax.Array, bias: jax.Array
    ) -> jax.Array:
        texts, columns = (tiles.gather(x, tiling.axis) for x in (student.text, weights))

        @jax.checkpoint
        def step(total: jax.Array, rows: Rows, inputs: tuple) -> tuple[jax.Array, None]:
            image, weights = inputs
            logits = scale * similarity(image, texts) + bias
            losses = sigmoid_losses(logits, _is_given(rows, logits))
            losses *= (weights[:, None] + columns) / 2
            return total + jnp.sum(jnp.where(rows.valid[:, None], losses, 0.0)), None

        inputs = student.image, weights
        return tiles.scan(tiling, step, jnp.zeros((1,), scale.dtype), inputs)[0]

    if not _is_split(mesh):
        tiling = tiles.make_tiling(num_pairs, tile)
        return rows_of_device(tiling, student, weights, scale, bias)[0] / num_pairs
    tiling = tiles.make_tiling(num_pairs, tile, AXIS, mesh.shape[AXIS])
    split, whole = PartitionSpec(AXIS), PartitionSpec()
    sums = jax.shard_map(
        functools.partial(rows_of_device, tiling),
        mesh=mesh,
        in_specs=(split, split, whole, whole),
        out_specs=split,
        check_vma=False,
    )(student, weights, scale, bias)
    return jnp.sum(sums) / num_pairs


def _is_split(mesh: Mesh | None) -> bool:
    return mesh is not None and mesh.shape[AXIS] > 1


def _forward(
    loss: Loss,
    tile: int,
    mesh: Mesh | None,
    student: Embeddings,
    teacher: Teacher | None,
    terms: tuple[Term, ...],
    scales: jax.Array,
) -> tuple[tuple[jax.Array, Statistics], tuple[Gradients, Constants]]:
    num_pairs = len(student.image)
    if not _is_split(mesh):
        run = functools.partial(value_and_gradients, loss, tiles.make_tiling(num_pairs, tile))
    else:
        tiling = tiles.make_tiling(num_pairs, tile, AXIS, mesh.shape[AXIS])
        split, whole = PartitionSpec(AXIS), PartitionSpec()
        run = jax.shard_map(
            functools.partial(value_and_gradients, loss, tiling),
            mesh=mesh,
            in_specs=(split, split, split, whole),
            out_specs=(whole, Gradients(split, split, whole)),
            check_vma=False,  # It cannot see that sums over all devices are the same on each.
        )
    statistics, gradients = run(student, teacher, terms, scales)
    means = (
        weighted_mean(term.weight, rows)
        for term, rows in zip(terms, statistics.cross_entropy, strict=True)
    )
    value = sum(means)
    return (value, statistics), (gradients, (teacher, terms))


def _backward(
    loss: Loss,
    tile: int,
    mesh: Mesh | None,
    saved: tuple[Gradients, Constants],
    cotangents: tuple[jax.Array, Statistics],
) -> tuple[Embeddings, Teacher | None, tuple[Term, ...], jax.Array]:
    gradients, constants = saved
    image, text, scales = jax.tree.map(lambda x: x * cotangents[0], gradients)
    return Embeddings(image, text), *jax.tree.map(jnp.zeros_like, constants), scales


cross_entropies.defvjp(_forward, _backward)
