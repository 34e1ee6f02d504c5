"""How well are wrong captions found? The embedded pairs, with captions shuffled in known places.

    python -m studies.pair_trust --workdir=runs/noisy_pairs [--seeds=3] [--rounds=2]

prints the estimated share of wrong pairs, and how surely a wrong pair has less trust than a right
one (AUC), by how the captions were shuffled. `--workdir` keeps the features.
"""

import argparse
from pathlib import Path

import numpy as np

from otter_jax.embedding import trust_rounds
from studies import collection as collections
from studies.methods import SETTINGS, Setting


def area_under_curve(alpha: np.ndarray, wrong: np.ndarray) -> float:
    """Return the probability that a wrong pair has less trust than a right one; ties count half.

    >>> area_under_curve(np.array([0.1, 0.5, 0.5, 0.9]), np.array([True, True, False, False]))
    0.875
    """
    order = np.unique(alpha, return_inverse=True)[1]
    counts = np.bincount(order)
    ranks = (counts.cumsum() - counts + (counts + 1) / 2)[order]  # Of equal ones the mean.
    right = ranks[~wrong]
    return float((right.mean() - (len(right) + 1) / 2) / wrong.sum())


def measure(
    collection: collections.Collection, setting: Setting, seed: int, rounds: int = 0
) -> tuple[float, float, float]:
    """Return the share of wrong captions, its estimate, and the AUC (NaN if none is wrong)."""
    groups = collection.folder * setting.within_folder
    order, wrong = collections.shuffled_captions(
        groups, setting.wrong, np.random.default_rng((6, seed))
    )
    texts = collection.text[order]
    found = trust_rounds.estimate_in_rounds(collection.image, texts, rounds=rounds, seed=seed)
    area = area_under_curve(found.alpha, wrong) if wrong.any() else float("nan")
    return float(wrong.mean()), found.share_wrong, area


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True, help="where the features are kept")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=0, help="how often to estimate again")
    arguments = parser.parse_args()
    collection = collections.load(arguments.workdir)
    lines = ["| captions | wrong | estimated | AUC |", "|---|---|---|---|"]
    settings = {n: s for n, s in SETTINGS.items() if s.wrong or n == "as given"}
    for name, setting in settings.items():
        seeds, rounds = range(arguments.seeds), arguments.rounds
        cells = [measure(collection, setting, seed, rounds) for seed in seeds]
        wrong, share, area = np.mean(cells, axis=0)
        lines.append(f"| {name} | {100 * wrong:.0f} % | {100 * share:.1f} % | {area:.3f} |")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
