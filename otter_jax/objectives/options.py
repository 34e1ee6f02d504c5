"""What can be chosen about an objective, and the registry of objectives.

A new method is one line in `OBJECTIVES`: which target, and where its customary options differ.
"""

import dataclasses
import math
from collections.abc import Callable

from otter_jax.objectives import targets
from otter_jax.objectives.contrastive import MAX_SCALE, Term

LARGEST_EPSILON = 1.9  # exp(-targets.DIAGONAL_PENALTY / 1.9) is 0 in float32.


@dataclasses.dataclass(frozen=True)
class Options:
    """What can be chosen about an objective, complete and checked; see `make_options`.

    Attributes:
      name: a key of `OBJECTIVES`.
      alpha: weight of the given pairs against the soft target, in [0, 1].
      epsilon: entropic regulariser of the transport, in cosine units, > 0.
      iterations: Sinkhorn iterations, >= 1.
      image_weight: weight of image-image similarity in the teacher's matrix (gamma_v).
      text_weight: weight of text-text similarity (gamma_t).
      remove_diagonal: take the given pairs out of the teacher's matrix.
      smoothing: label smoothing's e, in [0, 1).
      teacher_scale: knowledge distillation's factor of the teacher's similarities, > 0.
      mixed_target: one cross-entropy to alpha I + (1 - alpha) P instead of two losses.
      stop_gradient_keys: a direction's gradient flows through its queries alone.
      tile: most rows of a tile, >= 1 (fewer where a tile would exceed 16 MiB); N and more for
        whole matrices; None lets the size decide.
      initial_scale: of both learnable scales, 1 / temperature, in [1, 100]; for sigmoid >= 1.
      initial_bias: of the learnable number that the sigmoid loss adds to logits; None for none.
    """

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
    initial_scale: float = math.exp(3.9)  # 49.4 (OTTER's released code).
    initial_bias: float | None = None

    def __post_init__(self) -> None:
        """Refuses what cannot be computed, with the key as the user wrote it."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float) and not math.isfinite(value):
                self._require(field.name, False, "be a finite number")
        self._require("alpha", 0.0 <= self.alpha <= 1.0, "lie in [0, 1]")
        self._require("epsilon", self.epsilon > 0.0, "be positive")
        # Above it, the penalty that takes given pairs out would leave them a share.
        possible = self.epsilon <= LARGEST_EPSILON or not self.remove_diagonal
        self._require("epsilon", possible, f"be at most {LARGEST_EPSILON} with remove_diagonal")
        self._require("smoothing", 0.0 <= self.smoothing < 1.0, "lie in [0, 1)")
        self._require("teacher_scale", self.teacher_scale > 0.0, "be positive")
        for name in ("iterations", "tile"):
            value = getattr(self, name)
            if value is not None:
                whole = isinstance(value, int) and value >= 1
                self._require(name, whole, "be at least 1, and a whole number")
        self._require("initial_scale", self.initial_scale >= 1.0, "be at least 1")
        if self.name == "sigmoid":
            free = not self.stop_gradient_keys
            self._require("stop_gradient_keys", free, "be False: the sigmoid loss has no keys")
        else:
            within = self.initial_scale <= MAX_SCALE
            self._require("initial_scale", within, f"be at most {MAX_SCALE:g}")
            self._require("initial_bias", self.initial_bias is None, "be unset but for sigmoid")

    def _require(self, name: str, holds: bool, requirement: str) -> None:
        if not holds:
            value = getattr(self, name)
            raise ValueError(f"config.objective.{name}={value}: it must {requirement}")

    @property
    def bound(self) -> float:
        """No similarity of the teacher is larger in magnitude, but for removed given pairs."""
        return abs(self.image_weight) + abs(self.text_weight) + 1.0

    @property
    def uses_teacher(self) -> bool:
        """Whether the targets come from a teacher."""
        return isinstance(OBJECTIVES[self.name].target(self), targets.Transported)


@dataclasses.dataclass(frozen=True)
class Objective:
    """A method: what its soft target is, and where its customary options are others."""

    target: Callable[[Options], targets.Smoothed | targets.Transported]
    defaults: dict[str, object] = dataclasses.field(default_factory=dict)


OBJECTIVES: dict[str, Objective] = {
    "infonce": Objective(lambda options: targets.Smoothed(0.0)),
    "label_smoothing": Objective(lambda options: targets.Smoothed(options.smoothing)),
    # Image-text similarity alone: with the image-image and text-text parts, whose diagonals are 1,
    # a teacher scale of 100 leaves one-hot targets and so plain InfoNCE.
    "kd": Objective(
        lambda options: targets.Transported(1.0 / options.teacher_scale, 0, options.bound),
        defaults={"image_weight": 0.0, "text_weight": 0.0, "remove_diagonal": False},
    ),
    "sigmoid": Objective(
        lambda options: targets.Smoothed(0.0),
        defaults={"initial_scale": 10.0, "initial_bias": -10.0},
    ),
    "otter": Objective(
        lambda options: targets.Transported(options.epsilon, options.iterations, options.bound),
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


def make_terms(options: Options) -> tuple[Term, ...]:
    """The cross-entropies of an objective; a second one has a scale of its own."""
    if not options.uses_teacher:
        return (Term(1.0, given=0.0),)
    if options.mixed_target:
        return (Term(1.0, given=options.alpha),)
    return Term(options.alpha, given=1.0), Term(1.0 - options.alpha, given=0.0)
