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
    colour = COLOURS["sigmoid loss" if "sigmoid" in method else "InfoNCE"]
    fill = "white" if "oracle" in method else colour
    draw_interval(panel, row, tuple(100 * each for each in share), SHOWN, "{:.0f}", colour, fill)


def draw_interval(
    panel: Axes,
    row: int,
    interval: Interval,
    shown: tuple[float, float],
    number: str,
    colour: str,
    fill: str,
) -> None:
    """Draw a point with its interval; one beyond what is shown as an arrow with its number.

    Args:
        panel: of which `shown` are the limits.
        row: where, upwards.
        interval: mean, low and high; ends that are not finite are not drawn.
        shown: limits of the panel.
        number: how to write it, as for `str.format`.
        colour: of all.
        fill: of the point.
    """
    mean, low, high = interval
    if shown[0] < mean < shown[1]:
        if np.isfinite([low, high]).all():
            panel.plot([low, high], [row, row], "|-", color=colour, lw=1.5, ms=7)
        panel.plot(mean, row, "o", color=colour, ms=4, mfc=fill)
        return
    left, rim = mean <= shown[0], 0.03 * (shown[1] - shown[0])
    place, away = (shown[0] + rim, 6) if left else (shown[1] - rim, -6)
    panel.plot(place, row, "<" if left else ">", color=colour, ms=5)
    panel.annotate(
        number.format(mean), (place, row), (away, 0), textcoords="offset points",
        ha="left" if left else "right", va="center", fontsize="small",
    )  # fmt: skip
