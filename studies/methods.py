"""The methods of the study, the settings, and what is tuned."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

NUM_TRIALS = 8
BASELINE = "infonce"

# Every method draws the same numbers from this space: its trials differ in its own space alone.
COMMON_SPACE: dict[str, tuple] = {
    "learning_rate": (3e-3, 5e-3, 1e-2, 2e-2),
    "weight_decay": (0.01, 0.1, 1.0),
    "epochs": (5, 10, 20),
}
COMMON_DEFAULTS: dict[str, Any] = {"learning_rate": 1e-2, "weight_decay": 0.1, "epochs": 10}
ALPHA = (0.2, 0.35, 0.5, 0.65, 0.8)
EPSILON = (0.05, 0.1, 0.15, 0.25)
WHOLE_TEACHER = {"image_weight": 1.0, "text_weight": 1.0}  # All three parts of its similarity.


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is trained on, and what is trained.

    Attributes:
        wrong: share of the training captions that belong to another image.
        within_folder: whether they changed places within a category only.
        batch_size: pairs a step.
        head: the image head's kind, see models/projections.py.
    """

    wrong: float = 0.0
    within_folder: bool = False
    batch_size: int = 256
    head: str = "linear"


SETTINGS: dict[str, Setting] = {
    "as given": Setting(),
    "20 % shuffled": Setting(wrong=0.2),
    "40 % shuffled": Setting(wrong=0.4),
    "60 % shuffled": Setting(wrong=0.6),
    "60 % shuffled in folder": Setting(wrong=0.6, within_folder=True),
    "batch 1,024": Setting(batch_size=1024),
    "hidden layer": Setting(head="mlp"),
}


@dataclasses.dataclass(frozen=True)
class Method:
    """An objective and which of its options are tuned.

    Attributes:
        objective: a key of `objectives.METHODS`.
        options: what is fixed.
        defaults: what trial 0 has of `space`: the values of the method's authors.
        space: what the other trials draw from. `trust_cap` is what estimated trust is multiplied
            by; `first_alpha` and `last_alpha` are those of `rivals.progressive_alpha`.
        judge: a key of `judges.JUDGES`, which says what to train on; unset for the pairs as they
            are, with the trust of `trust.estimate` where the objective asks for it.
    """

    objective: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    space: Mapping[str, tuple] = dataclasses.field(default_factory=dict)
    judge: str | None = None


_PLAN = {"epsilon": 0.15}
_ROWS = {"remove_diagonal": True, **WHOLE_TEACHER}
_ROW_SCALE = tuple(1 / epsilon for epsilon in EPSILON)
_SIGMOID = {"initial_scale": 10.0, "initial_bias": -10.0}
_SIGMOID_SPACE = {"initial_scale": (5.0, 10.0, 20.0), "initial_bias": (-10.0, -5.0, -2.0)}
_TRUSTED, _WEIGHTED = {"alpha": "estimated"}, {"pair_weight": "estimated"}
_CAP = (0.5, 0.65, 0.8, 1.0)

METHODS: dict[str, Method] = {
    "infonce": Method("infonce"),
    "label smoothing": Method(
        "label_smoothing", defaults={"smoothing": 0.1},
        space={"smoothing": (0.02, 0.05, 0.1, 0.2, 0.3)},
    ),
    # As released: one-hot targets in effect, since image-image and text-text have their diagonals.
    "kd, as released": Method(
        "kd", options=WHOLE_TEACHER, defaults={"alpha": 0.5}, space={"alpha": ALPHA}
    ),
    # Also what OTTER's authors call KD when it is on image-text similarity.
    "self-distillation": Method(
        "kd", defaults={"alpha": 0.5, "teacher_scale": 100.0},
        space={"alpha": ALPHA, "teacher_scale": (20.0, 50.0, 100.0, 200.0)},
    ),
    "otter": Method(
        "otter", defaults={"alpha": 0.5, **_PLAN}, space={"alpha": ALPHA, "epsilon": EPSILON}
    ),
    # OTTER's target before the first iteration of Sinkhorn: is it the transport?
    "row softmax": Method(
        "kd", options=_ROWS, defaults={"alpha": 0.5, "teacher_scale": 1 / 0.15},
        space={"alpha": ALPHA, "teacher_scale": _ROW_SCALE},
    ),
    "sigmoid": Method("sigmoid", {}, _SIGMOID, _SIGMOID_SPACE),
    "trust weights": Method("infonce", options=_WEIGHTED),
    "trust sigmoid": Method("sigmoid", _WEIGHTED, _SIGMOID, _SIGMOID_SPACE),
    "trust + otter": Method(
        "otter", options=_TRUSTED, defaults={**_PLAN, "trust_cap": 1.0},
        space={"epsilon": EPSILON, "trust_cap": _CAP},
    ),
    "trust + row softmax": Method(
        "kd", options=_ROWS | _TRUSTED, defaults={"teacher_scale": 1 / 0.15, "trust_cap": 1.0},
        space={"teacher_scale": _ROW_SCALE, "trust_cap": _CAP},
    ),
}  # fmt: skip

# The methods of the second study, most telling first.
_SIGMOID_METHOD = functools.partial(Method, "sigmoid", defaults=_SIGMOID, space=_SIGMOID_SPACE)
RIVALS: dict[str, Method] = {
    "oracle": Method("infonce", judge="right"),
    "repaired captions": Method("infonce", options=_WEIGHTED, judge="repair"),
    "repaired captions, sigmoid": _SIGMOID_METHOD(options=_WEIGHTED, judge="repair"),
    "trust in rounds": Method("infonce", options=_WEIGHTED, judge="rounds"),
    "oracle, sigmoid": _SIGMOID_METHOD(judge="right"),
    "dropped": Method("infonce", judge="dropped"),
    "small losses": Method("infonce", options=_WEIGHTED, judge="small losses"),
    "lemon": Method("infonce", judge="lemon"),
    "npc": Method("infonce", options=_WEIGHTED, judge="impact"),
    # The student is its own teacher.
    "progressive self-distillation": Method(
        "kd", options=_TRUSTED,
        defaults={"first_alpha": 1.0, "last_alpha": 0.2, "teacher_scale": 100.0,
                  "teacher_decay": 0.0},
        space={"first_alpha": (0.8, 1.0), "last_alpha": (0.2, 0.5, 0.8),
               "teacher_scale": (20.0, 50.0, 100.0, 200.0), "teacher_decay": (0.0,)},
    ),
    "trust in rounds, sigmoid": _SIGMOID_METHOD(options=_WEIGHTED, judge="rounds"),
    # SoftCLIP's and CWCL's: what images say of each other, and texts of each other.
    "intra-modal targets": Method(
        "kd", options={"image_weight": 0.5, "text_weight": 0.5, "cross_weight": 0.0},
        defaults={"alpha": 0.5, "teacher_scale": 20.0},
        space={"alpha": ALPHA, "teacher_scale": (5.0, 10.0, 20.0, 50.0)},
    ),
}  # fmt: skip


# What changes, one thing at a time, in OTTER with its chosen trial.
SWEPT_SETTING, SWEPT_METHOD, SWEEP_SEEDS = "40 % shuffled", "otter", 3
SWEEP: dict[str, tuple] = {
    "epsilon": (0.02, 0.05, 0.1, 0.15, 0.25, 0.5),
    "iterations": (1, 2, 5, 10, 20),
    "alpha": (0.0, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95),
    "image_weight": (0.0, 0.5, 1.0, 2.0),
    "text_weight": (0.0, 0.5, 1.0, 2.0),
    "teacher_decay": (0.0, 0.9, 0.99, 0.999, 0.9999),
}
CHANGES = {f"{name}={value}": {name: value} for name, values in SWEEP.items() for value in values}


def hyperparameters(method: Method, trial: int) -> dict[str, Any]:
    """Return the hyperparameters of trial `trial` of a method; trial 0 has its authors' values."""
    if trial == 0:
        return {**COMMON_DEFAULTS, **method.defaults}
    common, own = np.random.default_rng((2, trial)), np.random.default_rng((3, trial))
    return {
        name: values[rng.integers(len(values))]
        for rng, space in ((common, COMMON_SPACE), (own, method.space))
        for name, values in space.items()
    }
