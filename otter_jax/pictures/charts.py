"""Curves as the numbers of a small SVG: thinned, with ticks, and with values to point at.

A page's template draws them, so that they have its colours, light or dark, and its escaping.
"""

import itertools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from matplotlib import ticker

WIDTH, HEIGHT = 420, 230  # Units; as wide as a telephone shows, so that letters stay legible.
LEFT, RIGHT, TOP, BOTTOM = 52, 410, 10, 200  # Of the axes among them.
POINTED_AT = 60  # Points of a curve that say their value when pointed at.
TICKS = 5
SHARES_TICKS = (1, 2, 2.5, 5, 10)  # Apart; all divide 100 %, which no tick must exceed.
AS_GOOD_AS_CONSTANT = 1e-5  # Span of values over their size, below which ticks would read alike.
STEPS = ticker.EngFormatter(sep="")  # 20000 is written 20k.


class Line(NamedTuple):
    """One curve, in units of the drawing, and what is said of it in words."""

    name: str
    path: str  # As in SVG's `points`.
    marks: list[tuple[float, float, str]]  # Places that say their value.
    first: str
    last: str
    lowest: str
    highest: str


class Chart(NamedTuple):
    """Curves that share their axes."""

    title: str
    lines: list[Line]
    across: list[tuple[float, str]]  # Ticks: where, and what is written there.
    upward: list[tuple[float, str]]

    @property
    def in_words(self) -> str:
        """What the curves show, for who cannot see them."""
        said = (f"{line.name}: {line.first}, {line.last}" for line in self.lines)
        return f"{self.title}, over the steps. {'; '.join(said)}."


def thin(values: np.ndarray, count: int) -> np.ndarray:
    """Choose the points to draw: both ends, and the extremes of every stretch between them.

    Args:
        values: float [n].
        count: about how many points are wanted, at least 4.

    Returns:
        int [m], which points, rising; all of them if there are no more than `count`.
    """
    if len(values) <= count:
        return np.arange(len(values))
    edges = np.linspace(0, len(values), max(count // 2, 2) + 1).astype(int)
    chosen = {0, len(values) - 1}
    for first, last in itertools.pairwise(edges):
        stretch = values[first:last]
        chosen |= {first + int(stretch.argmin()), first + int(stretch.argmax())}
    return np.array(sorted(chosen))


def make_chart(
    title: str, curves: Mapping[str, Mapping[int, float]], *, points: int = 800, share: bool = False
) -> Chart:
    """Return a chart of curves over the steps.

    Args:
        title: what they show.
        curves: by name, the value at each step; none of them empty.
        points: to which every curve is thinned; of a quarter of them, at most, values are said.
        share: whether the values are shares, to be shown in percent.
    """
    steps = [np.array(sorted(curve)) for curve in curves.values()]
    values = [
        np.array([curve[step] for step in each]) * (100 if share else 1) + 0.0  # Makes -0 a 0.
        for curve, each in zip(curves.values(), steps, strict=True)
    ]
    marked = min(POINTED_AT, points // 4)
    across = _ticks(np.concatenate(steps))
    upward = _ticks(np.concatenate(values), share=share)
    lines = []
    for name, each, height in zip(curves, steps, values, strict=True):
        kept = thin(height, points)
        x = _placed(each, across, LEFT, RIGHT)
        y = _placed(height, upward, BOTTOM, TOP)
        path = " ".join(f"{x[n]:.1f},{y[n]:.1f}" for n in kept)
        near = kept[np.linspace(0, len(kept) - 1, min(marked, len(kept))).astype(int)]
        marks = [(round(x[n], 1), round(y[n], 1), _said(each, height, n, share)) for n in near]
        ends = (0, -1, int(height.argmin()), int(height.argmax()))
        lines.append(Line(name, path, marks, *(_said(each, height, n, share) for n in ends)))
    return Chart(
        title,
        lines,
        _written(across, LEFT, RIGHT, STEPS.format_eng),
        _written(upward, BOTTOM, TOP, lambda tick: f"{tick:.6g}{' %' if share else ''}"),
    )


def _ticks(values: np.ndarray, share: bool = False) -> np.ndarray:
    """Return round numbers that enclose the values, none below 0 unless a value is.

    Args:
        values: float [n].
        share: whether they are shares in percent; then no tick is above 100 unless a value is.
    """
    low, high = float(values.min()), float(values.max())
    size = max(abs(low), abs(high))
    if high - low <= AS_GOOD_AS_CONSTANT * size:
        low, high = low - size / 2, high + size / 2 if size else 1.0
        if share and size <= 100 * (1 + AS_GOOD_AS_CONSTANT):  # Rounding may have gone beyond 1.
            high = min(high, 100.0)
    steps = SHARES_TICKS if share else None
    return ticker.MaxNLocator(TICKS, steps=steps).tick_values(low, high)


def _placed(values: np.ndarray, ticks: np.ndarray, start: float, end: float) -> np.ndarray:
    """Map values between the outermost ticks to the units of the drawing."""
    return start + (values - ticks[0]) / (ticks[-1] - ticks[0]) * (end - start)


def _written(
    ticks: np.ndarray, start: float, end: float, write: Callable[[float], str]
) -> list[tuple[float, str]]:
    places = _placed(ticks, ticks, start, end)
    return [(round(x, 1), write(tick)) for x, tick in zip(places, ticks.tolist(), strict=True)]


def _said(steps: np.ndarray, values: np.ndarray, place: int, share: bool) -> str:
    value = f"{values[place]:.1f} %" if share else f"{values[place]:.4g}"
    return f"{value} at step {steps[place]:,}"
