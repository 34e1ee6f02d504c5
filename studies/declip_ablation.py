"""DeCLIP's parts one after the other, on the embedded pairs (the paper's ablation).

    python -m studies.declip_ablation --workdir=runs/declip_ablation [--seeds=3]

Every arm is configs/declip_quickstart.py with parts switched off: the same pairs, epochs, towers
and learning rate. `clip` has the light augmentation, `clip_moco` that of all others, so that what
augmentation does is not taken for what supervision does. What is finished is not run again.
"""

from pathlib import Path

import numpy as np

from configs import declip_quickstart
from otter_jax.train import train
from studies.small_runs import read_scores, run_all

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
    """Train one arm, or go on where it ended; return `{set: {metric: value}}`."""
    config = declip_quickstart.get_config()
    config.seed = seed
    config.update(ARMS[arm])
    return train(config, folder / f"{arm}_{seed}")


def table(folder: Path) -> str:
    """Return the mean and deviation over the seeds that are finished, in percent."""
    lines = ["| arm | seeds | recall@1 / 5 / 10 | OpenMoji hit@1 / 5 / 10 |", "|---|---|---|---|"]
    for arm in ARMS:
        found = [read_scores(path) for path in folder.glob(f"{arm}_[0-9]*/results.json")]
        if found:
            cells = np.array(found)
            spread = cells.std(axis=0, ddof=1) if len(found) > 1 else np.full(6, np.nan)
            texts = [f"{m:.1f} ± {s:.1f}" for m, s in zip(cells.mean(axis=0), spread, strict=True)]
            cells = f"{' / '.join(texts[:3])} | {' / '.join(texts[3:])}"
            lines.append(f"| {arm} | {len(found)} | {cells} |")
    return "\n".join(lines)


if __name__ == "__main__":
    run_all(__doc__.splitlines()[0], ARMS, 3, run_arm, table)
