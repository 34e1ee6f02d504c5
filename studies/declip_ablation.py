"""DeCLIP's parts one after the other, on the embedded pairs (the paper's ablation).

    python -m studies.declip_ablation --workdir=runs/declip_ablation [--seeds=3]

Every arm is configs/declip_quickstart.py with parts switched off: the same pairs, epochs, towers
and learning rate. `clip` has the light augmentation, `clip_moco` that of all others, so that what
augmentation does is not taken for what supervision does. What is finished is not run again.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from configs import declip_quickstart
from otter_jax.train import train

OFF = {"mvs": False, "ss": False, "nns": False}
ARMS = {
    "clip": {"objective": OFF, "data": {"augmentation": "resize_random_crop"}},
    "clip_moco": {"objective": OFF},
    "mvs": {"objective": OFF | {"mvs": True}},
    "mvs_ss": {"objective": OFF | {"mvs": True, "ss": True}},
    "mvs_ss_nns": {},  # declip_quickstart itself
    "mvs_ss_nns_otter": {"objective": {"targets": "otter"}},
}


def run_arm(arm: str, seed: int, folder: Path) -> dict[str, dict[str, float]]:
    """Trains one arm, or goes on where it ended; `{set: {metric: value}}`."""
    config = declip_quickstart.get_config()
    config.seed = seed
    config.update(ARMS[arm])
    return train(config, folder / f"{arm}_{seed}")


def table(folder: Path) -> str:
    """Mean and deviation over the seeds that are finished, in percent."""
    lines = ["| arm | seeds | recall@1 / 5 / 10 | OpenMoji hit@1 / 5 / 10 |", "|---|---|---|---|"]
    for arm in ARMS:
        found = [json.loads(path.read_text()) for path in folder.glob(f"{arm}_[0-9]*/results.json")]
        if found:
            cells = np.array([_row(results) for results in found])
            spread = cells.std(axis=0, ddof=1) if len(found) > 1 else np.full(6, np.nan)
            texts = [f"{m:.1f} ± {s:.1f}" for m, s in zip(cells.mean(axis=0), spread, strict=True)]
            cells = f"{' / '.join(texts[:3])} | {' / '.join(texts[3:])}"
            lines.append(f"| {arm} | {len(found)} | {cells} |")
    return "\n".join(lines)


def _row(results: dict[str, dict[str, float]]) -> list[float]:
    """Recall (mean of both directions) and hits at 1, 5 and 10, in percent."""
    pairs, emoji = results["open_clipart"], results["openmoji"]
    recalls = [50 * (pairs[f"i2t_recall@{k}"] + pairs[f"t2i_recall@{k}"]) for k in (1, 5, 10)]
    return recalls + [100 * emoji[f"hit@{k}"] for k in (1, 5, 10)]


def main() -> None:
    """Runs all arms of a seed before those of the next."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True, help="where the runs are kept")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    for seed in range(arguments.seeds):
        for arm in ARMS:
            run_arm(arm, seed, arguments.workdir)
            print(table(arguments.workdir), flush=True)


if __name__ == "__main__":
    main()
