"""What the study from scratch found: its table, and its picture."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from scipy import stats

from studies.repair_figure import Interval, draw_interval

KS = (1, 5, 10)
BASELINE = "infonce"
KINDS = ("style", "concepts")
COLUMNS = tuple(f"{kind} {what}" for what in ("hit", "recall") for kind in KINDS)
CONFIDENCE = 0.95
SHOWN = (-5.0, 5.0)  # Points. What lies beyond is an arrow at the rim.

Cell = tuple[str, str]  # Setting and method.
Scores = Mapping[Cell, Mapping[int, np.ndarray]]  # By seed, percent [12]: `COLUMNS` at each of KS.


def table(found: Scores) -> str:
    """Return mean and standard deviation over the seeds that are finished, a row a cell.

    Behind them stands by how much hit@1, the mean of both splits, differs from InfoNCE's: mean and
    95 % interval over the seeds that both have.
    """
    heads = ["setting", "method", "seeds", *(f"{each}@1 / 5 / 10" for each in COLUMNS)]
    lines = [_row([*heads, "hit@1 against InfoNCE"]), _row(["---"] * (len(heads) + 1))]
    for (setting, method), by_seed in found.items():
        scores = np.array(list(by_seed.values()))
        texts = [f"{mean:.1f}" for mean in scores.mean(axis=0)]
        if len(scores) > 1:
            spread = scores.std(axis=0, ddof=1)
            texts = [f"{mean} ± {each:.1f}" for mean, each in zip(texts, spread, strict=True)]
        cells = [" / ".join(texts[i : i + len(KS)]) for i in range(0, len(texts), len(KS))]
        against = "" if method == BASELINE else _describe(difference(found, setting, method))
        lines.append(_row([setting, method, str(len(scores)), *cells, against]))
    return "\n".join(lines)


def difference(found: Scores, setting: str, method: str) -> Interval | None:
    """Return by how much a method's hit@1 differs from InfoNCE's, with its 95 % interval.

    Both have the same seeds: wrong captions, first weights and order. The interval is Student's.

    Returns:
        Mean, low and high, in points; None where no seed has both, infinite ends where one has.
    """
    ours, theirs = found.get((setting, method), {}), found.get((setting, BASELINE), {})
    first = [len(KS) * place for place, _ in enumerate(KINDS)]
    gains = [(ours[seed] - theirs[seed])[first].mean() for seed in ours if seed in theirs]
    if not gains:
        return None
    mean, count = float(np.mean(gains)), len(gains)
    if count == 1:
        return mean, -np.inf, np.inf
    wide = stats.t.ppf((1 + CONFIDENCE) / 2, count - 1) * np.std(gains, ddof=1) / np.sqrt(count)
    return mean, mean - float(wide), mean + float(wide)


def _describe(found: Interval | None) -> str:
    if found is None:
        return ""
    mean, low, high = found
    return f"{mean:+.1f}" if np.isinf(low) else f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def draw(found: Scores, path: Path) -> None:
    """Draw a panel a setting that has InfoNCE: what others gain or lose against it, best on top."""
    settings = [setting for setting, method in found if method == BASELINE]
    methods = [each for each in dict.fromkeys(m for _, m in found) if each != BASELINE]
    gains = {cell: difference(found, *cell) for cell in found if cell[1] != BASELINE}
    known = {cell: gain for cell, gain in gains.items() if gain is not None}
    rows = sorted(methods, key=lambda each: known.get((settings[0], each), (-np.inf,))[0])
    size = (2.2 + 2.4 * len(settings), 1.2 + 0.27 * len(rows))
    figure, panels = plt.subplots(
        1, len(settings), figsize=size, sharex=True, sharey=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for panel, setting in zip(panels[0], settings, strict=True):
        of_setting = {method: known.get((setting, method)) for method in rows}
        _draw_setting(panel, of_setting)
        baseline = np.array(list(found[setting, BASELINE].values())).mean(axis=0)
        hits = " and ".join(f"{baseline[len(KS) * i]:.1f}" for i, _ in enumerate(KINDS))
        panel.set_title(f"{setting}\nInfoNCE: {hits} %", fontsize="medium")
    figure.supxlabel(
        "hit@1, points against InfoNCE (mean of unseen styles and unseen concepts)",
        fontsize="medium",
    )
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _draw_setting(panel: Axes, gains: Mapping[str, Interval | None]) -> None:
    panel.axvline(0, color="grey", lw=1, zorder=1)
    for row, gain in enumerate(gains.values()):
        if gain is not None:
            draw_interval(panel, row, gain, SHOWN, "{:+.1f}", "tab:blue", "tab:blue")
    panel.set_xlim(SHOWN)
    panel.set_yticks(range(len(gains)), gains)
    panel.set_ylim(-0.7, len(gains) - 0.3)
    panel.tick_params(axis="y", length=0)
    panel.grid(axis="y", color="0.92")
    panel.set_axisbelow(True)
