"""The methods: each a frozen dataclass that owns its options, their defaults and their checks.

Methods differ in the target of one cross-entropy (`target`), in how much of the given pairs is
mixed into it (`terms`), and in what they need beside two embeddings a pair (the `uses_` facts).

A method of one's own is a subclass with a `name`, given to `register`; docs/extending.md has one.
"""

import dataclasses
import math
import numbers
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp

from otter_jax.objectives.contrastive import MAX_SCALE, Term
from otter_jax.objectives.known_positives import IGNORE, SHARE
from otter_jax.objectives.targets import Smoothed, Target, Transported

LARGEST_EPSILON = 1.9  # exp(-targets.DIAGONAL_PENALTY / 1.9) is 0 in float32.
ESTIMATED = "estimated"  # Instead of one number for all: from each pair's trust.
WEIGHTS = (
    "clip_weight",
    "neighbor_weight",
    "simsiam_weight",
    "mlm_weight",
    "multi_view_weight",
    "simclr_weight",
)


def mean_one(trust: jax.Array) -> jax.Array:
    """Return trust [N] divided by its mean; 0 for all where no pair is trusted at all."""
    return trust / jnp.maximum(jnp.mean(trust), jnp.finfo(trust.dtype).tiny)


# By name, what a pair weighs given the trust of all pairs of the batch: [N] in [0, 1] -> [N].
PAIR_WEIGHTS: dict[str, Callable[[jax.Array], jax.Array]] = {ESTIMATED: mean_one}


@dataclasses.dataclass(frozen=True)
class Method:
    """What every method lets one choose, complete and checked.

    Attributes:
        pair_weight: what a pair's row weighs in both directions; unset for 1, "estimated" for its
            trust divided by the mean trust of the batch; or a key of `PAIR_WEIGHTS`.
        tile: most rows of the similarity matrices held at a time, >= 1 (fewer where that would
            exceed 16 MiB); batch_size and more for all of them. Unset: 1024 where a device's part
            of a matrix would exceed 1024 x 1024 numbers and 512 rows, else all.
        known_positives: what becomes of pairs with equal captions, or equal `data.group`, which
            match each other: ignore (they are no negatives) | share (they share the mass of the
            given pair). Unset: they count as negatives.
        initial_scale: where the learnable scales (1 / temperature) start, >= 1 and in bounds.
        min_scale: least scale, > 0, below which it has no gradient.
        max_scale: the same at the upper end.
    """

    name: ClassVar[str]
    uses_teacher: ClassVar[bool] = False  # Targets come from the moving average of the model.
    uses_views: ClassVar[bool] = False  # Its loss is `declip_loss`, not `total_loss`.
    uses_two_image_views: ClassVar[bool] = False  # An image is seen in two augmentations.
    uses_two_text_views: ClassVar[bool] = False
    uses_simsiam: ClassVar[bool] = False  # Projections and predictions of both image views.
    uses_masked_language: ClassVar[bool] = False  # Tokens are masked and predicted.
    uses_queue: ClassVar[bool] = False  # The state holds a queue of text embeddings.
    uses_simclr: ClassVar[bool] = False  # Two augmented views beside the one that is contrasted.
    initial_bias: ClassVar[float | None] = None  # Of a learnable number added to logits.

    pair_weight: str | None = None
    tile: int | None = None
    known_positives: str | None = None
    initial_scale: float = math.exp(3.9)  # 49.4 (OTTER's released code).
    min_scale: float | None = 1.0
    max_scale: float | None = MAX_SCALE

    def __post_init__(self) -> None:
        """Refuse what cannot be computed, with the key as the user wrote it."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float) and not math.isfinite(value):
                self.require(field.name, False, "be a finite number")
        self.check()

    def check(self) -> None:
        """Refuse values out of range (ValueError); subclasses add what is theirs."""
        self.require_whole("tile")
        known = ", ".join(map(repr, PAIR_WEIGHTS))
        is_known = self.pair_weight is None or self.pair_weight in PAIR_WEIGHTS
        self.require("pair_weight", is_known, f"be unset, or {known}")
        mode = self.known_positives
        self.require("known_positives", mode in (None, IGNORE, SHARE), "be unset, ignore or share")
        # A scale must start where it has a gradient.
        self.require("initial_scale", self.initial_scale >= 1.0, "be at least 1")
        lowest = 0.0 if self.min_scale is None else self.min_scale
        highest = math.inf if self.max_scale is None else self.max_scale
        self.require("min_scale", self.min_scale is None or lowest > 0.0, "be positive")
        self.require("max_scale", lowest <= highest, f"be at least min_scale={lowest:g}")
        within = lowest <= self.initial_scale <= highest
        bounds = f"[min_scale={lowest:g}, max_scale={highest:g}]: outside it would stay for ever"
        self.require("initial_scale", within, f"lie in {bounds}")

    def require(self, name: str, holds: bool, requirement: str) -> None:
        """Raise ValueError naming an option and what it must be, unless that `holds`."""
        if not holds:
            value = getattr(self, name)
            raise ValueError(f"config.objective.{name}={value}: it must {requirement}")

    def require_whole(self, name: str) -> None:
        """Refuse an option that is set and no whole number from 1 (ValueError)."""
        value = getattr(self, name)
        whole = value is None or (isinstance(value, int) and value >= 1)
        self.require(name, whole, "be at least 1, and a whole number")

    @property
    def scale_bounds(self) -> tuple[float | None, float | None]:
        """What `contrastive.scale_from_log` keeps the learnable scales in."""
        return self.min_scale, self.max_scale

    @property
    def uses_trust(self) -> bool:
        """Whether each pair comes with a number, the probability that its caption is right."""
        return self.pair_weight is not None

    @property
    def target(self) -> Target:
        """What an image should match: its own caption alone."""
        return Smoothed(0.0)

    def weights(self, trust: jax.Array | None = None) -> jax.Array | float:
        """Return what each pair weighs, given its trust [N]: 1 for all, or [N]."""
        return 1.0 if self.pair_weight is None else PAIR_WEIGHTS[self.pair_weight](trust)

    def terms(self, trust: jax.Array | None = None) -> tuple[Term, ...]:
        """Return the cross-entropies of the loss: one to `target`, weighted pair by pair.

        A method may have two; the second one then has a scale of its own.

        Args:
            trust: [N] in [0, 1], with `uses_trust`.
        """
        return (Term(self.weights(trust)),)


@dataclasses.dataclass(frozen=True)
class InfoNCE(Method):
    """An image should match its own caption alone (CLIP).

    Attributes:
        stop_gradient_keys: a direction's gradient flows through its queries alone, as in
            multi-process runs of the released code.
    """

    name: ClassVar[str] = "infonce"

    stop_gradient_keys: bool = False


@dataclasses.dataclass(frozen=True)
class LabelSmoothing(InfoNCE):
    """An image should match every other caption a little.

    Attributes:
        smoothing: mass that leaves the given pair, in [0, 1); OTTER's paper does not give its own.
    """

    name: ClassVar[str] = "label_smoothing"

    smoothing: float = 0.1

    def check(self) -> None:
        """Refuse values out of range (ValueError)."""
        super().check()
        self.require("smoothing", 0.0 <= self.smoothing < 1.0, "lie in [0, 1)")

    @property
    def target(self) -> Target:
        """The given pairs, smoothed."""
        return Smoothed(self.smoothing)


@dataclasses.dataclass(frozen=True)
class SoftTargets(InfoNCE):
    """What the methods share whose targets come from a teacher's similarities.

    Attributes:
        alpha: weight of the given pairs against the soft target, in [0, 1]; or "estimated", and it
            is each pair's trust.
        image_weight: weight of image-image similarity in the teacher's matrix (gamma_v).
        text_weight: weight of text-text similarity (gamma_t).
        cross_weight: weight of image-text similarity; 0 leaves what images say of each other and
            texts of each other (the intra-modal targets of SoftCLIP, Gao et al. 2023, and CWCL,
            Srinivasa et al. 2023, here one similarity for both directions).
        remove_diagonal: take the given pairs out of the teacher's matrix.
        mixed_target: one cross-entropy to alpha I + (1 - alpha) P, as in OTTER's paper, instead of
            two losses with scales of their own.
    """

    uses_teacher: ClassVar[bool] = True

    alpha: float | str = 0.5
    image_weight: float = 1.0
    text_weight: float = 1.0
    cross_weight: float = 1.0
    remove_diagonal: bool = True
    mixed_target: bool = False

    def check(self) -> None:
        """Refuse values out of range (ValueError)."""
        super().check()
        within = isinstance(self.alpha, numbers.Real) and 0.0 <= self.alpha <= 1.0
        self.require(
            "alpha", within or self.alpha == ESTIMATED, f"lie in [0, 1], or be {ESTIMATED!r}"
        )
        words = "not be 0 where image_weight and text_weight are"
        self.require("cross_weight", self.bound > 0.0, words)

    def require_removal(self, name: str, epsilon: float, limit: str) -> None:
        """Refuse an option that makes the soft target's regulariser too large to take pairs out.

        Above `LARGEST_EPSILON` the penalty that takes given or known pairs out of the teacher's
        matrix would leave them a share.

        Args:
            name: of the option.
            epsilon: the regulariser that it makes.
            limit: what it must be, in words.
        """
        removes = self.remove_diagonal or self.known_positives is not None
        possible = epsilon <= LARGEST_EPSILON or not removes
        self.require(name, possible, f"{limit} with remove_diagonal or known_positives")

    @property
    def bound(self) -> float:
        """No similarity of the teacher is larger in magnitude, but for removed given pairs."""
        return abs(self.image_weight) + abs(self.text_weight) + abs(self.cross_weight)

    @property
    def teacher_weights(self) -> dict[str, float]:
        """What each part of the teacher's similarity weighs."""
        names = ("image_weight", "text_weight", "cross_weight")
        return {name: getattr(self, name) for name in names}

    @property
    def uses_trust(self) -> bool:
        """Whether each pair's own weight or alpha is asked for."""
        return super().uses_trust or self.alpha == ESTIMATED

    def terms(self, trust: jax.Array | None = None) -> tuple[Term, ...]:
        """Return one cross-entropy to the mixture, or two: to the given pairs and to the target."""
        if not self.uses_teacher:
            return super().terms(trust)
        alpha = trust if self.alpha == ESTIMATED else self.alpha
        weight = self.weights(trust)
        if self.mixed_target:
            return (Term(weight, identity=alpha),)
        return Term(weight * alpha, identity=1.0), Term(weight * (1.0 - alpha))


@dataclasses.dataclass(frozen=True)
class Distillation(SoftTargets):
    """The softmax of the teacher's similarities (contrastive self-distillation).

    Image-text similarity alone by default: with the image-image and text-text parts, whose
    diagonals are 1, a teacher scale of 100 leaves one-hot targets and so plain InfoNCE.

    Attributes:
        teacher_scale: factor of the teacher's similarities, > 0.
    """

    name: ClassVar[str] = "kd"

    image_weight: float = 0.0
    text_weight: float = 0.0
    remove_diagonal: bool = False
    teacher_scale: float = 100.0

    def check(self) -> None:
        """Refuse values out of range (ValueError)."""
        super().check()
        self.require("teacher_scale", self.teacher_scale > 0.0, "be positive")
        lowest = f"be at least {1 / LARGEST_EPSILON:.2f}"
        self.require_removal("teacher_scale", 1.0 / self.teacher_scale, lowest)

    @property
    def target(self) -> Target:
        """The row softmax: a transport of 0 iterations."""
        return Transported(1.0 / self.teacher_scale, 0, self.bound)


@dataclasses.dataclass(frozen=True)
class Otter(SoftTargets):
    """The entropic optimal-transport plan of the teacher's similarities (OTTER).

    Attributes:
        epsilon: entropic regulariser of the transport, in cosine units, > 0.
        iterations: Sinkhorn iterations, rows first, >= 1.
    """

    name: ClassVar[str] = "otter"

    epsilon: float = 0.15
    iterations: int = 5

    def check(self) -> None:
        """Refuse values out of range (ValueError)."""
        super().check()
        self.require("epsilon", self.epsilon > 0.0, "be positive")
        self.require_removal("epsilon", self.epsilon, f"be at most {LARGEST_EPSILON}")
        self.require_whole("iterations")

    @property
    def target(self) -> Target:
        """The transport plan."""
        return Transported(self.epsilon, self.iterations, self.bound)


@dataclasses.dataclass(frozen=True)
class Sigmoid(Method):
    """Every pair of an image and a text is a yes-or-no question (SigLIP).

    Neither the paper nor the released code clamps the scale.

    Attributes:
        initial_bias: where the learnable number starts that is added to logits.
    """

    name: ClassVar[str] = "sigmoid"

    initial_scale: float = 10.0
    min_scale: float | None = None
    max_scale: float | None = None
    initial_bias: float = -10.0


@dataclasses.dataclass(frozen=True)
class Views(Otter):
    """What the methods share that see a pair in several views.

    Attributes:
        targets: what each pair of views should match: "identity", the given pairs alone, or
            "otter", its mixture with transported targets (alpha, epsilon and so on as there, which
            must be unset else).
        clip_weight: weight of the contrastive loss. One that is off is just absent, the others'
            weights stay as they are.
    """

    uses_views: ClassVar[bool] = True
    multi_view_weight: ClassVar[float | None] = None  # See `Declip`.

    initial_scale: float = 1.0 / 0.07
    targets: str = "identity"
    clip_weight: float = 0.4

    def check(self) -> None:
        """Refuse values out of range (ValueError)."""
        super().check()
        self.require("targets", self.targets in ("identity", "otter"), "be one of identity, otter")
        unknown = self.known_positives is None
        words = f"be unset: {self.name} compares several views, for which no groups are known"
        self.require("known_positives", unknown, words)
        for name in WEIGHTS:
            value = getattr(self, name, None)
            self.require(name, value is None or value >= 0.0, "be at least 0")
        if not self.uses_teacher:
            self._refuse_idle()

    def _refuse_idle(self) -> None:
        """Refuse options of a soft target where there is none (ValueError)."""
        own = fields_of(type(self))
        for name in (name for name in fields_of(Otter) if name not in fields_of(InfoNCE)):
            words = f'be unset: {self.name} has a soft target only with targets="otter"'
            if name == "alpha":
                words += f"; beside it there is pair_weight={ESTIMATED!r}"
            self.require(name, getattr(self, name) == own[name].default, words)

    @property
    def uses_teacher(self) -> bool:
        """Whether the views' targets come from a teacher."""
        return self.targets == "otter"

    @property
    def target(self) -> Target:
        """What a pair of views should match."""
        return super().target if self.uses_teacher else Smoothed(0.0)


@dataclasses.dataclass(frozen=True)
class Declip(Views):
    """Self-, multi-view and nearest-neighbour supervision (DeCLIP).

    With `ss`, `mvs` and `nns` all off it is clip_weight times CLIP's loss.

    Attributes:
        ss: self-supervision: SimSiam on images and masked language modelling on texts; a weight of
            0 leaves either out, with the view it needs.
        mvs: multi-view supervision: all pairs of two image and two text views.
        nns: nearest-neighbour supervision: images against a queue of recent texts.
        neighbor_weight: of the nearest-neighbour part.
        simsiam_weight: of SimSiam.
        mlm_weight: of masked language modelling.
        multi_view_weight: unset for clip_weight times the mean over the pairs of views (as
            released); else clip_weight times the first pair's loss plus this times the sum of the
            others' (the paper, which has 0.2).
        symmetric_neighbors: also from the neighbours to the images, the mean of both directions;
            the released code has images to neighbours only.
        queue_size: texts that neighbours are looked for among, >= 1.
    """

    name: ClassVar[str] = "declip"

    ss: bool = True
    mvs: bool = True
    nns: bool = True
    neighbor_weight: float = 0.2
    simsiam_weight: float = 0.2
    mlm_weight: float = 0.2
    multi_view_weight: float | None = None
    symmetric_neighbors: bool = False
    queue_size: int = 65_536

    def check(self) -> None:
        """Refuse values out of range (ValueError)."""
        super().check()
        self.require_whole("queue_size")

    @property
    def uses_two_image_views(self) -> bool:
        """Whether the contrast or SimSiam needs them."""
        return self.mvs or self.uses_simsiam

    @property
    def uses_two_text_views(self) -> bool:
        """Whether the contrast needs them."""
        return self.mvs

    @property
    def uses_simsiam(self) -> bool:
        """Whether it is on and weighs anything."""
        return self.ss and self.simsiam_weight > 0

    @property
    def uses_masked_language(self) -> bool:
        """Whether it is on and weighs anything."""
        return self.ss and self.mlm_weight > 0

    @property
    def uses_queue(self) -> bool:
        """Whether neighbours are looked for."""
        return self.nns and self.neighbor_weight > 0


@dataclasses.dataclass(frozen=True)
class Slip(Views):
    """CLIP, and SimCLR on two further views of each image (SLIP); its scale has no bounds.

    Attributes:
        simclr_weight: of the NT-Xent loss.
    """

    name: ClassVar[str] = "slip"

    min_scale: float | None = None
    max_scale: float | None = None
    clip_weight: float = 1.0
    simclr_weight: float = 1.0

    @property
    def uses_simclr(self) -> bool:
        """Whether SimCLR weighs anything."""
        return self.simclr_weight > 0


METHODS: dict[str, type[Method]] = {}


def register(method: type[Method]) -> type[Method]:
    """Make a method known by its name; a decorator for those of one's own.

    Raises:
        ValueError: if another method has the name already.
    """
    known = METHODS.setdefault(method.name, method)
    if known.__qualname__ != method.__qualname__:
        raise ValueError(f"there is an objective {method.name!r} already: {known.__qualname__}")
    METHODS[method.name] = method  # Of a file that is read again, the last reading.
    return method


for _method in (InfoNCE, LabelSmoothing, Distillation, Sigmoid, Otter, Declip, Slip):
    register(_method)


def fields_of(method: type[Method]) -> dict[str, dataclasses.Field]:
    """Return the options of a method by name."""
    return {field.name: field for field in dataclasses.fields(method)}


def make_method(name: str, **options: object) -> Method:
    """Return the method `name`; an option that is None takes the method's default.

    Raises:
        ValueError: for an unknown method, an option that it does not have, or a value out of range.
    """
    if name not in METHODS:
        raise ValueError(f"config.objective.name={name!r}: choose from {', '.join(METHODS)}")
    given = {key: value for key, value in options.items() if value is not None}
    for key, value in given.items():
        if key not in fields_of(METHODS[name]):
            raise ValueError(f"config.objective.{key}={value!r}: {describe_foreign(name, key)}")
    return METHODS[name](**given)


def describe_foreign(name: str, key: str) -> str:
    """Return who has an option that the method `name` does not have, in words."""
    owners = [other for other, method in METHODS.items() if key in fields_of(method)]
    if not owners:
        return f"no objective has {key}"
    *most, last = owners
    listed = f"{', '.join(most)} and {last} have" if most else f"{last} has"
    hint = f"; for each pair's trust there is pair_weight={ESTIMATED!r}" if key == "alpha" else ""
    return f"{name} has no {key}; {listed}{hint}"
