"""Linear probe: logistic regression on frozen features, its L2 strength found by search.

The protocol is CLIP's and DeCLIP's (DeCLIP, appendix D; Radford et al. 2021, appendix A.3): at most
1,000 iterations of L-BFGS, 96 logarithmic steps of L2 between 1e-6 and 1e6 searched in halving
intervals on a validation split, then one fit on training and validation images together.
"""

from collections.abc import Callable

import numpy as np
from jax.sharding import Mesh

from otter_jax.evaluation.logistic_regression import Weights, fit, predict

STEPS_PER_DECADE = 8
LOWEST, HIGHEST = -6 * STEPS_PER_DECADE, 6 * STEPS_PER_DECADE  # Of L2, as exponents in steps.
FIRST_STEPS = 2 * STEPS_PER_DECADE  # The search starts with every second power of ten.


def l2_strength(step: int) -> float:
    """Return the L2 strength of a step, 10 to the power step / 8."""
    return 10.0 ** (step / STEPS_PER_DECADE)


def search_and_fit(
    features: np.ndarray,
    labels: np.ndarray,
    validates: np.ndarray,
    num_classes: int,
    *,
    per_class: bool = False,
    mesh: Mesh | None = None,
) -> tuple[Weights, int]:
    """Find the L2 strength on the validation images, then fit all images with it.

    Args:
        features: float [n, d].
        labels: int [n].
        validates: bool [n], which images are the validation split.
        num_classes: number of classes.
        per_class: whether the mean accuracy per class is searched for.
        mesh: as in `fit`.

    Returns:
        The weights, and the step of the strength (see `l2_strength`).
    """
    trained: dict[int, Weights] = {}

    def score(step: int) -> float:
        nearest = min(trained, key=lambda other: abs(other - step), default=None)
        trained[step] = fit(
            features[~validates],
            labels[~validates],
            num_classes,
            l2_strength(step),
            start=None if nearest is None else trained[nearest],
            mesh=mesh,
        )
        predicted = predict(trained[step], features[validates]).argmax(axis=1)
        return accuracy(predicted, labels[validates], per_class=per_class)

    # One image a class leaves nothing to validate on: then L2 is 1.
    best = search_l2(score) if validates.any() and not validates.all() else 0
    weights = fit(
        features, labels, num_classes, l2_strength(best), start=trained.get(best), mesh=mesh
    )
    return weights, best


def search_l2(score: Callable[[int], float]) -> int:
    """Return the step of the best L2: coarse ones first, then halved intervals around the peak.

    Args:
        score: what a step (see `l2_strength`) achieves on the validation split; called once a step.

    Returns:
        The best of all steps tried; of equal ones the middle, far from where it gets worse.
    """
    scores = {step: score(step) for step in range(LOWEST, HIGHEST + 1, FIRST_STEPS)}

    def best() -> int:
        highest = max(scores.values())
        equal = sorted(step for step in scores if scores[step] == highest)
        return equal[len(equal) // 2]

    distance = FIRST_STEPS
    while distance > 1:
        distance //= 2
        middle = best()
        for step in (middle - distance, middle + distance):
            if LOWEST <= step <= HIGHEST and step not in scores:
                scores[step] = score(step)
    return best()


def validation_split(labels: np.ndarray) -> np.ndarray:
    """Choose which training images validate: the fifth, tenth, ... of a class.

    Returns:
        bool [n]. A class of fewer than five images gives its last one, and one of one image none.
    """
    chosen = np.zeros(len(labels), bool)
    for each in np.unique(labels):
        numbers = np.flatnonzero(labels == each)
        chosen[numbers[4::5] if len(numbers) >= 5 else numbers[1:][-1:]] = True
    return chosen


def accuracy(predicted: np.ndarray, labels: np.ndarray, *, per_class: bool = False) -> float:
    """Return the share of right predictions: of all images, or the mean over the classes."""
    right = predicted == labels
    if not per_class:
        return float(right.mean())
    return float(np.mean([right[labels == each].mean() for each in np.unique(labels)]))


def chance_accuracy(num_classes: int) -> float:
    """Return the expected accuracy of a guess; the same as mean per class."""
    return 1.0 / num_classes
