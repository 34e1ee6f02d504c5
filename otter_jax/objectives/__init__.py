"""Objectives: embeddings in, one scalar and its parts out; no Flax, no config, no data.

`total_loss` is the whole interface. A new target is one function in targets.py and one line in
`OBJECTIVES`.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from otter_jax.objectives import targets, tiled
from otter_jax.objectives.contrastive import (
    Embeddings,
    Statistics,
    Targets,
    Term,
    entropy,
    normalize,
    scale_from_log,
    symmetric_cross_entropy,
)

DEFAULT_TILE = 1024
LARGEST_DENSE = 4096**2


class LogScales(NamedTuple):
    """Learnable logarithms of 1 / temperature, scalars; both start at 3.9 (a scale of 49.4)."""

    contrastive: jax.Array
    distillation: jax.Array


@dataclasses.dataclass(frozen=True)
class Options:
    """What can be chosen about an objective, complete and checked; see `make_options`."""

    name: str
    alpha: float = 0.5
    epsilon: float = 0.15
    iterations: int = 5
    image_weight: float = 1.0
    text_weight: float = 1.0
    remove_diagonal: bool = True
    smoothing: float = 0.1
    teacher_scale: float = 100.0
    mixed_target: bool = False
    stop_gradient_keys: bool = False
    tile: int | None = None

    def __post_init__(self) -> None:
        """Refuses what cannot be computed, with the key as the user wrote it."""
        if not 0.0 <= self.alpha <= 1.0:
            raise ValueError(f"config.objective.alpha={self.alpha}: it must lie in [0, 1]")
        if not self.epsilon > 0.0:
            raise ValueError(f"config.objective.epsilon={self.epsilon}: it must be positive")
        if self.iterations < 1:
            raise ValueError(
                f"config.objective.iterations={self.iterations}: it must be at least 1"
            )
        if not 0.0 <= self.smoothing < 1.0:
            raise ValueError(f"config.objective.smoothing={self.smoothing}: it must lie in [0, 1)")
        if not self.teacher_scale > 0.0:
            raise ValueError(
                f"config.objective.teacher_scale={self.teacher_scale}: it must be positive"
            )
        if self.tile is not None and self.tile < 1:
            raise ValueError(f"config.objective.tile={self.tile}: it must be at least 1")

    @property
    def bound(self) -> float:
        """No similarity of the teacher is larger in magnitude, but for removed given pairs."""
        return abs(self.image_weight) + abs(self.text_weight) + 1.0

    @property
    def uses_teacher(self) -> bool:
        """Whether the targets come from a teacher."""
        return OBJECTIVES[self.name].uses_teacher


@dataclasses.dataclass(frozen=True)
class Objective:
    """A method: what its soft target is, and where its customary options are others.

    `uses_teacher` says whether the target is made of a teacher's similarities.
    """

    target: Callable[[Options], targets.Smoothed | targets.Transported]
    uses_teacher: bool = False
    defaults: dict[str, object] = dataclasses.field(default_factory=dict)


OBJECTIVES: dict[str, Objective] = {
    "infonce": Objective(lambda options: targets.Smoothed(0.0)),
    "label_smoothing": Objective(lambda options: targets.Smoothed(options.smoothing)),
    # Image-text similarity alone: with the image-image and text-text parts, whose diagonals are 1,
    # a teacher scale of 100 leaves one-hot targets and so plain InfoNCE.
    "kd": Objective(
        lambda options: targets.Transported(1.0 / options.teacher_scale, 0, options.bound),
        uses_teacher=True,
        defaults={"image_weight": 0.0, "text_weight": 0.0, "remove_diagonal": False},
    ),
    "otter": Objective(
        lambda options: targets.Transported(options.epsilon, options.iterations, options.bound),
        uses_teacher=True,
    ),
}


def make_options(name: str, **options: object) -> Options:
    """The options of objective `name`; an option that is None takes that objective's default.

    Raises:
      ValueError: for an unknown objective or a value out of range.
    """
    if name not in OBJECTIVES:
        raise ValueError(f"config.objective.name={name!r}: choose from {', '.join(OBJECTIVES)}")
    given = {key: value for key, value in options.items() if value is not None}
    return Options(name=name, **(OBJECTIVES[name].defaults | given))


def soft_targets(options: Options, teacher: Embeddings | None, num_pairs: int) -> Targets:
    """The targets of both directions, [N, N] each, without gradient.

    Args:
      options: which target, and its parameters.
      teacher: embeddings with unit rows; None where the objective uses no teacher.
      num_pairs: N.
    """
    target = OBJECTIVES[options.name].target(options)
    if teacher is None:
        dense = targets.dense(target, None, num_pairs)
        return Targets(dense, dense)
    similarity = targets.teacher_similarity(
        *teacher,
        image_weight=options.image_weight,
        text_weight=options.text_weight,
        remove_diagonal=options.remove_diagonal,
    )
    return Targets(*(targets.dense(target, each, num_pairs) for each in (similarity, similarity.T)))


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


def make_terms(options: Options) -> tuple[Term, ...]:
    """The cross-entropies of an objective; a second one has a scale of its own."""
    if not options.uses_teacher:
        return (Term(1.0, given=0.0),)
    if options.mixed_target:
        return (Term(1.0, given=options.alpha),)
    return Term(options.alpha, given=1.0), Term(1.0 - options.alpha, given=0.0)


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
    cross_entropies = []
    for scale, term in zip(scales, terms, strict=True):
        target = soft
        if term.given:
            hard = term.given * targets.identity(num_pairs)
            target = Targets(*(hard + (1 - term.given) * each for each in soft))
        cross_entropies.append(
            symmetric_cross_entropy(
                student, scale, target, stop_gradient_keys=options.stop_gradient_keys
            )
        )
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
