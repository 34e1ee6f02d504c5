"""Results as tables: a CSV of every metric of every set, and interpolations on the screen."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from otter_jax.runs.reporting import OTHERS, sets_of
from otter_jax.terminal import aligned


def interpolation_table(curve: Mapping[float, Mapping[str, Mapping[str, float]]]) -> list[str]:
    """Return the lines of a table of the first metric of each set, by share of the way.

    The last column is the mean over the sets, whose highest is marked.
    """
    first = {name: next(iter(each)) for name, each in next(iter(curve.values())).items()}
    values = {
        share: [found[name][metric] for name, metric in first.items()]
        for share, found in curve.items()
    }
    means = {share: sum(row) / len(row) for share, row in values.items()}
    best = max(means, key=means.get)
    rows = [("interpolated", *(f"{name} {metric}" for name, metric in first.items()), "mean", "")]
    for share, row in values.items():
        shown = (f"{100 * value:.1f} %" for value in (*row, means[share]))
        rows.append((f"{share:g}", *shown, "highest" if share == best else ""))
    return aligned(rows)


def write_csv(path: Path, results: Mapping[str, Any]) -> None:
    """Write a CSV of `set, metric, value, before, chance`; values are shares, blank if unknown.

    Args:
        path: the file.
        results: what results.json holds.
    """
    if jax.process_index() != 0:
        return
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["set", "metric", "value", *OTHERS])
        for name, metrics in sets_of(results):
            for metric, value in metrics.items():
                beside = [results.get(o, {}).get(name, {}).get(metric, "") for o in OTHERS]
                writer.writerow([name, metric, value, *beside])
    partial.replace(path)
