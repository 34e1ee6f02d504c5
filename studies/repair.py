"""How much of the damage of wrong captions is repaired? The second part of PROTOCOL.md.

    python -m studies.repair --workdir=runs/repair [--seeds=3] [--out=docs]

Tunes and tests an oracle, rivals and the repairs of the package as `studies.noisy_pairs` does its
methods, and holds them against the records of that study. Each run is a line of records.jsonl; what
is there is not run again, so that the command goes on where it was interrupted, and with more seeds
later. It uses one core; several may run side by side, each with other methods (--method). With
--out it writes repair_tables.md and repair.png from what is finished, and trains nothing.
"""

import argparse
import gzip
import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from otter_jax.commands.command_line import ending_in_one_line, make_folder
from studies import collection as collections
from studies import methods, noisy_pairs, repair_figure
from studies.methods import BASELINE, RIVALS, SETTINGS
from studies.noisy_pairs import (
    TEST_SEEDS,
    TRIAL_SEED,
    Record,
    best_trial,
    read_records,
    read_some_records,
    run_jobs,
    score,
    unfinished,
)

FIRST_RECORDS = Path(__file__).parents[1] / "docs" / "study_records.jsonl.gz"
# The noisy settings, those with most to repair first, and what it costs where all is right.
NOISY = ("60 % shuffled", "20 % shuffled", "40 % shuffled", "60 % shuffled in folder")
RIGHT = ("as given", "batch 1,024", "hidden layer")
FROM_FIRST = ("trust weights", "sigmoid", "trust sigmoid", "self-distillation", "otter")
ORACLE = "oracle"
TRIALS = range(6)  # Those with 20 epochs are left out, see PROTOCOL.md.
DRAWS = 2_000


class SeedJob(NamedTuple):
    """The runs of one seed, on every split, of a method, setting and trial."""

    kind: str  # "trial" or "repair".
    setting: str
    method: str
    trial: int
    job_seed: int

    def seeds(self) -> Iterable[tuple[int, int]]:
        """Return the (split, seed) of each run of this job."""
        return itertools.product(range(collections.NUM_SPLITS), [self.job_seed])

    def hyperparameters(self) -> dict[str, Any]:
        """Return the hyperparameters of the job's trial."""
        return methods.hyperparameters(RIVALS[self.method], self.trial)


class Share(NamedTuple):
    """What a method repairs of the damage, with its 95 % interval: 1 for all of it."""

    mean: float
    low: float
    high: float


def cells() -> list[tuple[str, str]]:
    """Return each (setting, method) in running order; where all is right there is no oracle."""
    tolerant = [method for method in RIVALS if RIVALS[method].judge != "right"]
    return [
        *((setting, method) for method in RIVALS for setting in NOISY),
        *((setting, method) for setting in RIGHT for method in tolerant),
    ]


def run_cell(setting: str, method: str, workdir: Path, seeds: int) -> None:
    """Tune and test a method in a setting, as far as that is not done."""
    path = workdir / "records.jsonl"
    trials = [SeedJob("trial", setting, method, trial, TRIAL_SEED) for trial in TRIALS]
    run_jobs(unfinished(trials, read_records(path)), workdir, 1)
    chosen = best_trial(read_records(path), setting, method)
    tests = [SeedJob("repair", setting, method, chosen, seed) for seed in range(seeds)]
    run_jobs(unfinished(tests, read_records(path)), workdir, 1)


def scores_by_run(records: Iterable[Record], setting: str, method: str) -> np.ndarray:
    """Return the mean of six metrics of each test, [splits, seeds], seeds that all splits have."""
    found = {
        (each["split"], each["seed"]): score(each)
        for each in records
        if each["kind"] in ("test", "repair")
        and (each["setting"], each["method"]) == (setting, method)
    }
    seeds = {seed for _, seed in found}
    splits = range(collections.NUM_SPLITS)
    whole = sorted(seed for seed in seeds if all((split, seed) in found for split in splits))
    return np.array([[found[split, seed] for seed in whole] for split in splits])


def repaired_share(
    ours: np.ndarray, baseline: np.ndarray, oracle: np.ndarray, rng: np.random.Generator
) -> Share:
    """Return (ours - baseline) / (oracle - baseline), and a bootstrap over the seeds of each split.

    Args:
        ours: [splits, seeds] scores, and so the others; the first seeds that all three have count.
        baseline: of the method without any repair.
        oracle: of that method on the right pairs alone.
        rng: source of the draws.
    """
    count = min(each.shape[1] for each in (ours, baseline, oracle))
    gains, damages = ((each - baseline[:, :count]) for each in (ours[:, :count], oracle[:, :count]))
    drawn = rng.integers(count, size=(DRAWS, len(gains), count))
    splits = np.arange(len(gains))[:, None]
    shares = gains[splits, drawn].mean(axis=(1, 2)) / damages[splits, drawn].mean(axis=(1, 2))
    low, high = np.quantile(shares, [0.025, 0.975])
    return Share(float(gains.mean() / damages.mean()), float(low), float(high))


def table(records: Sequence[Record]) -> list[str]:
    """Return, by method and setting, the share repaired with its interval, points, and seeds."""
    settings = list(SETTINGS)
    lines = [_row(["method", *settings]), _row(["---"] * (1 + len(settings)))]
    for method in (BASELINE, *FROM_FIRST, *RIVALS):
        lines.append(_row([method, *(_cell(records, setting, method) for setting in settings)]))
    return lines


def _cell(records: Sequence[Record], setting: str, method: str) -> str:
    names = (method, BASELINE, ORACLE)
    ours, baseline, oracle = (scores_by_run(records, setting, name) for name in names)
    if not ours.size:
        return ""
    if method == BASELINE:
        return f"({baseline.mean():.1f})"
    count = min(each.shape[1] for each in (ours, baseline, oracle) if each.size)
    points = f"{(ours[:, :count] - baseline[:, :count]).mean():+.1f}, n={count}"
    share = share_of(records, setting, method)
    if share is None:
        return points
    return f"{_percent(share.mean)} [{_percent(share.low)}, {_percent(share.high)}]<br>{points}"


def share_of(records: Sequence[Record], setting: str, method: str) -> Share | None:
    """Return the share that a method repairs in a setting; None where it or the oracle lacks."""
    scores = [scores_by_run(records, setting, name) for name in (method, BASELINE, ORACLE)]
    if not all(each.size for each in scores):
        return None
    return repaired_share(*scores, np.random.default_rng(0))


def _percent(share: float) -> str:
    return f"{100 * share:.0f}"


def chosen_table(records: Sequence[Record]) -> list[str]:
    """Return the trial and the number of test seeds of each cell that is finished."""
    lines = [_row(["setting", "method", "trial", "seeds"]), _row(["---"] * 4)]
    for setting, method in cells():
        count = scores_by_run(records, setting, method).shape[-1]
        if count:
            trial = best_trial(records, setting, method)
            lines.append(_row([setting, method, str(trial), str(count)]))
    return lines


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def read_first_records() -> list[Record]:
    """Return the tests of the first study, as it was published."""
    with gzip.open(FIRST_RECORDS, "rt") as lines:
        records = map(json.loads, lines)
        return [each for each in records if each["kind"] == "test"]


def report(records: Sequence[Record], out: Path) -> None:
    """Write repair_tables.md and repair.png to a folder."""
    every = [*read_first_records(), *records]
    lines = ["# What is repaired: tables", ""]
    lines += ["[The study](study.md#how-much-is-repaired) says what they mean.", ""]
    lines += ["## Share of the damage that is repaired", "", *table(every)]
    lines += ["", "## What was chosen", "", *chosen_table(records)]
    (out / "repair_tables.md").write_text("\n".join(lines) + "\n")
    settings = [name for name in SETTINGS if name in NOISY]
    compared = [method for method in (*FROM_FIRST, *RIVALS) if method != ORACLE]
    shares = {cell: share_of(every, *cell) for cell in itertools.product(settings, compared)}
    known = {cell: share for cell, share in shares.items() if share is not None}
    repair_figure.draw(known, settings, out / "repair.png")


def main() -> None:
    """Tune and test, or write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True, help="features, records, estimates")
    parser.add_argument("--seeds", type=int, default=TEST_SEEDS, help="of the tests; default: 10")
    parser.add_argument(
        "--method", action="append", choices=list(RIVALS), help="only this one; may be given again"
    )
    parser.add_argument("--out", type=Path, help="write the tables there instead of training")
    arguments = parser.parse_args()
    path = arguments.workdir / "records.jsonl"
    if arguments.seeds < 1:
        parser.error(f"--seeds={arguments.seeds}: at least 1")
    if arguments.out is not None:
        found = read_some_records(path, "repair")
        report(found, make_folder("--out", arguments.out))
        return
    noisy_pairs.use_one_core(arguments.workdir)
    for setting, method in cells():
        if method in (arguments.method or RIVALS):
            run_cell(setting, method, arguments.workdir, arguments.seeds)


if __name__ == "__main__":
    with ending_in_one_line():
        main()
