"""Writes a page on a run, or on several beside each other: otter-jax report RUN [RUN ...].

The page is one file that asks nothing of the network. One run's is RUN/report.html, which every run
writes at its end; here also of a run that is not finished, as far as it is. Of several runs curves
lie over each other, and those that are finished are compared as `otter-jax compare` does it.
"""

import argparse
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from otter_jax.commands.command_line import Parser, make_folder, path_of
from otter_jax.evaluation import comparison, comparison_tables, finished_runs
from otter_jax.evaluation.comparison import Comparison
from otter_jax.pictures import pages
from otter_jax.pictures.pages import Table
from otter_jax.runs.history import History, damage_of_last_checkpoint, read_history


def main(arguments: Sequence[str]) -> None:
    """Write the page on the runs that the command line names."""
    options = parse(arguments)
    paths, passed_over = finished_runs.runs_among(options.runs, finished=False)
    histories = [read_history(path) for path in paths]
    if len({each.path.resolve() for each in histories}) < len(histories):
        raise ValueError("a run is given twice")
    if options.baseline is not None and len(histories) == 1:
        raise ValueError(f"--baseline={options.baseline} goes with several runs")
    default = paths[0] / pages.FILE if len(histories) == 1 else Path(pages.FILE)
    path = options.output or default
    if path.is_dir():
        path /= pages.FILE
    make_folder("--output", path.parent)
    remarks = list(remarks_on(histories))
    tables = tables_of(histories, options.baseline) if len(histories) > 1 else []
    pages.write_page(path, histories, tables, remarks)
    for name, each in zip(pages.run_names(histories), histories, strict=True):
        print(f"{name}: {pages.status_of(each)}")
    for line in [*remarks, passed_over]:
        if line:
            print(line)
    print(f"written to {path} ({path.stat().st_size / 1e6:.1f} MB)")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = Parser(prog="otter-jax report", description=__doc__)
    parser.add_argument("runs", nargs="+", type=path_of, metavar="RUN", help="workdir of a run")
    parser.add_argument(
        "--output",
        type=path_of,
        help="file to write; default: RUN/report.html, of several runs report.html here",
    )
    parser.add_argument(
        "--baseline", help="method that others are compared to; default: the first run's"
    )
    return parser.parse_args(arguments)


def remarks_on(histories: Sequence[History]) -> list[str]:
    """Return what is wrong with the runs' newest checkpoints, every file of which is read."""
    return [
        f"The checkpoint of step {each.checkpoints[-1]} in {each.path} is damaged: {damage}."
        for each in histories
        if (damage := damage_of_last_checkpoint(each))
    ]


def tables_of(histories: Sequence[History], baseline: str | None) -> list[Table]:
    """Return the tables that compare the runs which are finished and were evaluated."""
    finished = [each.path for each in histories if pages.results_of(each)]
    if len(finished) < 2:
        return []
    runs = finished_runs.read_runs(finished)
    found = comparison.compare(runs, baseline)
    untrained = [_others(each, "before") for each in histories]
    chances = [_others(each, "chance") for each in histories]
    tables = [results_table(found, untrained, chances)]
    if len(found.methods) > 1:
        tables.append(differences_table(found))
    if found.differing:
        head = ("key", *found.columns.values())
        rows = [(key, *values) for key, values in found.differing.items()]
        tables.append(Table("What differs between them", head, rows))
    return tables


def results_table(
    found: Comparison, untrained: Sequence[dict[str, float]], chances: Sequence[dict[str, float]]
) -> Table:
    """Return each method's mean, with the 95 % interval where it has several seeds.

    Args:
        found: the comparison.
        untrained: by metric, what was measured before training, for every run.
        chances: by metric, what chance gives, for every run.
    """
    rows = []
    for place, metric in found.rows:
        cells = [found.cells.get((method, place, metric)) for method in found.methods]
        shown = [
            "-" if cell is None else comparison_tables.percent(
                cell.mean, comparison.half_interval(list(cell.values.values()))
            )
            for cell in cells
        ]  # fmt: skip
        beside = [
            _mean([run[metric] for run in each if metric in run]) for each in (untrained, chances)
        ]
        rows.append((" ".join(metric.split()), *shown, *map(pages.in_percent, beside)))
    caption = "Results in percent"
    if found.several_seeds:
        caption += "; ± half the 95 % interval of the mean where there are several seeds"
    return Table(caption, ("metric", *found.columns.values(), "before", "chance"), rows)


def differences_table(found: Comparison) -> Table:
    """Return each method's paired difference to the baseline, as `otter-jax compare` has it."""
    others = [method for method in found.methods if method != found.baseline]
    rows = []
    for row in found.rows:
        differences = [found.difference(method, row) for method in others]
        rows.append((" ".join(row[1].split()), *map(describe_difference, differences)))
    caption = f"Paired difference to {found.columns[found.baseline]}, in points"
    if found.several_seeds:
        caption += "; ± half its 95 % interval"
    return Table(caption, ("metric", *(found.columns[method] for method in others)), rows)


def describe_difference(difference: tuple[float, float, int] | None) -> str:
    """Return "+1.2 ± 0.9 (3 seeds)"; "-" where no seed is shared."""
    if difference is None:
        return "-"
    mean, half, pairs = difference
    spread = "" if math.isnan(half) else f" ± {100 * half:.1f}"
    return f"{100 * mean:+.1f}{spread} ({pairs} seed{'s' if pairs > 1 else ''})"


def _others(history: History, key: str) -> dict[str, float]:
    """Return `before` or `chance` of results.json, by metrics' names as in the comparison."""
    return {
        f"{name}  {metric}": value
        for name, metrics in history.results.get(key, {}).items()
        for metric, value in metrics.items()
    }


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None
