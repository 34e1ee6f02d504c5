"""The report of the study: tables and a figure from its records.

    python -m studies.report --workdir=runs/noisy_pairs --out=docs

writes study_tables.md and study.png. See PROTOCOL.md for what the statistics mean.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np

from studies import runs
from studies.collection import NUM_SPLITS
from studies.methods import (
    BASELINE,
    COMMON_DEFAULTS,
    METHODS,
    NUM_TRIALS,
    SETTINGS,
    hyperparameters,
)
from studies.noisy_pairs import Record, best_trial, ranks_file, read_records, score

METRICS = tuple(f"{kind}@{k}" for kind in ("recall", "hit") for k in runs.KS)
DRAWS = 2_000
LEVEL = 0.05
NUM_TEST_IMAGES = 804  # Half of OpenMoji.


class Difference(NamedTuple):
    """A method against the baseline in one cell, in points."""

    mean: float
    error: float  # Standard error, by the bootstrap.
    low: float  # 95 % interval.
    high: float

    @property
    def p_value(self) -> float:
        """Return the two-sided p-value under a normal distribution."""
        if self.error == 0.0:
            return 1.0 if self.mean == 0.0 else 0.0
        return math.erfc(abs(self.mean) / self.error / math.sqrt(2))


def found(ranks: np.ndarray, num_images: int) -> dict[str, np.ndarray]:
    """Return, by metric, 100 where a query is found and 0 elsewhere: float [seeds, queries].

    A pair is one query of retrieval, the mean of its two directions.

    Args:
        ranks: uint8 [seeds, pairs + pairs + num_images], images to texts, texts to images, images
            of the other style.
        num_images: of the other style.
    """
    pairs = (ranks.shape[1] - num_images) // 2
    to_text, to_image, zero_shot = np.split(ranks, [pairs, 2 * pairs], axis=1)
    recalls = {f"recall@{k}": 50.0 * ((to_text < k) + 1.0 * (to_image < k)) for k in runs.KS}
    return recalls | {f"hit@{k}": 100.0 * (zero_shot < k) for k in runs.KS}


def bootstrap(differences: Sequence[np.ndarray], rng: np.random.Generator) -> Difference:
    """Draw the seeds and queries of paired differences [seeds, queries] anew, for each split."""
    means = np.zeros(DRAWS)
    for each in differences:
        seeds, queries = each.shape
        seed_weights = rng.multinomial(seeds, np.full(seeds, 1 / seeds), DRAWS) / seeds
        query_weights = rng.multinomial(queries, np.full(queries, 1 / queries), DRAWS) / queries
        means += np.einsum("ds,sq,dq->d", seed_weights, each, query_weights, optimize=True)
    means /= len(differences)
    low, high = np.quantile(means, [LEVEL / 2, 1 - LEVEL / 2])
    mean = float(np.mean([each.mean() for each in differences]))
    return Difference(mean, float(means.std(ddof=1)), float(low), float(high))


def holm(p_values: Sequence[float]) -> list[bool]:
    """Return which of the p-values stay significant at `LEVEL` together (Holm 1979)."""
    significant = [False] * len(p_values)
    for passed, index in enumerate(np.argsort(p_values, kind="stable")):
        if p_values[index] > LEVEL / (len(p_values) - passed):
            break
        significant[index] = True
    return significant


class Study(NamedTuple):
    """What was tested, by (setting, method, metric)."""

    settings: list[str]  # Those of which every method's tests are finished.
    means: dict[tuple[str, str, str], float]
    deviations: dict[tuple[str, str, str], float]  # Over the runs.
    differences: dict[tuple[str, str, str], Difference]
    significant: dict[tuple[str, str, str], bool]
    chosen: dict[tuple[str, str], int]  # The trial of (setting, method).


def analyse(workdir: Path) -> Study:
    """Read the records and ranks of a study.

    Raises:
        FileNotFoundError: if no setting is finished.
    """
    records = read_records(workdir / "records.jsonl")
    settings = [s for s in SETTINGS if all(ranks_file(workdir, s, m).is_file() for m in METHODS)]
    if not settings:
        raise FileNotFoundError(f"{workdir}: no setting of studies.noisy_pairs is finished there")
    means, deviations, differences = {}, {}, {}
    for setting in settings:
        baseline = read_found(workdir, setting, BASELINE)
        for method in METHODS:
            ours = read_found(workdir, setting, method)
            for metric in METRICS:
                values = [each[metric].mean(axis=1) for each in ours]  # Of the runs, by split.
                cell = (setting, method, metric)
                means[cell] = float(np.mean(values))
                deviations[cell] = float(np.std(np.concatenate(values), ddof=1))
                pairs = [x[metric] - y[metric] for x, y in zip(ours, baseline, strict=True)]
                differences[cell] = bootstrap(pairs, np.random.default_rng(0))
    compared = [cell for cell in differences if cell[1] != BASELINE]
    significant = holm([differences[cell].p_value for cell in compared])
    chosen = {(s, m): best_trial(records, s, m) for s in settings for m in METHODS}
    told_apart = dict(zip(compared, significant, strict=True))
    return Study(settings, means, deviations, differences, told_apart, chosen)


def read_found(workdir: Path, setting: str, method: str) -> list[dict[str, np.ndarray]]:
    """Return `found` of each split."""
    with np.load(ranks_file(workdir, setting, method)) as ranks:
        return [found(ranks[f"split_{n}"], NUM_TEST_IMAGES) for n in range(NUM_SPLITS)]


def counts(study: Study, method: str) -> tuple[int, int, int, int]:
    """Return the wins, ties and losses against the baseline, and how many means are the best."""
    wins = losses = best = 0
    for setting in study.settings:
        for metric in METRICS:
            cell = (setting, method, metric)
            if study.significant.get(cell):
                wins += study.differences[cell].mean > 0
                losses += study.differences[cell].mean < 0
            best += study.means[cell] == max(study.means[setting, m, metric] for m in METHODS)
    return wins, len(study.settings) * len(METRICS) - wins - losses, losses, best


def summary_table(study: Study) -> list[str]:
    """Return one line a method: wins, ties, losses, best, and the mean difference by setting."""
    head = [
        "method",
        "wins / ties / losses",
        f"best of {len(study.settings) * len(METRICS)}",
        *study.settings,
    ]
    lines = [_row(head), _row(["---"] * len(head))]
    for method in METHODS:
        wins, ties, losses, best = counts(study, method)
        cells = [
            f"{np.mean([study.differences[setting, method, m].mean for m in METRICS]):+.1f}"
            for setting in study.settings
        ]
        if method == BASELINE:
            mean = [np.mean([study.means[s, method, m] for m in METRICS]) for s in study.settings]
            cells = [f"({each:.1f})" for each in mean]
        versus = "" if method == BASELINE else f"{wins} / {ties} / {losses}"
        lines.append(_row([method, versus, str(best), *cells]))
    return lines


def setting_table(study: Study, setting: str) -> list[str]:
    """Return the means and deviations, and below them the differences with their intervals."""
    head = ["method", "trial", *METRICS]
    lines = [_row(head), _row(["---"] * len(head))]
    for method in METHODS:
        cells = []
        for metric in METRICS:
            cell = (setting, method, metric)
            text = f"{study.means[cell]:.1f} ± {study.deviations[cell]:.1f}"
            if method != BASELINE:
                each = study.differences[cell]
                star = "*" if study.significant[cell] else ""
                text += f"<br>{each.mean:+.1f}{star} [{each.low:+.1f}, {each.high:+.1f}]"
            cells.append(text)
        lines.append(_row([method, str(study.chosen[setting, method]), *cells]))
    return lines


def trials_table() -> list[str]:
    """Return the hyperparameters of each trial: those of all methods, then each method's own."""
    trials = range(NUM_TRIALS)
    lines = [_row(["method", *map(str, trials)]), _row(["---"] * (1 + NUM_TRIALS))]
    for method in METHODS:
        tried = [hyperparameters(METHODS[method], trial) for trial in trials]
        for name in tried[0]:
            if (name in COMMON_DEFAULTS) == (method == BASELINE):
                whose = "all" if method == BASELINE else method
                lines.append(_row([f"{whose}: {name}", *(f"{each[name]:.3g}" for each in tried)]))
    return lines


def sweep_table(records: Sequence[Record]) -> list[str]:
    """Return the mean scores of OTTER with one thing changed: retrieval and zero-shot."""
    lines = [_row(["change", "mean recall", "mean hit", "of all six"]), _row(["---"] * 4)]
    changes: dict[str, list[Record]] = {}
    for record in records:
        if record["kind"] == "sweep":
            changes.setdefault(record["change"], []).append(record)
    for change, found_records in changes.items():
        recall, hit = (
            np.mean([[record[f"{kind}@{k}"] for k in runs.KS] for record in found_records])
            for kind in ("recall", "hit")
        )
        both = np.mean([score(record) for record in found_records])
        lines.append(_row([change, f"{recall:.2f}", f"{hit:.2f}", f"{both:.2f}"]))
    return lines


def draw(study: Study, path: Path) -> None:
    """Draw the mean difference of the six metrics to the baseline, by method and setting."""
    figure, axes = plt.subplots(figsize=(9, 4.5), layout="constrained")
    methods = [method for method in METHODS if method != BASELINE]
    table = np.array(
        [
            [
                np.mean([study.differences[s, m, each].mean for each in METRICS])
                for s in study.settings
            ]
            for m in methods
        ]
    )
    limit = np.abs(table).max()
    image = axes.imshow(table, cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto")
    axes.set_xticks(range(len(study.settings)), study.settings, rotation=20, ha="right")
    axes.set_yticks(range(len(methods)), methods)
    for (row, column), value in np.ndenumerate(table):
        colour = "white" if abs(value) > 0.6 * limit else "black"
        axes.text(column, row, f"{value:+.1f}", ha="center", va="center", color=colour)
    figure.colorbar(image, label="points against InfoNCE, mean of six metrics")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Write the tables and the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True, help="that of studies.noisy_pairs")
    parser.add_argument("--out", type=Path, required=True, help="where to write")
    arguments = parser.parse_args()
    study = analyse(arguments.workdir)
    lines = ["## All settings", "", *summary_table(study)]
    for setting in study.settings:
        lines += ["", f"## {setting}", "", *setting_table(study, setting)]
    records = read_records(arguments.workdir / "records.jsonl")
    if any(record["kind"] == "sweep" for record in records):
        lines += ["", "## OTTER, one thing changed", "", *sweep_table(records)]
    lines += ["", "## What the trials had", "", *trials_table()]
    (arguments.out / "study_tables.md").write_text("\n".join(lines) + "\n")
    draw(study, arguments.out / "study.png")


if __name__ == "__main__":
    main()
