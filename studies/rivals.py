"""What others make of wrong captions, restated: scores and weights of pairs."""

import numpy as np

from otter_jax import sharding
from otter_jax.embedding.nearest_rows import nearest_rows
from otter_jax.embedding.trust import unit_rows

TINY = 1e-12
CLEAN = 0.9  # From which probability on a pair is in NPC's memory bank, as in its release.
LEAST_CLEAN = 0.1  # Of all pairs, those most probably clean, where fewer reach it.


def lemon_score(
    image: np.ndarray,
    text: np.ndarray,
    distance: np.ndarray,
    *,
    neighbors: int = 30,
    weight: float = 5.0,
    own_decay: float = 0.1,
    pair_decay: float = 5.0,
) -> np.ndarray:
    """Return how likely each caption is wrong: the score of LEMoN (Zhang et al., ICML 2025).

    With cosine distances d_X between images x, d_Y between captions y, and d between image and
    caption of a pair,

        s(x, y) = d(x, y) + weight s_n(x, y) + weight s_m(x, y)
        s_n(x, y) = mean_j d_Y(y, y_j) exp(-own_decay d_X(x, x_j)) exp(-pair_decay d(x_j, y_j))

    over the `neighbors` images x_j nearest to x, and s_m the same with images and captions
    exchanged. Defaults are those that its authors fix where nothing is labelled.

    What differs from `trust.estimate`: distances of a pair and of its neighbours' own enter, for
    which the towers must know each other; all neighbours vote, those that agree least as well; and
    there is no null distribution, so that it ranks pairs and does not say how many are wrong.

    Args:
        image: float [N, d].
        text: float [N, e], of the same pairs.
        distance: [N] in [0, 2], 1 less the cosine of each pair's own image and caption.
        neighbors: of each image, and of each caption.
        weight: beta and gamma.
        own_decay: tau_1, of the distance to the neighbour.
        pair_decay: tau_2, of the neighbour's own distance to its caption.

    Returns:
        float [N], the larger, the more likely wrong.
    """
    by_image, by_text = (1.0 - each @ each.T for each in (unit_rows(image), unit_rows(text)))
    score = np.array(distance, np.float64)
    for near, said in ((by_image, by_text), (by_text, by_image)):
        apart = near + np.where(np.eye(len(near), dtype=bool), np.inf, 0.0)
        voters = np.argpartition(apart, neighbors, axis=1)[:, :neighbors]
        to_voters, differ = (np.take_along_axis(each, voters, axis=1) for each in (near, said))
        votes = differ * np.exp(-own_decay * to_voters) * np.exp(-pair_decay * distance[voters])
        score += weight * votes.mean(axis=1)
    return score


def clean_probability(losses: np.ndarray, iterations: int = 100) -> np.ndarray:
    """Return the probability that each pair is clean, by its loss after a short training.

    Wrong labels are learnt later than right ones, so that their losses are larger at first. Losses,
    scaled to [0, 1], are a mixture of two normal distributions, fitted by expectation maximisation;
    the probability is that of the component with the smaller mean (DivideMix, Li et al., ICLR 2020,
    sec. 3.1; with image-caption pairs NCR, Huang et al., NeurIPS 2021, eq. 4-5; the idea goes back
    to co-teaching, Han et al., NeurIPS 2018). They have two networks that judge each other's pairs;
    here one does.

    Args:
        losses: [N].
        iterations: of expectation maximisation.
    """
    scaled = (losses - losses.min()) / max(np.ptp(losses), TINY)
    means, deviations = np.quantile(scaled, [0.1, 0.9]), np.full(2, max(scaled.std(), 1e-3))
    shares = np.full(2, 0.5)
    for _ in range(iterations):
        z = (scaled[:, None] - means) / deviations
        density = shares * np.exp(-0.5 * z**2) / deviations + TINY
        belongs = density / density.sum(axis=1, keepdims=True)
        count = belongs.sum(axis=0) + TINY
        means = belongs.T @ scaled / count
        variances = (belongs * (scaled[:, None] - means) ** 2).sum(axis=0) / count
        shares, deviations = count / len(scaled), np.maximum(np.sqrt(variances), 1e-3)
    return belongs[:, np.argmin(means)]


def memory_bank(clean_probability: np.ndarray) -> np.ndarray:
    """Return which pairs NPC's memory bank holds (Zhang et al., AAAI 2024), int [M].

    Those that are surely clean. Among many wrong captions a mixture of losses may be sure of none,
    of which the paper does not speak; then it is the tenth most probably clean.

    Args:
        clean_probability: [N], as of `clean_probability`.
    """
    least = -(-len(clean_probability) // round(1 / LEAST_CLEAN))
    first = np.argsort(-clean_probability, kind="stable")
    sure = np.count_nonzero(clean_probability > CLEAN)
    return np.sort(first[: max(sure, least)])


def memory_entries(image: np.ndarray, text: np.ndarray, clean: np.ndarray) -> np.ndarray:
    """Return each pair's two entries in NPC's memory bank (Zhang et al., AAAI 2024).

    They are the pair of the bank with the nearest image, and the one with the nearest caption; a
    clean pair's are itself.

    Args:
        image: float [N, d].
        text: float [N, e], of the same pairs.
        clean: int [M], the pairs of the bank.

    Returns:
        int [N, 2], numbers of pairs.
    """
    sides, mesh = (unit_rows(image), unit_rows(text)), sharding.make_mesh()
    nearest = (nearest_rows(each, each[clean], 1, mesh)[1][:, 0] for each in sides)
    return np.stack([clean[numbers] for numbers in nearest], axis=1)


def confidence(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Return what NPC lets each pair weigh, by what learning it does to its memory entries.

    With the losses l of a pair's two entries before a step on the pair's batch, and l' after it,

        r = (l_image / l'_image + l_text / l'_text) / 2,    w = tanh(r) if r < 1, else 1

    (Zhang et al., Negative Pre-aware for Noisy Cross-modal Matching, AAAI 2024, step 1, with the
    mean over the two entries that its release takes). Since tanh(1) is .76, and r is near 1 for
    small steps, no pair weighs much less than three quarters.

    Args:
        before: [N, 2] losses, by image and by text.
        after: the same.

    Returns:
        [N] in (0, 1].
    """
    ratio = (before / np.maximum(after, TINY)).mean(axis=1)
    return np.where(ratio < 1.0, np.tanh(ratio), 1.0)


def weigh_with_memory(weight: np.ndarray, entries: np.ndarray) -> np.ndarray:
    """Return one weight a pair for the two parts of NPC's loss, the largest 1.

    A batch's loss is mean_i w_i l_i + mean_i (l of i's image entry + l of its text entry) (step 2).
    Over an epoch, pair j is met w_j times as itself, and once for every pair it is an entry of.

    What differs: weights are computed once, from a model that was trained shortly, and not before
    every step; and entries are contrasted with the pairs of the batches that they fall into. The
    release computes the second part without gradient, and multiplies the mean loss of a batch by
    its mean weight, so that there no pair weighs less than another; this follows the paper.

    Args:
        weight: [N], of `confidence`.
        entries: int [N, 2], of `memory_entries`.
    """
    total = weight + np.bincount(entries.ravel(), minlength=len(weight))
    return total / total.max()


def progressive_alpha(shape: tuple[int, int], first: float, last: float) -> np.ndarray:
    """Return which pairs of each batch keep their hard targets: progressive self-distillation.

    In every batch a part of the pairs learns from their own captions (InfoNCE), the others from
    soft targets, what the model itself makes of the batch; the more it has learnt, the more of
    them (Andonian et al., Robust Cross-Modal Representation Learning with Progressive
    Self-Distillation, CVPR 2022). With objective "kd", alpha "estimated" and the student as its own
    teacher, each pair's alpha at a step is 1 or 0.

    There is no public code, and of the paper its abstract was at hand: that the share of hard
    targets falls by half a cosine, that the pairs are drawn at random, and that all pairs of the
    batch are negatives of each row, are choices made here.

    Args:
        shape: steps, and pairs a batch; the order of pairs in a batch is random already.
        first: share of hard targets at the first step, in [0, 1].
        last: the same at the last step.

    Returns:
        float32 [steps, batch], 1 for a hard target, 0 for a soft one.
    """
    steps, batch = shape
    progress = np.arange(steps) / max(steps - 1, 1)
    share = last + (first - last) * (1.0 + np.cos(np.pi * progress)) / 2.0
    return (np.arange(batch) < np.rint(share * batch)[:, None]).astype(np.float32)
