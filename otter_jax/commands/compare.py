"""Compares finished runs: otter-jax compare RUN1 RUN2 ... [--baseline=NAME].

Runs that differ in nothing but their seed are one method; methods are called by what differs
between them, such as `objective.name=otter`; where that is more than three keys, by their folders,
and the keys are listed below. Printed, and written as comparison.md and
comparison.csv into --output, are

  - every metric of every method: mean and standard deviation over the seeds;
  - its paired difference to the baseline, over the seeds that both have, with the 95 % confidence
    interval of Student's t; pairing takes out what a seed does to both;
  - how often each method is best: wins and ties among all settings times metrics, as OTTER counts
    them (7 settings x 6 metrics = 42). Means are compared as they would be printed, in percent with
    one decimal; a tie is shared by all that are best.

Which metrics count is said by --metric. A setting is what methods are compared within: all that
differs and is named by --setting, such as `data.train` or `model.image.name`.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from otter_jax.commands.command_line import Parser, make_folder, path_of
from otter_jax.evaluation import comparison, comparison_tables, finished_runs


def main(arguments: Sequence[str]) -> None:
    """Compare what the command line says; print the tables and write them."""
    options = parse(arguments)
    paths, passed_over = finished_runs.runs_among(options.runs, finished=True)
    runs = finished_runs.read_runs(paths)
    found = comparison.compare(runs, options.baseline, options.setting, options.metric or ["*"])
    text = comparison_tables.markdown(found)
    folder = make_folder("--output", Path(options.output))
    (folder / "comparison.md").write_text(text, encoding="utf-8")
    comparison_tables.write_csv(folder / "comparison.csv", found)
    print(text)
    if passed_over:
        print(passed_over)
    print(f"written to {folder / 'comparison.md'} and comparison.csv")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = Parser(prog="otter-jax compare")
    parser.add_argument(
        "runs", nargs="+", type=path_of, metavar="RUN", help="workdir of a finished run"
    )
    parser.add_argument(
        "--baseline",
        help="method that others are compared to, by its name or a part of it, or by what stands "
        "over its column; default: the first",
    )
    parser.add_argument(
        "--setting",
        action="append",
        default=[],
        metavar="KEY",
        help="config key that is no part of a method but of what it is compared on; repeatable",
    )
    parser.add_argument(
        "--metric",
        action="append",
        metavar="PATTERN",
        help="only metrics such as 'openmoji  hit@*'; repeatable",
    )
    parser.add_argument(
        "--output", type=path_of, default=".", help="folder for the tables; default: this one"
    )
    return parser.parse_args(arguments)
