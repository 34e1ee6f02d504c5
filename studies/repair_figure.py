"""The second study in one picture: how much of the damage each method repairs, by setting."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

SHOWN = (-60.0, 165.0)  # Percent. What lies beyond is an arrow at the rim.
COLOURS = {"InfoNCE": "tab:blue", "sigmoid loss": "tab:orange"}

Interval = tuple[float, float, float]  # A share with the ends of its interval: 1 for all of it.


def draw(shares: Mapping[tuple[str, str], Interval], settings: Sequence[str], path: Path) -> None:
    """Draw a panel a setting, methods below each other, best first; points with their intervals.

    Methods whose names speak of an oracle are hollow.

    Args:
        shares: by setting and method; what is missing stays empty.
        settings: the panels, from left to right.
        path: the picture.
    """
    methods = {method for _, method in shares}
    rows = sorted(methods, key=lambda each: _median(shares, settings, each))  # Best on top.
    size = (2.2 + 1.9 * len(settings), 1.2 + 0.25 * len(rows))
    figure, panels = plt.subplots(
        1, len(settings), figsize=size, sharex=True, sharey=True, layout="constrained"
    )
    for panel, setting in zip(np.atleast_1d(panels), settings, strict=True):
        for place, style in ((0, "-"), (100, "--")):
            panel.axvline(place, color="grey", lw=1, ls=style, zorder=1)
        for row, method in enumerate(rows):
            if (setting, method) in shares:
                _draw_share(panel, row, method, shares[setting, method])
        panel.set_title(setting, fontsize="medium")
        panel.set(xlim=SHOWN, ylim=(-0.7, len(rows) - 0.3))
        panel.set_xticks([-50, 0, 50, 100, 150])
        panel.set_yticks(range(len(rows)), rows)
        panel.tick_params(axis="y", length=0)
        panel.grid(axis="y", color="0.92")
        panel.set_axisbelow(True)
    figure.supxlabel(
        "% of the damage repaired: at 0 InfoNCE on all pairs, at 100 InfoNCE on the right pairs",
        fontsize="medium",
    )
    handles = [Line2D([], [], color=colour, marker="o", ms=5) for colour in COLOURS.values()]
    handles.append(Line2D([], [], color="black", marker="o", ms=5, mfc="white"))
    labels = [*COLOURS, "knows the right pairs"]
    figure.legend(handles, labels, loc="outside upper right", ncols=3, frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _median(
    shares: Mapping[tuple[str, str], Interval], settings: Sequence[str], method: str
) -> float:
    return float(np.median([shares[s, method][0] for s in settings if (s, method) in shares]))


def _draw_share(panel: Axes, row: int, method: str, share: Interval) -> None:
    mean, low, high = (100 * each for each in share)
    colour = COLOURS["sigmoid loss" if "sigmoid" in method else "InfoNCE"]
    if SHOWN[0] < mean < SHOWN[1]:
        panel.plot([low, high], [row, row], "|-", color=colour, lw=1.5, ms=7)
        fill = "white" if "oracle" in method else colour
        panel.plot(mean, row, "o", color=colour, ms=4, mfc=fill)
        return
    left = mean <= SHOWN[0]
    place, away = (SHOWN[0] + 6, 6) if left else (SHOWN[1] - 6, -6)
    panel.plot(place, row, "<" if left else ">", color=colour, ms=5)
    panel.annotate(
        f"{mean:.0f}", (place, row), (away, 0), textcoords="offset points",
        ha="left" if left else "right", va="center", fontsize="small",
    )  # fmt: skip
