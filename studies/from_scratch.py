"""Which method teaches an image tower from scratch best? On icons, as given and shuffled.

    python -m studies.from_scratch --workdir=runs/from_scratch [--seeds=3]

Every run is configs/icons.py with another objective, through the package's own `train`. In each
setting each method has the same three learning rates, on the validation sets, with a seed of its
own; the best one is then run with every seed, and tested. What is finished is not run again, and
tables are printed as runs end. FROM_SCRATCH.md has the protocol, written before.
"""

import argparse
import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from otter_jax.preset_files import read_preset
from otter_jax.train import train
from studies.small_runs import shuffled_pairs

TUNING_SEED = 1000
RATES = (0.5, 1.0, 2.0)  # Times the preset's.
VALIDATION = ("icons_style_validation", "icons_concepts_validation")
TEST = ("icons_style", "icons_concepts")
KS = (1, 5, 10)


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is trained on.

    Attributes:
        wrong: share of the training captions that belong to another image.
        batch_size: pairs a step; epochs and learning rates stay as they are.
    """

    wrong: float = 0.0
    batch_size: int = 256


SETTINGS = {
    "as given": Setting(),
    "40 % shuffled": Setting(wrong=0.4),
    "batch 1,024": Setting(batch_size=1024),
}
_WHOLE_TEACHER = {"image_weight": 1.0, "text_weight": 1.0}
_NO_PARTS = {"name": "declip", "ss": False, "mvs": False, "nns": False}
METHODS: dict[str, dict[str, Any]] = {
    "infonce": {"name": "infonce"},
    "label smoothing": {"name": "label_smoothing"},
    "self-distillation": {"name": "kd"},
    "otter .5 / .15": {"name": "otter", "alpha": 0.5, "epsilon": 0.15},
    "otter .8 / .05": {"name": "otter", "alpha": 0.8, "epsilon": 0.05},
    "row softmax": {
        "name": "kd", "remove_diagonal": True, "teacher_scale": 1 / 0.15, **_WHOLE_TEACHER,
    },
    "sigmoid": {"name": "sigmoid"},
    "slip": {"name": "slip"},
    "declip, ss": {**_NO_PARTS, "ss": True},
    "declip, ss + mvs": {**_NO_PARTS, "ss": True, "mvs": True},
    "declip, ss + mvs + nns": {**_NO_PARTS, "ss": True, "mvs": True, "nns": True},
    "equal captions masked": {"name": "infonce", "known_positives": "ignore"},
    "trust weights": {"name": "infonce", "pair_weight": "estimated"},
}  # fmt: skip


def make_config(setting: Setting, method: str, seed: int, rate: float, folder: Path) -> ConfigDict:
    """Return the config of one run; `rate` is a factor of the preset's learning rate."""
    config = read_preset("icons")
    config.seed, config.batch_size = seed, setting.batch_size
    if setting.wrong:
        config.data.train = shuffled_pairs(config.data.train, folder, setting.wrong, seed)
    config.objective.update(METHODS[method])
    config.optimizer.learning_rate *= rate
    return config


def run(setting: str, method: str, seed: int, rate: float, folder: Path) -> Mapping[str, Any]:
    """Train once, or read what a finished run found; return `{set: {metric: value}}`."""
    tuning = seed == TUNING_SEED
    name = f"{setting}_{method}_{f'rate{rate:g}' if tuning else f'seed{seed}'}"
    place = folder / "".join(c if c.isalnum() else "_" for c in name)
    if (results := place / "results.json").is_file():
        return json.loads(results.read_text())
    config = make_config(SETTINGS[setting], method, seed, rate, folder)
    config.evaluate.sets = VALIDATION if tuning else TEST
    return train(config, place)


def chosen_rate(setting: str, method: str, folder: Path) -> float:
    """Return the rate with the best mean hit@1 of the validation sets."""

    def score(rate: float) -> float:
        found = run(setting, method, TUNING_SEED, rate, folder)
        return np.mean([found[name]["hit@1"] for name in VALIDATION])

    return max(RATES, key=score)


def run_all(folder: Path, seeds: int) -> Iterator[tuple[str, str, np.ndarray]]:
    """Yield setting, method and scores, percent [sets * ks], as runs end; all of a seed first."""
    for seed in range(seeds):
        for setting in SETTINGS:
            for method in METHODS:
                rate = chosen_rate(setting, method, folder)
                found = run(setting, method, seed, rate, folder)
                scores = [100 * found[name][f"hit@{k}"] for name in TEST for k in KS]
                yield setting, method, np.array(scores)


def table(found: Mapping[tuple[str, str], list[np.ndarray]]) -> str:
    """Return mean and standard deviation over the seeds that are finished, a row a method."""
    lines = ["| setting | method | seeds | style hit@1 / 5 / 10 | concepts hit@1 / 5 / 10 |",
             "|---|---|---|---|---|"]  # fmt: skip
    for (setting, method), scores in found.items():
        mean = np.mean(scores, axis=0)
        spread = np.std(scores, axis=0, ddof=1) if len(scores) > 1 else np.full(len(mean), np.nan)
        texts = [f"{m:.1f} ± {s:.1f}" for m, s in zip(mean, spread, strict=True)]
        cells = " | ".join(" / ".join(texts[i : i + 3]) for i in (0, 3))
        lines.append(f"| {setting} | {method} | {len(scores)} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    """Run what is not finished, and print the table after each run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True, help="where the runs are kept")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    found: dict[tuple[str, str], list[np.ndarray]] = {}
    for setting, method, scores in run_all(arguments.workdir, arguments.seeds):
        found.setdefault((setting, method), []).append(scores)
        print(table(found), flush=True)


if __name__ == "__main__":
    main()
