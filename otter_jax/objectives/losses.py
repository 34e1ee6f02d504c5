"""The loss of one batch: which terms it has, and whether its matrices are whole or in tiles."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from otter_jax.objectives import contrastive, targets, tiled
from otter_jax.objectives.contrastive import (
    Directions,
    Embeddings,
    Statistics,
    Term,
    both_directions,
    entropy,
    normalize,
    scale_from_log,
    sigmoid_losses,
    symmetric_cross_entropy,
)
from otter_jax.objectives.options import OBJECTIVES, Options, make_terms

DEFAULT_TILE = 1024
LARGEST_DENSE = 1024**2  # Elements of a matrix that one device has.


class LogScales(NamedTuple):
    """Learnable scalars: logarithms of 1 / temperature, and the sigmoid loss's addend."""

    contrastive: jax.Array
    distillation: jax.Array
    bias: jax.Array | float = 0.0


def soft_targets(options: Options, teacher: Embeddings | None, num_pairs: int) -> Directions:
    """The targets of both directions, [N, N] each, without gradient.

    Args:
      options: which target, and its parameters.
      teacher: embeddings with unit rows; None where the objective uses no teacher.
      num_pairs: N.
    """
    target = OBJECTIVES[options.name].target(options)
    if teacher is None:
        dense = targets.dense(target, None, num_pairs)
        return Directions(dense, dense)
    similarity = targets.teacher_similarity(
        *teacher,
        image_weight=options.image_weight,
        text_weight=options.text_weight,
        remove_diagonal=options.remove_diagonal,
    )
    return Directions(
        *(targets.dense(target, each, num_pairs) for each in (similarity, similarity.T))
    )


def total_loss(
    options: Options,
    student: Embeddings,
    teacher: Embeddings | None,
    log_scales: LogScales,
    mesh: Mesh | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss of one batch: alpha * InfoNCE + (1 - alpha) * KL(soft target || student).

    Without a teacher it is the cross-entropy to the objective's own target. Both directions are
    summed. See otter_jax/config.py for where paper and released code differ.

    Args:
      options: the objective and its parameters.
      student: [N, d] embeddings, normalised here.
      teacher: the same from the teacher, constants; None where none is used.
      log_scales: learnable log-scales; the second one serves the distillation term alone.
      mesh: over whose axis `data` the rows are split; None for one device.

    Returns:
      The loss, and metrics without gradient: `loss_contrastive` and `loss_distillation` (weighted,
      they add up to the loss), `temperature`, `target_entropy` in nats and `target_diagonal`, the
      mass that the soft target leaves on the given pairs (OTTER, Fig. 2).

    Raises:
      ValueError: an objective of several views, fewer than two pairs, shapes that do not agree or
        do not divide over the mesh, or values that are not finite where they are known before
        compilation.
    """
    if options.uses_views:
        raise ValueError(f"objective {options.name!r} is computed by declip_loss, not total_loss")
    check_embeddings(options, student, teacher, mesh)
    # One type, float32 or wider, for all that follows.
    everything = (*student, *(teacher or ()), *log_scales)
    dtype = jnp.promote_types(jnp.result_type(*everything), jnp.float32)
    student = Embeddings(*(normalize(x.astype(dtype)) for x in student))
    if teacher is not None:
        constants = map(jax.lax.stop_gradient, teacher)
        teacher = Embeddings(*(normalize(x.astype(dtype)) for x in constants))
    log_scales = LogScales(*(jnp.asarray(x, dtype) for x in log_scales))
    if options.name == "sigmoid":
        loss, metrics = _sigmoid_loss(options, student, log_scales, mesh)
    else:
        scales = [scale_from_log(each) for each in log_scales[: len(make_terms(options))]]
        loss, metrics = cross_entropy_loss(options, student, teacher, jnp.stack(scales), mesh)
    return loss, jax.lax.stop_gradient(metrics)


def cross_entropy_loss(
    options: Options,
    student: Embeddings,
    teacher: Embeddings | None,
    scales: jax.Array,
    mesh: Mesh | None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The terms of `make_terms`, less the entropy of the soft target where it has its own.

    Args:
      options: as in `total_loss`.
      student: [N, d] unit rows.
      teacher: the same, constants; None where none is used.
      scales: [terms] factor of the cosines in each term, of the embeddings' type.
      mesh: as in `total_loss`.
    """
    terms = make_terms(options)
    compute = _tiled if tile_rows(options, len(student.image), mesh) else _dense
    loss, statistics = compute(options, terms, student, teacher, scales, mesh)
    metrics = {
        "temperature": 1.0 / scales[0],
        "target_entropy": statistics.entropy / 2,
        "target_diagonal": statistics.diagonal / 2,
    }
    if len(terms) == 2:
        loss -= terms[1].weight * statistics.entropy
        distillation = terms[1].weight * (statistics.cross_entropy[1] - statistics.entropy)
        metrics |= {
            "loss_contrastive": terms[0].weight * statistics.cross_entropy[0],
            "loss_distillation": distillation,
            "distillation_temperature": 1.0 / scales[1],
        }
    return loss, metrics


def tile_rows(options: Options, num_pairs: int, mesh: Mesh | None = None) -> int | None:
    """Rows of a tile, or None where the whole matrix is computed at once.

    Without a choice of the user it is tiled where a device's share of a matrix gets large.
    """
    if options.tile is not None:
        return options.tile if options.tile < num_pairs else None
    devices = 1 if mesh is None else mesh.shape[tiled.AXIS]
    return DEFAULT_TILE if num_pairs**2 / devices > LARGEST_DENSE else None


def _dense(
    options: Options,
    terms: tuple[Term, ...],
    student: Embeddings,
    teacher: Embeddings | None,
    scales: jax.Array,
    mesh: Mesh | None,
) -> tuple[jax.Array, Statistics]:
    """The weighted sum of cross-entropies, and its statistics, from whole matrices."""
    del mesh  # The compiler splits the rows of whatever has them.
    num_pairs = len(student.image)
    soft = soft_targets(options, teacher, num_pairs)
    cosines = both_directions(student, stop_gradient_keys=options.stop_gradient_keys)
    cross_entropies = []
    for scale, term in zip(scales, terms, strict=True):
        target = Directions(*(targets.mixed(each, term.given) for each in soft))
        cross_entropies.append(symmetric_cross_entropy(cosines, scale, target))
    loss = sum(term.weight * each for term, each in zip(terms, cross_entropies, strict=True))
    soft_entropy = entropy(soft.image) + entropy(soft.text)
    diagonal = jnp.diagonal(soft.image).mean() + jnp.diagonal(soft.text).mean()
    return loss, Statistics(jnp.stack(cross_entropies), soft_entropy, diagonal)


def _tiled(
    options: Options,
    terms: tuple[Term, ...],
    student: Embeddings,
    teacher: Embeddings | None,
    scales: jax.Array,
    mesh: Mesh | None,
) -> tuple[jax.Array, Statistics]:
    """The same, a block of rows at a time."""
    features = None
    if teacher is not None:
        weights = {"image_weight": options.image_weight, "text_weight": options.text_weight}
        features = tiled.Teacher(*targets.teacher_features(*teacher, **weights))
    loss = tiled.Loss(
        target=OBJECTIVES[options.name].target(options),
        terms=terms,
        remove_diagonal=options.remove_diagonal,
        stop_gradient_keys=options.stop_gradient_keys,
    )
    rows = tile_rows(options, len(student.image), mesh)
    return tiled.cross_entropies(loss, rows, mesh, student, features, scales)


def _sigmoid_loss(
    options: Options,
    student: Embeddings,
    log_scales: LogScales,
    mesh: Mesh | None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The sum over all pairs divided by the number of images; one matrix is both directions.

    Its scale is not clamped, as in its paper.
    """
    num_pairs, scale = len(student.image), jnp.exp(log_scales.contrastive)
    if rows := tile_rows(options, num_pairs, mesh):
        loss = tiled.sigmoid_cross_entropy(rows, mesh, student, scale, log_scales.bias)
    else:
        logits = scale * contrastive.similarity(*student) + log_scales.bias
        loss = jnp.sum(sigmoid_losses(logits, jnp.eye(num_pairs, dtype=bool))) / num_pairs
    return loss, {"temperature": 1.0 / scale, "bias": log_scales.bias}


def check_embeddings(
    options: Options, student: Embeddings, teacher: Embeddings | None, mesh: Mesh | None = None
) -> None:
    """Refuses what no loss can be made of; values are looked at where they are known.

    Raises:
      ValueError: see `total_loss`.
    """
    if options.uses_teacher == (teacher is None):
        needs = "needs" if teacher is None else "does not use"
        raise ValueError(f"objective {options.name!r} {needs} a teacher's embeddings")
    num_pairs = len(student.image)
    if num_pairs < 2:
        raise ValueError(f"a contrastive loss needs at least 2 pairs, found {num_pairs}")
    if mesh is not None and tiled.AXIS not in mesh.shape:
        raise ValueError(f"the mesh has axes {mesh.axis_names}; one must be {tiled.AXIS!r}")
    if mesh is not None and num_pairs % mesh.shape[tiled.AXIS]:
        devices = mesh.shape[tiled.AXIS]
        raise ValueError(f"{num_pairs} pairs do not divide over {devices} devices")
    for owner, embeddings in (("student", student), ("teacher", teacher)):
        for name, rows in embeddings._asdict().items() if embeddings else ():
            _check_rows(f"{owner}.{name}", rows, (num_pairs, embeddings.image.shape[-1]))


def _check_rows(name: str, rows: jax.Array, shape: tuple[int, int]) -> None:
    if rows.shape != shape:
        raise ValueError(f"{name} has shape {rows.shape}; it must be {shape}")
    while isinstance(rows, jax.core.Tracer) and hasattr(rows, "primal"):
        rows = rows.primal  # Differentiated outside of jit: the values are there.
    if isinstance(rows, jax.core.Tracer):
        return
    finite = np.isfinite(np.asarray(rows, np.float32)).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"{name} has values that are not finite in {int((~finite).sum())} of {len(rows)} rows, "
            f"first in row {int(finite.argmin())}"
        )
