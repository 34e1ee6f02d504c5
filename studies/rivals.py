"""What others make of wrong captions, restated: scores and weights of pairs."""

import numpy as np

from otter_jax.embedding.trust import unit_rows

TINY = 1e-12


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
