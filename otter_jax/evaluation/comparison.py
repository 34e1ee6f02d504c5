"""Statistics over runs: methods, seeds, paired differences, wins and ties.

See compare.py for what they mean.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatch
from typing import NamedTuple

import numpy as np

from otter_jax import config as config_lib
from otter_jax.evaluation.finished_runs import Run

CONFIDENCE = 0.95
UNSET = "unset"  # What --help calls a key without a value.
# What a run's name must not hang on: how it is kept and looked at, not what it learns.
IGNORED = ("seed", "evaluate.", "log_every_steps", *config_lib.BOOKKEEPING_KEYS)
MOST_KEYS = 3  # Of a method's name as the head of a column; with more, its runs' name stands there.
ALL = "all runs"  # The one setting where --setting names none.


class NotEvaluatedError(ValueError):
    """There is nothing to compare: no run has results."""


class Cell(NamedTuple):
    """One method, setting and metric."""

    method: str
    setting: str
    metric: str
    values: dict[int, float]  # By seed.

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return float(np.mean(list(self.values.values())))

    @property
    def deviation(self) -> float:
        """Standard deviation over the seeds, of a sample; NaN for one seed."""
        return deviation(list(self.values.values()))


@dataclasses.dataclass(frozen=True)
class Comparison:
    """All cells, in the order of the table, and the baseline's name."""

    methods: list[str]
    columns: dict[str, str]  # By method, what stands over its column.
    differing: dict[str, list[str]]  # By config key, each method's value; empty if columns say it.
    baseline: str
    rows: list[tuple[str, str]]  # Setting and metric.
    cells: dict[tuple[str, str, str], Cell]  # By method, setting and metric.

    @property
    def several_seeds(self) -> bool:
        """Whether any mean is over more than one seed, and so has a spread."""
        return any(len(cell.values) > 1 for cell in self.cells.values())

    def difference(self, method: str, row: tuple[str, str]) -> tuple[float, float, int] | None:
        """Return the mean paired difference to the baseline, half its interval, and how many pairs.

        None where there is no pair; half the interval is NaN for a single one.
        """
        cells = [self.cells.get((name, *row)) for name in (method, self.baseline)]
        if method == self.baseline or None in cells:
            return None
        ours, theirs = (cell.values for cell in cells)
        differences = [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]
        if not differences:
            return None
        return float(np.mean(differences)), half_interval(differences), len(differences)

    def wins(self) -> dict[str, tuple[int, int]]:
        """Count, by method, the rows where it alone is best, and those where it shares that."""
        counts = {method: [0, 0] for method in self.methods}
        for row in self.complete_rows():
            means = {m: round(100 * self.cells[m, *row].mean, 1) for m in self.methods}
            best = [method for method in self.methods if means[method] == max(means.values())]
            for method in best:
                counts[method][len(best) > 1] += 1
        return {method: (wins, ties) for method, (wins, ties) in counts.items()}

    def complete_rows(self) -> list[tuple[str, str]]:
        """Return the rows in which every method has a value."""
        return [row for row in self.rows if all((m, *row) in self.cells for m in self.methods)]


def compare(
    runs: Sequence[Run],
    baseline: str | None = None,
    setting: Sequence[str] = (),
    metrics: Sequence[str] = ("*",),
) -> Comparison:
    """Group runs into methods and settings.

    Args:
        runs: finished runs.
        baseline: a method's name or a part of it, or its column's; the first run's if not given.
        setting: config keys that say on what methods are compared.
        metrics: patterns with * of which a metric, such as "openmoji  hit@1", matches one.

    Raises:
        NotEvaluatedError: if none of the runs was evaluated.
        ValueError: if no metric matches, for two runs of one method, setting and seed, a key that
            does not exist, or a baseline that is no method.
    """
    if not any(run.results for run in runs):
        raise NotEvaluatedError("none of these runs was evaluated: config.evaluate.sets is empty")
    for key in setting:
        if key not in runs[0].config:
            raise ValueError(f"--setting={key}: there is no such config key")
    method_keys = [key for key in differing_keys(runs) if key not in setting]
    cells: dict[tuple[str, str, str], Cell] = {}
    rows: dict[tuple[str, str], None] = {}
    methods: dict[str, list[Run]] = {}
    for run in runs:
        method, place = describe(run, method_keys, "run"), describe(run, setting, ALL)
        methods.setdefault(method, []).append(run)
        wanted = [m for m in run.results if any(matches(m, pattern) for pattern in metrics)]
        for metric in wanted:
            rows[place, metric] = None
            cell = cells.setdefault((method, place, metric), Cell(method, place, metric, {}))
            if run.seed in cell.values:
                alike = (r for r in methods[method] if describe(r, setting, ALL) == place)
                first = next(each for each in alike if each.seed == run.seed)
                raise ValueError(
                    f"{first.path} and {run.path} are the same run twice: seed {run.seed} of "
                    f"{method}, {place}; leave one of them out"
                )
            cell.values[run.seed] = run.results[metric]
    if not rows:
        known = "; ".join(dict.fromkeys(" ".join(m.split()) for run in runs for m in run.results))
        raise ValueError(
            f"--metric={' '.join(metrics)}: there is no such metric; there are {known}"
        )
    columns = {method: method for method in methods}
    differing: dict[str, list[str]] = {}
    if len(method_keys) > MOST_KEYS:
        columns = name_columns(methods)
        firsts = [of_method[0] for of_method in methods.values()]
        differing = {key: [value_of(run, key) for run in firsts] for key in method_keys}
    named = [method for method, column in columns.items() if column == baseline]
    chosen = named[0] if named else choose_baseline(list(methods), baseline)
    return Comparison(list(methods), columns, differing, chosen, list(rows), cells)


def matches(metric: str, pattern: str) -> bool:
    """Return whether a metric is meant by a pattern, however many blanks either has."""
    return fnmatch(" ".join(metric.split()), " ".join(pattern.split()))


def differing_keys(runs: Sequence[Run]) -> list[str]:
    """Return the config keys whose values differ between runs, but for those that teach nothing."""
    keys = dict.fromkeys(key for run in runs for key in run.config)
    return [
        key
        for key in keys
        if not key.startswith(IGNORED) and len({repr(run.config.get(key)) for run in runs}) > 1
    ]


def describe(run: Run, keys: Iterable[str], otherwise: str) -> str:
    """Describe a run by its values of some keys: `objective.name=otter, batch_size=256`."""
    return ", ".join(f"{key}={value_of(run, key)}" for key in keys) or otherwise


def value_of(run: Run, key: str) -> str:
    """Return the value of a config key, as it is shown."""
    value = run.config.get(key)
    return UNSET if value is None else str(value)


def name_columns(methods: Mapping[str, Sequence[Run]]) -> dict[str, str]:
    """Return a name of every method, after its runs' folders; no two are alike.

    Args:
        methods: by method, its runs; of several, the seeds at their names' ends are left out.
    """
    columns = {}
    for method, runs in methods.items():
        names = [run.path.resolve().name for run in runs]
        bare = {
            re.sub(rf"[\W_]*(seed)?[\W_]*{run.seed}$", "", name)
            for run, name in zip(runs, names, strict=True)
        }
        shared = len(runs) > 1 and len(bare) == 1 and bare.pop()
        columns[method] = shared or names[0]
    alike = len(set(columns.values())) < len(columns)
    return {method: str(runs[0].path) for method, runs in methods.items()} if alike else columns


def choose_baseline(methods: Sequence[str], wanted: str | None) -> str:
    """Return the method that `wanted` names or is a part of, the first if it is None."""
    if wanted is None:
        return methods[0]
    found = [m for m in methods if m == wanted] or [m for m in methods if wanted in m]
    # Of several, the one that differs from the default in nothing else.
    unset = f"={UNSET}"
    plain = [
        m for m in found if all(wanted in part or part.endswith(unset) for part in m.split(", "))
    ]
    found = plain if len(plain) == 1 else found
    if len(found) != 1:
        raise ValueError(
            f"--baseline={wanted} stands for {len(found)} methods; there are: {'; '.join(methods)}"
        )
    return found[0]


def deviation(values: Sequence[float]) -> float:
    """Return the standard deviation of a sample; NaN for one value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def half_interval(differences: Sequence[float]) -> float:
    """Return half the 95 % confidence interval of a mean, by Student's t; NaN for one value."""
    from scipy.stats import t

    count = len(differences)
    if count < 2:
        return math.nan
    return float(t.ppf(0.5 + CONFIDENCE / 2, count - 1)) * deviation(differences) / count**0.5
