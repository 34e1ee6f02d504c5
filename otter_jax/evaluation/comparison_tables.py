"""A comparison of runs as Markdown and CSV."""

import csv
import math
from pathlib import Path

from otter_jax.evaluation.comparison import CONFIDENCE, Comparison


def percent(value: float, deviation: float = math.nan) -> str:
    """Return a share in percent: 12.3 ± 0.4, or 12.3 where there is no deviation."""
    spread = "" if math.isnan(deviation) else f" ± {100 * deviation:.1f}"
    return f"{100 * value:.1f}{spread}"


def markdown(found: Comparison) -> str:
    """Return the tables as Markdown, in percent."""
    columns = [found.columns[method] for method in found.methods]
    lines = [
        heading(found),
        "",
        "| setting | metric | " + " | ".join(columns) + " |",
        "|---" * (2 + len(found.methods)) + "|",
    ]
    lines += [
        f"| {place} | {metric} | "
        + " | ".join(markdown_cell(found, method, (place, metric)) for method in found.methods)
        + " |"
        for place, metric in found.rows
    ]
    total = len(found.complete_rows())
    lines += [
        "",
        f"| method | best alone, of {total} | best with others | seeds |",
        "|---" * 4 + "|",
    ]
    for method, (wins, ties) in found.wins().items():
        seeds = sorted({s for c in found.cells.values() if c.method == method for s in c.values})
        # A lone 0 would read as if there were none.
        said = f"seed {seeds[0]}" if len(seeds) == 1 else ", ".join(map(str, seeds)) or "-"
        lines.append(f"| {found.columns[method]} | {wins} | {ties} | {said} |")
    if found.differing:
        lines += ["", "| differs | " + " | ".join(columns) + " |"]
        lines += ["|---" * (1 + len(columns)) + "|"]
        lines += [f"| {key} | {' | '.join(each)} |" for key, each in found.differing.items()]
    return "\n".join(lines) + "\n"


def heading(found: Comparison) -> str:
    """Return what the numbers of the table are; of spreads, only where there are several seeds."""
    text = "Percent"
    if found.several_seeds:
        text += ", mean ± standard deviation over seeds"
    if len(found.methods) > 1:
        text += f"; in brackets the paired difference to {found.columns[found.baseline]}"
        if found.several_seeds:
            text += f" ± half its {100 * CONFIDENCE:.0f} % confidence interval"
    return f"{text}."


def markdown_cell(found: Comparison, method: str, row: tuple[str, str]) -> str:
    """Return "12.3 ± 0.4 (+1.2 ± 0.9)", bold where it is best; "-" where there is nothing."""
    cell = found.cells.get((method, *row))
    if cell is None:
        return "-"
    means = [found.cells[m, *row].mean for m in found.methods if (m, *row) in found.cells]
    text = percent(cell.mean, cell.deviation)
    if len(means) > 1 and round(100 * cell.mean, 1) == round(100 * max(means), 1):
        text = f"**{text}**"
    if difference := found.difference(method, row):
        mean, half, _ = difference
        sign = "+" if mean >= 0 else "-"
        text += f" ({sign}{percent(abs(mean), half)})"
    return text


def write_csv(path: Path, found: Comparison) -> None:
    """Write a line for every setting, metric and method; values are shares."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["setting", "metric", "method", "seeds", "mean", "standard_deviation",
                         "difference", "half_interval_95", "pairs"])  # fmt: skip
        for row in found.rows:
            for method in found.methods:
                if cell := found.cells.get((method, *row)):
                    beside = found.difference(method, row) or ("", "", "")
                    spread = "" if math.isnan(cell.deviation) else cell.deviation
                    writer.writerow([*row, method, len(cell.values), cell.mean, spread, *beside])
