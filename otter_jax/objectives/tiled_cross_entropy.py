"""The cross-entropies of both directions without any N x N array, on one device or many.

With the student's S = V T^T and a scale s, the gradient of both cross-entropies with respect to
S_ij is s (softmax over row i + softmax over column j - P_ij - P'_ji) / N. So backward needs no more
than what a first sweep leaves, the log-sum-exps of rows and columns. What pair i weighs is a factor
of row i and of column i, one for each direction.

The gradient is computed along with the value, by a second sweep that forms every tile again.
Differentiating the sweeps instead takes about one and a half times as long (docs/targets.md).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp, xlogy
from jax.sharding import Mesh, PartitionSpec

from otter_jax.objectives import targets, tiles
from otter_jax.objectives.contrastive import (
    Embeddings,
    Statistics,
    Term,
    similarity,
    weighted_mean,
)
from otter_jax.objectives.known_positives import Known, Relation, is_same, relate, smoothed
from otter_jax.objectives.tiled_sinkhorn import (
    Potentials,
    TeacherFeatures,
    plan_potentials,
    teacher_logits,
)
from otter_jax.objectives.tiles import Axes, ColumnSum, Rows, Tiling, is_given


@dataclasses.dataclass(frozen=True)
class Problem:
    """What to compute from a batch; static.

    Attributes:
        target: the soft target of both directions.
        remove_diagonal: take the given pairs out of the teacher's matrix.
        stop_gradient_keys: a direction's gradient flows through its queries alone.
        known: what becomes of known positives; None where none are known.
    """

    target: targets.Smoothed | targets.Transported
    remove_diagonal: bool = True
    stop_gradient_keys: bool = False
    known: str | None = None


# What a loss has no gradient by.
Constants = tuple[TeacherFeatures | None, tuple[Term, ...], Known | None]


class Gradients(NamedTuple):
    """Derivatives of the weighted sum of the terms; rows of this device."""

    image: jax.Array  # [rows, d]
    text: jax.Array  # [rows, d]
    scales: jax.Array  # [terms]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def cross_entropies(
    problem: Problem,
    tile: int,
    mesh: Mesh | None,
    student: Embeddings,
    teacher: TeacherFeatures | None,
    terms: tuple[Term, ...],
    scales: jax.Array,
    known: Known | None = None,
) -> tuple[jax.Array, Statistics]:
    """Return the weighted sum of the loss's terms, and statistics that carry no gradient.

    Args:
        problem: what to compute.
        tile: most rows in a tile.
        mesh: its axis `data` splits the rows; None or a mesh of one device for one device.
        student: [N, d] unit rows.
        teacher: features whose inner products are the similarities, constants.
        terms: cross-entropies to mixtures of the given pairs and the soft target; [N] each,
            constants.
        scales: [terms] factor of the similarities in each term.
        known: groups of the pairs, with `problem.known`; [N] each, constants.
    """
    return _forward(problem, tile, mesh, student, teacher, terms, scales, known)[0]


def _forward(
    problem: Problem,
    tile: int,
    mesh: Mesh | None,
    student: Embeddings,
    teacher: TeacherFeatures | None,
    terms: tuple[Term, ...],
    scales: jax.Array,
    known: Known | None = None,
) -> tuple[tuple[jax.Array, Statistics], tuple[Gradients, Constants]]:
    num_pairs = len(student.image)
    if not tiles.is_split(mesh):
        run = functools.partial(
            value_and_gradients_of_rows, problem, tiles.make_tiling(num_pairs, tile)
        )
    else:
        axes = tiles.batch_axes(mesh)
        tiling = tiles.make_tiling(num_pairs, tile, axes, tiles.count_devices(mesh))
        split, whole = PartitionSpec(axes), PartitionSpec()
        run = jax.shard_map(
            functools.partial(value_and_gradients_of_rows, problem, tiling),
            mesh=mesh,
            in_specs=(split, split, split, whole, split),
            out_specs=(whole, Gradients(split, split, whole)),
            check_vma=False,  # It cannot see that sums over all devices are the same on each.
        )
    statistics, gradients = run(student, teacher, terms, scales, known)
    means = (
        weighted_mean(term.weight, rows)
        for term, rows in zip(terms, statistics.cross_entropy, strict=True)
    )
    value = sum(means)
    return (value, statistics), (gradients, (teacher, terms, known))


def _backward(
    problem: Problem,
    tile: int,
    mesh: Mesh | None,
    saved: tuple[Gradients, Constants],
    cotangents: tuple[jax.Array, Statistics],
) -> tuple[Embeddings, TeacherFeatures | None, tuple[Term, ...], jax.Array, Known | None]:
    # The gradient was computed along with the value: what is left is the chain rule's factor.
    gradients, constants = saved
    image, text, scales = jax.tree.map(lambda x: x * cotangents[0], gradients)
    teacher, terms, known = jax.tree.map(jnp.zeros_like, constants)
    return Embeddings(image, text), teacher, terms, scales, known


cross_entropies.defvjp(_forward, _backward)


class _Sums(NamedTuple):
    """What the tiles of this device add up to."""

    by_text: jax.Array  # [N, d]
    by_scale: jax.Array  # [terms]
    matched: jax.Array  # [N, terms] target times S of the text direction.
    entropy: jax.Array  # [N] of the text direction's target.

    @classmethod
    def of_nothing(cls, texts: jax.Array, scales: jax.Array, over_columns: jax.Array) -> "_Sums":
        """Return the sums before the first tile."""
        zeros = jnp.zeros_like
        return cls(zeros(texts), zeros(scales), zeros(over_columns), zeros(texts[:, 0]))


class _Rows(NamedTuple):
    """What a tile says about its own rows."""

    by_image: jax.Array  # [tile, d]
    matched: jax.Array  # [tile, terms] target times S of the image direction.
    entropy: jax.Array  # [tile] of the image direction's target.
    diagonal: jax.Array  # [tile] mass of both targets on the given pairs.


def value_and_gradients_of_rows(
    problem: Problem,
    tiling: Tiling,
    student: Embeddings,
    teacher: TeacherFeatures | None,
    terms: tuple[Term, ...],
    scales: jax.Array,
    known: Known | None = None,
) -> tuple[Statistics, Gradients]:
    """Return statistics of all pairs, and the gradient of the loss; works inside `shard_map`.

    Args:
        problem: what to compute.
        tiling: how this device goes through its rows.
        student: [rows, d] unit rows of this device.
        teacher: this device's rows and columns, [rows, k] each; None for a `Smoothed` target.
        terms: cross-entropies to mixtures of the given pairs and the soft target, [rows] each.
        scales: [terms] factor of the similarities in each term.
        known: groups of this device's pairs, [rows] each, with `problem.known`.
    """
    axis = tiling.axis
    # A tile has all columns: [N, d] features of the texts travel once, [N, N] never exists.
    texts, columns, groups = jax.tree.map(
        lambda x: tiles.gather(x, axis), (student.text, terms, known)
    )
    relate_rows = functools.partial(_relate, problem, groups)
    over_rows, over_columns = _normalisers(tiling, student.image, texts, scales, known, relate_rows)
    potentials = None
    if teacher is not None:
        columns_of_teacher = (teacher.columns, teacher.column_groups)
        gathered = jax.tree.map(lambda x: tiles.gather(x, axis), columns_of_teacher)
        teacher = teacher._replace(columns=gathered[0], column_groups=gathered[1])
        potentials = plan_potentials(tiling, teacher, problem.target, problem.remove_diagonal)

    def step(sums: _Sums, rows: Rows, inputs: tuple) -> tuple[_Sums, _Rows]:
        image, terms, over_rows, own_groups, by_row, row_potentials = inputs
        # Formed again, not kept from the first sweep: that would be the N x N array.
        cosines = similarity(image, texts)
        relation = relate_rows(rows, own_groups, cosines)
        if teacher is not None:
            here = potentials._replace(rows=row_potentials)
            tile = _transported_tile(problem, rows, cosines, relation, by_row, teacher, here)
        elif groups is not None:
            tile = _smoothed_tile_of_groups(problem, rows, cosines, relation, own_groups, groups)
        else:
            tile = _smoothed_tile(problem, rows, cosines)
        slopes = _slopes(tile, Terms(terms, columns), scales, over_rows, over_columns)
        by_image, by_text = slopes.by_image, slopes.by_text
        # Each side is the query of one direction and the key of the other. With both gradients it
        # gets the sum; as a query alone, only what its own direction says.
        if not problem.stop_gradient_keys:
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
            diagonal=jnp.sum((tile.image + tile.text) * relation.given, axis=1),
        )

    features = (known, teacher and teacher.by_row, potentials and potentials.rows)
    none = _Sums.of_nothing(texts, scales, over_columns)
    sums, ours = tiles.scan(tiling, step, none, (student.image, terms, over_rows, *features))
    return _over_all_devices(axis, sums, ours, over_rows, over_columns, scales)


def _relate(
    problem: Problem, groups: Known | None, rows: Rows, own: Known | None, cosines: jax.Array
) -> Relation:
    """Return what the rows of a tile are to all columns, whose groups are given first."""
    columns = None if groups is None else groups.number
    return relate(problem.known, own, columns, is_given(rows, cosines))


def _normalisers(
    tiling: Tiling,
    image: jax.Array,
    texts: jax.Array,
    scales: jax.Array,
    known: Known | None,
    relate_rows: Callable[..., Relation],
) -> tuple[jax.Array, jax.Array]:
    """Return log-sum-exps of scale * S over rows and over columns, [rows or N, scales]."""

    def step(
        sums: tuple[ColumnSum, ...], rows: Rows, inputs: tuple
    ) -> tuple[tuple[ColumnSum, ...], jax.Array]:
        image, own_groups = inputs
        cosines = similarity(image, texts)
        if (hidden := relate_rows(rows, own_groups, cosines).hidden) is not None:
            cosines = jnp.where(hidden, -jnp.inf, cosines)
        over_rows = jnp.stack([logsumexp(scale * cosines, axis=1) for scale in scales], axis=1)
        # Zeros of the padding would count as cosines in every column.
        padded = jnp.where(rows.valid[:, None], cosines, -jnp.inf)
        sums = tuple(
            tiles.add_rows(sum_, scale * padded) for sum_, scale in zip(sums, scales, strict=True)
        )
        return sums, over_rows

    empty = tiles.empty_sum(len(texts), image.dtype)
    sums, over_rows = tiles.scan(tiling, step, (empty,) * len(scales), (image, known))
    over_columns = [tiles.log_of_sum(sum_, tiling.axis) for sum_ in sums]
    return over_rows, jnp.stack(over_columns, axis=1)


class Terms(NamedTuple):
    """What each pair weighs, and how much of the given pair is in its target."""

    rows: tuple[Term, ...]  # [rows of this device] each
    columns: tuple[Term, ...]  # [N] each


class _Tile(NamedTuple):
    """A block of rows of everything that has N columns; arrays [tile, N]."""

    cosines: jax.Array  # S, of the student.
    given: jax.Array  # What rows should match by what is given; bool where that is one pair.
    image: jax.Array  # P, images over texts.
    text: jax.Array  # P', texts over images.
    image_entropy: jax.Array  # -P log P, each element.
    text_entropy: jax.Array
    hidden: jax.Array | None = None  # bool: what the student's softmax leaves out.


def _transported_tile(
    problem: Problem,
    rows: Rows,
    cosines: jax.Array,
    relation: Relation,
    by_row: tuple,
    teacher: TeacherFeatures,
    potentials: Potentials,
) -> _Tile:
    """Return the tile with the teacher's targets."""
    logits = teacher_logits(rows, by_row, teacher, problem.target.epsilon, problem.remove_diagonal)
    plans, entropies = [], []
    for k in range(2):
        # From logarithms, so that an entry of 1e-30 is not a quotient of two underflows.
        log_plan = logits + potentials.rows[:, k, None] + potentials.columns[None, :, k]
        plan = jnp.where(rows.valid[:, None], jnp.exp(log_plan), 0.0)
        plans.append(plan)
        entropies.append(-plan * log_plan)
    return _Tile(cosines, relation.target, *plans, *entropies, relation.hidden)


def _smoothed_tile_of_groups(
    problem: Problem,
    rows: Rows,
    cosines: jax.Array,
    relation: Relation,
    own: Known,
    groups: Known,
) -> _Tile:
    """Return the tile with a target that needs no teacher, of pairs of which groups are known."""
    same, smoothing = is_same(own.number, groups.number), problem.target.smoothing
    # Of a row's own group the image direction, of a column's the text direction.
    plans = [
        jnp.where(rows.valid[:, None], smoothed(smoothing, relation, same, counts), 0.0)
        for counts in (own.count[:, None], groups.count[None, :])
    ]
    entropies = [-xlogy(plan, plan) for plan in plans]
    return _Tile(cosines, relation.target, *plans, *entropies, relation.hidden)


def _smoothed_tile(problem: Problem, rows: Rows, cosines: jax.Array) -> _Tile:
    """Return the tile with a target that needs no teacher."""
    on, off = problem.target.on_diagonal, problem.target.off_diagonal(cosines.shape[1])
    given = is_given(rows, cosines) & rows.valid[:, None]

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
    """Return a tile's part of the gradient; terms and log-sum-exps are those of its rows."""
    by_image = by_text = jnp.zeros_like(tile.cosines)
    by_scale, matched_image, matched_text = [], [], []
    for k, (row, column) in enumerate(zip(*terms, strict=True)):
        logits, identity = scales[k] * tile.cosines, row.identity[:, None]
        image_target = identity * tile.given + (1.0 - identity) * tile.image
        text_target = column.identity * tile.given + (1.0 - column.identity) * tile.text
        # Softmax minus target, row by row and column by column: a cross-entropy's gradient.
        if tile.hidden is not None:
            logits = jnp.where(tile.hidden, -jnp.inf, logits)
        image_error = row.weight[:, None] * (jnp.exp(logits - over_rows[:, k, None]) - image_target)
        text_error = column.weight * (jnp.exp(logits - over_columns[:, k]) - text_target)
        by_image += scales[k] * image_error
        by_text += scales[k] * text_error
        by_scale.append(jnp.sum((image_error + text_error) * tile.cosines))
        matched_image.append(jnp.sum(image_target * tile.cosines, axis=1))
        matched_text.append(jnp.sum(text_target * tile.cosines, axis=0))
    matched = (jnp.stack(x, axis=1) for x in (matched_image, matched_text))
    return _Slopes(by_image, by_text, jnp.stack(by_scale), *matched)


def _over_all_devices(
    axis: Axes | None,
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
    # Of pair i: row i of one direction and column i, which is row i of the other.
    losses = image_losses + over_columns - scales * matched
    by_text = sums.by_text
    if axis is not None:
        # Every device has a part of the gradient of all texts, and needs the whole of its own.
        by_text = jax.lax.psum_scatter(by_text, axis, tiled=True)
    gradients = Gradients(ours.by_image / num_pairs, by_text / num_pairs, by_scale / num_pairs)
    return Statistics(losses.T, image_entropy + entropy, diagonal), gradients


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision="highest")
