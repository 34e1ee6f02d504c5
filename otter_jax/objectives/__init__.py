"""Objectives: embeddings in, one scalar and its parts out; no Flax, no config, no data.

`total_loss` is the whole interface. A new target is one function in targets.py and one line in
`OBJECTIVES`.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from otter_jax.objectives import targets
from otter_jax.objectives.contrastive import (
    Embeddings,
    Targets,
    entropy,
    normalize,
    scale_from_log,
    symmetric_cross_entropy,
)


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

    @property
    def uses_teacher(self) -> bool:
        """Whether the targets come from a teacher."""
        return OBJECTIVES[self.name].uses_teacher


@dataclasses.dataclass(frozen=True)
class Objective:
    """A method: how its target is made, and where its customary options are others.

    `target(similarity, num_pairs, options)` returns [N, N] for one direction; `similarity` is the
    teacher's in that direction, or None where no teacher is used.
    """

    target: Callable[[jax.Array | None, int, Options], jax.Array]
    uses_teacher: bool = False
    defaults: dict[str, object] = dataclasses.field(default_factory=dict)


OBJECTIVES: dict[str, Objective] = {
    "infonce": Objective(lambda _, n, options: targets.identity(n)),
    "label_smoothing": Objective(lambda _, n, options: targets.smoothed(n, options.smoothing)),
    # Image-text similarity alone: with the image-image and text-text parts, whose diagonals are 1,
    # a teacher scale of 100 leaves one-hot targets and so plain InfoNCE.
    "kd": Objective(
        lambda similarity, _, options: targets.softened(similarity, options.teacher_scale),
        uses_teacher=True,
        defaults={"image_weight": 0.0, "text_weight": 0.0, "remove_diagonal": False},
    ),
    "otter": Objective(
        lambda similarity, _, options: targets.transported(
            similarity, options.epsilon, options.iterations
        ),
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
    make = OBJECTIVES[options.name].target
    if teacher is None:
        target = make(None, num_pairs, options)
        return Targets(target, target)
    similarity = targets.teacher_similarity(
        *teacher,
        image_weight=options.image_weight,
        text_weight=options.text_weight,
        remove_diagonal=options.remove_diagonal,
    )
    return Targets(make(similarity, num_pairs, options), make(similarity.T, num_pairs, options))


def total_loss(
    options: Options, student: Embeddings, teacher: Embeddings | None, log_scales: LogScales
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss of one batch: alpha * InfoNCE + (1 - alpha) * KL(soft target || student).

    Without a teacher it is the cross-entropy to the objective's own target. Both directions are
    summed. See otter_jax/config.py for where paper and released code differ.

    Args:
      options: the objective and its parameters.
      student: [N, d] embeddings, normalised here.
      teacher: the same from the teacher, constants; None where none is used.
      log_scales: learnable log-scales; the second one serves the distillation term alone.

    Returns:
      The loss, and metrics: `loss_contrastive` and `loss_distillation` (weighted, they add up to
      the loss), `temperature`, `target_entropy` in nats and `target_diagonal`, the mass that the
      soft target leaves on the given pairs.
    """
    student = Embeddings(*map(normalize, student))
    if teacher is not None:
        teacher = Embeddings(*(normalize(jax.lax.stop_gradient(x)) for x in teacher))
    num_pairs = student.image.shape[0]
    soft = soft_targets(options, teacher, num_pairs)
    scale = scale_from_log(log_scales.contrastive)
    metrics = {"temperature": 1.0 / scale} | target_statistics(soft)

    def loss_to(target: Targets, scale: jax.Array) -> jax.Array:
        return symmetric_cross_entropy(
            student, scale, target, stop_gradient_keys=options.stop_gradient_keys
        )

    hard = Targets(*[targets.identity(num_pairs)] * 2)
    if teacher is None:
        return loss_to(soft, scale), metrics
    if options.mixed_target:
        mixed = jax.tree.map(lambda h, s: options.alpha * h + (1 - options.alpha) * s, hard, soft)
        return loss_to(mixed, scale), metrics
    distillation_scale = scale_from_log(log_scales.distillation)
    soft_entropy = entropy(soft.image) + entropy(soft.text)
    parts = {
        "loss_contrastive": options.alpha * loss_to(hard, scale),
        "loss_distillation": (1 - options.alpha)
        * (loss_to(soft, distillation_scale) - soft_entropy),
    }
    metrics |= parts | {"distillation_temperature": 1.0 / distillation_scale}
    return parts["loss_contrastive"] + parts["loss_distillation"], metrics


def target_statistics(soft: Targets) -> dict[str, jax.Array]:
    """Mean entropy of the targets' rows (nats) and mean mass on the given pairs, both directions.

    This is what OTTER's Fig. 2 shows of a batch.
    """
    return {
        "target_entropy": (entropy(soft.image) + entropy(soft.text)) / 2,
        "target_diagonal": (jnp.diagonal(soft.image).mean() + jnp.diagonal(soft.text).mean()) / 2,
    }
