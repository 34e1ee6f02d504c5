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
      The loss, and metrics: `loss_contrastive` and `loss_distillation` (weighted, they add up to
      the loss), `temperature`, `target_entropy` in nats and `target_diagonal`, the mass that the
      soft target leaves on the given pairs (OTTER, Fig. 2).

    Raises:
      ValueError: fewer than two pairs, shapes that do not agree, or values that are not finite
        where they are known before compilation.
    """
    check_embeddings(options, student, teacher)
    student = Embeddings(*map(normalize, student))
    if teacher is not None:
        teacher = Embeddings(*(normalize(jax.lax.stop_gradient(x)) for x in teacher))
    if options.name == "sigmoid":
        return _sigmoid_loss(options, student, log_scales, mesh)
    terms = make_terms(options)
    scales = jnp.stack([scale_from_log(each) for each in log_scales[: len(terms)]])
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
    devices = 1 if mesh is None else mesh.devices.size
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
    options: Options, student: Embeddings, log_scales: LogScales, mesh: Mesh | None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The sum over all pairs divided by the number of images; one matrix is both directions."""
    num_pairs = len(student.image)
    scale = scale_from_log(log_scales.contrastive)
    bias = jnp.asarray(log_scales.bias, scale.dtype)
    if rows := tile_rows(options, num_pairs, mesh):
        loss = tiled.sigmoid_cross_entropy(rows, mesh, student, scale, bias)
    else:
        logits = scale * contrastive.similarity(*student) + bias
        loss = jnp.sum(sigmoid_losses(logits, jnp.eye(num_pairs, dtype=bool))) / num_pairs
    return loss, {"temperature": 1.0 / scale, "bias": bias}


def check_embeddings(options: Options, student: Embeddings, teacher: Embeddings | None) -> None:
    """Refuses what no loss can be made of; values are looked at where they are known.

    Raises:
      ValueError: see `total_loss`.
    """
    if options.uses_teacher == (teacher is None):
        needs = "needs" if teacher is None else "does not use"
        raise ValueError(f"objective {options.name!r} {needs} a teacher's embeddings")
    for owner, embeddings in (("student", student), ("teacher", teacher or ())):
        for name, rows in zip(Embeddings._fields, embeddings, strict=False):
            _check_rows(f"{owner}.{name}", rows, len(student.image))


def _check_rows(name: str, rows: jax.Array, num_pairs: int) -> None:
    if rows.ndim != 2 or len(rows) != num_pairs:
        raise ValueError(f"{name} has shape {rows.shape}; it must be [{num_pairs}, d]")
    if num_pairs < 2:
        raise ValueError(f"{name} has {num_pairs} rows; a contrastive loss needs at least 2 pairs")
    if not isinstance(rows, jax.core.Tracer):
        finite = np.isfinite(np.asarray(rows, np.float32)).all(axis=1)
        if not finite.all():
            raise ValueError(
                f"{name} has values that are not finite in {int((~finite).sum())} of {num_pairs} "
                f"rows, first in row {int(finite.argmin())}"
            )
