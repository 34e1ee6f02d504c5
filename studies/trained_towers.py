"""The smaller part of the study with towers that are trained, through the package's own `train`.

    python -m studies.trained_towers --workdir=runs/trained_towers [--seeds=1]

The quickstart's pairs with 40 % of the captions shuffled; the last blocks of both towers are
trained, as in configs/declip_quickstart.py. Nothing is tuned. What is finished is not run again.
"""

from pathlib import Path

from configs import declip_quickstart
from otter_jax.train import train
from studies.small_runs import read_scores, run_all, shuffled_pairs

WRONG = 0.4
METHODS = {
    "infonce": {"name": "infonce"},
    "trust weights": {"name": "infonce", "pair_weight": "estimated"},
    "otter": {"name": "otter"},
    "trust + otter": {"name": "otter", "alpha": "estimated"},
    "sigmoid": {"name": "sigmoid"},
    "trust sigmoid": {"name": "sigmoid", "pair_weight": "estimated"},
}


def run(method: str, seed: int, folder: Path) -> None:
    """Train with one method on the pairs of one seed."""
    config = declip_quickstart.get_config()
    config.seed = seed
    config.data.train = shuffled_pairs("open_clipart", folder, WRONG, seed)
    config.data.augmentation = "resize_random_crop"
    config.objective.update(METHODS[method])
    train(config, folder / f"{method.replace(' ', '_')}_{seed}")


def table(folder: Path) -> str:
    """Return the finished runs' scores, in percent; recall is the mean of both directions."""
    lines = ["| method | seed | recall@1 / 5 / 10 | OpenMoji hit@1 / 5 / 10 |", "|---|---|---|---|"]
    for method in METHODS:
        for path in sorted(folder.glob(f"{method.replace(' ', '_')}_[0-9]/results.json")):
            texts = [f"{score:.1f}" for score in read_scores(path)]
            cells = [" / ".join(texts[:3]), " / ".join(texts[3:])]
            lines.append(f"| {method} | {path.parent.name[-1]} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    run_all(__doc__.splitlines()[0], METHODS, 1, run, table)
