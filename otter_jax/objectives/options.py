"""What can be chosen about an objective, and the registry of objectives.

A new method is one line in `OBJECTIVES`: which target, and where its customary options differ.
"""

import dataclasses
import math
import numbers
from collections.abc import Callable

import jax
import jax.numpy as jnp

from otter_jax.objectives import targets
from otter_jax.objectives.contrastive import MAX_SCALE, Term

LARGEST_EPSILON = 1.9  # exp(-targets.DIAGONAL_PENALTY / 1.9) is 0 in float32.
ESTIMATED = "estimated"  # Instead of one number for all: from each pair's trust.
VIEW_TARGETS = {"identity": "infonce", "otter": "otter"}  # And the objective that has that target.
WEIGHTS = (
    "clip_weight",
    "neighbor_weight",
    "simsiam_weight",
    "mlm_weight",
    "multi_view_weight",
    "simclr_weight",
)


@dataclasses.dataclass(frozen=True)
class Options:
    """What can be chosen about an objective, complete and checked; see `make_options`.

    Attributes:
        name: a key of `OBJECTIVES`.
        alpha: weight of the given pairs against the soft target, in [0, 1]; or "estimated", and it
            is each pair's trust.
        pair_weight: what a pair's row weighs in both directions; None for 1, "estimated" for its
            trust divided by the mean trust of the batch.
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
        initial_scale: of both learnable scales, 1 / temperature, >= 1 and within their bounds.
        initial_bias: of the learnable number that the sigmoid loss adds to logits; None for none.
        targets: declip and slip: what each pair of views should match, one of `VIEW_TARGETS`: the
            given pairs alone, or otter's mixture with transported targets (alpha and so on as
            there).
        ss: declip: self-supervision, SimSiam on images and masked language modelling on texts; a
            weight of 0 leaves either out, with the view it needs.
        mvs: declip: multi-view supervision, all pairs of two image and two text views.
        nns: declip: nearest-neighbour supervision, images against a queue of recent texts.
        clip_weight: declip and slip: of the contrastive part. A part that is off is just absent,
            the others' weights stay as they are; so with all three off declip is this times CLIP's
            loss.
        neighbor_weight: declip: of the nearest-neighbour part.
        simsiam_weight: declip: of SimSiam.
        mlm_weight: declip: of masked language modelling.
        multi_view_weight: declip: None for clip_weight times the mean over the pairs of views (as
            released); else clip_weight times the first pair's loss plus this times the sum of the
            others' (the paper, which has 0.2).
        symmetric_neighbors: declip: also from the neighbours to images, the mean of both
            directions; the released code has images to neighbours only.
        queue_size: declip: texts that the queue holds, >= 1.
        simclr_weight: slip: of the NT-Xent loss.
        min_scale: least scale, > 0, below which it has no gradient; None (the default of slip and
            sigmoid) for no bound. Released configs of declip have exp(3).
        max_scale: the same at the upper end.
    """

    name: str
    alpha: float | str = 0.5
    pair_weight: str | None = None
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
    targets: str = "identity"
    ss: bool = False
    mvs: bool = False
    nns: bool = False
    clip_weight: float = 0.4
    neighbor_weight: float = 0.2
    simsiam_weight: float = 0.2
    mlm_weight: float = 0.2
    multi_view_weight: float | None = None
    symmetric_neighbors: bool = False
    queue_size: int = 65536
    simclr_weight: float = 1.0
    min_scale: float | None = 1.0
    max_scale: float | None = MAX_SCALE

    def __post_init__(self) -> None:
        """Refuse what cannot be computed, with the key as the user wrote it."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float) and not math.isfinite(value):
                self._require(field.name, False, "be a finite number")
        self._require("epsilon", self.epsilon > 0.0, "be positive")
        # Above it, the penalty that takes given pairs out would leave them a share.
        possible = self.epsilon <= LARGEST_EPSILON or not self.remove_diagonal
        self._require("epsilon", possible, f"be at most {LARGEST_EPSILON} with remove_diagonal")
        self._require("smoothing", 0.0 <= self.smoothing < 1.0, "lie in [0, 1)")
        self._require("teacher_scale", self.teacher_scale > 0.0, "be positive")
        for name in ("iterations", "tile", "queue_size"):
            value = getattr(self, name)
            if value is not None:
                whole = isinstance(value, int) and value >= 1
                self._require(name, whole, "be at least 1, and a whole number")
        for name in WEIGHTS:
            value = getattr(self, name)
            self._require(name, value is None or value >= 0.0, "be at least 0")
        known = self.targets in VIEW_TARGETS
        self._require("targets", known, f"be one of {', '.join(VIEW_TARGETS)}")
        self._check_trust()
        self._check_scales()

    def _check_trust(self) -> None:
        """Trust needs a soft target to decide for, or weights."""
        if self.alpha == ESTIMATED:
            requirement = (
                'be a number: only kd, otter, and declip and slip with targets="otter" have a soft '
                f"target; for {self.name} there is pair_weight={ESTIMATED!r}"
            )
            self._require("alpha", self.uses_teacher, requirement)
        else:
            within = isinstance(self.alpha, numbers.Real) and 0.0 <= self.alpha <= 1.0
            self._require("alpha", within, f"lie in [0, 1], or be {ESTIMATED!r}")
        known = self.pair_weight in (None, ESTIMATED)
        self._require("pair_weight", known, f"be unset, or {ESTIMATED!r}")

    def _check_scales(self) -> None:
        """A scale must start where it has a gradient."""
        self._require("initial_scale", self.initial_scale >= 1.0, "be at least 1")
        if self.name == "sigmoid":
            free = not self.stop_gradient_keys
            self._require("stop_gradient_keys", free, "be False: the sigmoid loss has no keys")
        else:
            self._require("initial_bias", self.initial_bias is None, "be unset but for sigmoid")
        lowest = 0.0 if self.min_scale is None else self.min_scale
        highest = math.inf if self.max_scale is None else self.max_scale
        self._require("min_scale", self.min_scale is None or lowest > 0.0, "be positive")
        self._require("max_scale", lowest <= highest, f"be at least min_scale={lowest:g}")
        within = lowest <= self.initial_scale <= highest
        bounds = f"[min_scale={lowest:g}, max_scale={highest:g}]: outside it would stay for ever"
        self._require("initial_scale", within, f"lie in {bounds}")

    def _require(self, name: str, holds: bool, requirement: str) -> None:
        if not holds:
            value = getattr(self, name)
            raise ValueError(f"config.objective.{name}={value}: it must {requirement}")

    @property
    def bound(self) -> float:
        """No similarity of the teacher is larger in magnitude, but for removed given pairs."""
        return abs(self.image_weight) + abs(self.text_weight) + 1.0

    @property
    def scale_bounds(self) -> tuple[float | None, float | None]:
        """What `contrastive.scale_from_log` keeps the learnable scales in."""
        return self.min_scale, self.max_scale

    @property
    def uses_teacher(self) -> bool:
        """Whether the targets come from a teacher."""
        return isinstance(OBJECTIVES[self.name].target(self), targets.Transported)

    @property
    def uses_trust(self) -> bool:
        """Whether each pair comes with a number, the probability that its caption is right."""
        return ESTIMATED in (self.alpha, self.pair_weight)

    @property
    def uses_views(self) -> bool:
        """Whether its loss is `declip_loss`, not `total_loss`."""
        return self.name in ("declip", "slip")

    @property
    def uses_two_image_views(self) -> bool:
        """Whether an image is seen in two augmentations, by the contrast or by SimSiam alone."""
        return self.name == "declip" and (self.mvs or self.uses_simsiam)

    @property
    def uses_two_text_views(self) -> bool:
        """Whether a text is seen in two augmentations."""
        return self.name == "declip" and self.mvs

    @property
    def uses_simsiam(self) -> bool:
        """Whether projections and predictions of both image views are needed."""
        return self.name == "declip" and self.ss and self.simsiam_weight > 0

    @property
    def uses_masked_language(self) -> bool:
        """Whether tokens of the first text view are masked and predicted."""
        return self.name == "declip" and self.ss and self.mlm_weight > 0

    @property
    def uses_queue(self) -> bool:
        """Whether the state holds a queue of text embeddings."""
        return self.name == "declip" and self.nns and self.neighbor_weight > 0

    @property
    def uses_simclr(self) -> bool:
        """Whether an image has two augmented views beside the one that is contrasted (SLIP)."""
        return self.name == "slip" and self.simclr_weight > 0


@dataclasses.dataclass(frozen=True)
class Objective:
    """A method: what its soft target is, and where its customary options are others."""

    target: Callable[[Options], targets.Smoothed | targets.Transported]
    defaults: dict[str, object] = dataclasses.field(default_factory=dict)


def _view_target(options: Options) -> targets.Smoothed | targets.Transported:
    """Return what a pair of views should match."""
    return OBJECTIVES[VIEW_TARGETS[options.targets]].target(options)


OBJECTIVES: dict[str, Objective] = {
    "infonce": Objective(lambda options: targets.Smoothed(0.0)),
    "label_smoothing": Objective(lambda options: targets.Smoothed(options.smoothing)),
    # Image-text similarity alone: with the image-image and text-text parts, whose diagonals are 1,
    # a teacher scale of 100 leaves one-hot targets and so plain InfoNCE.
    "kd": Objective(
        lambda options: targets.Transported(1.0 / options.teacher_scale, 0, options.bound),
        defaults={"image_weight": 0.0, "text_weight": 0.0, "remove_diagonal": False},
    ),
    # Neither its paper nor the released code of SLIP clamps the scale.
    "sigmoid": Objective(
        lambda options: targets.Smoothed(0.0),
        defaults={
            "initial_scale": 10.0,
            "initial_bias": -10.0,
            "min_scale": None,
            "max_scale": None,
        },
    ),
    "otter": Objective(
        lambda options: targets.Transported(options.epsilon, options.iterations, options.bound),
    ),
    "declip": Objective(
        _view_target,
        defaults={"ss": True, "mvs": True, "nns": True, "initial_scale": 1.0 / 0.07},
    ),
    "slip": Objective(
        _view_target,
        defaults={
            "clip_weight": 1.0,
            "initial_scale": 1.0 / 0.07,
            "min_scale": None,
            "max_scale": None,
        },
    ),
}


def make_options(name: str, **options: object) -> Options:
    """Return the options of objective `name`; an option that is None takes that objective's default.

    Raises:
        ValueError: for an unknown objective or a value out of range.
    """
    if name not in OBJECTIVES:
        raise ValueError(f"config.objective.name={name!r}: choose from {', '.join(OBJECTIVES)}")
    given = {key: value for key, value in options.items() if value is not None}
    return Options(name=name, **(OBJECTIVES[name].defaults | given))


def pair_weights(options: Options, trust: jax.Array | None) -> jax.Array | float:
    """Return what each pair weighs: 1, or [N] with mean 1; 0 for all where no pair is trusted at all."""
    if options.pair_weight is None:
        return 1.0
    return trust / jnp.maximum(jnp.mean(trust), jnp.finfo(trust.dtype).tiny)


def make_terms(options: Options, trust: jax.Array | None = None) -> tuple[Term, ...]:
    """Return the cross-entropies of an objective; a second one has a scale of its own.

    Args:
        options: of any objective but `sigmoid`.
        trust: [N] in [0, 1], with `options.uses_trust`.
    """
    alpha = trust if options.alpha == ESTIMATED else options.alpha
    weight = pair_weights(options, trust)
    if not options.uses_teacher:
        return (Term(weight, given=0.0),)
    if options.mixed_target:
        return (Term(weight, given=alpha),)
    return Term(weight * alpha, given=1.0), Term(weight * (1.0 - alpha), given=0.0)
