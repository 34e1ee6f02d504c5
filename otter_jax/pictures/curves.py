"""Drawing numbers: the loss over the steps, and how far pairs agree with others."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from otter_jax.embedding.trust import Trust
from otter_jax.pictures.figures import save

PAIRS, WRONG, LOSS = "#bcd9ea", "#d1495b", "#0b2c5f"
BINS = 60
SHOWN = 3  # Metrics of an evaluation set.


def draw_loss(path: Path, curves: Mapping[str, Mapping[int, float]]) -> None:
    """Draw the losses of a run over its steps, the first one heavier than its parts.

    Args:
        path: a .png file; its folder is made.
        curves: by name, the value at each step.
    """
    _draw_curves(path, curves, "loss while training", "loss", heavy=1)


def draw_evaluation(path: Path, curves: Mapping[str, Mapping[int, float]]) -> None:
    """Draw metrics of the evaluation sets over the steps of a run, in percent.

    Args:
        path: a .png file; its folder is made.
        curves: by name, the share at each step.
    """
    shares = {
        name: {step: 100 * share for step, share in curve.items()} for name, curve in curves.items()
    }
    _draw_curves(path, shares, "evaluation while training", "percent")


def _draw_curves(
    path: Path, curves: Mapping[str, Mapping[int, float]], title: str, unit: str, heavy: int = 0
) -> None:
    """Draw curves over the steps, the first `heavy` of them heavier than the others."""
    figure = Figure(figsize=(7, 3.6), layout="constrained", facecolor="white")
    axes = figure.subplots()
    for number, (name, values) in enumerate(curves.items()):
        style = {"color": LOSS, "linewidth": 1.8} if number < heavy else {"linewidth": 1.0}
        marker = "o" if len(values) < 3 else None  # A line needs two points.
        axes.plot(list(values), list(values.values()), label=name, marker=marker, **style)
    axes.set_title(title)
    axes.set(xlabel="step", ylabel=unit)
    axes.grid(color="#e4e4e4", linewidth=0.5)
    _tidy(axes)
    if len(curves) > 1:
        legend = figure.legend(loc="outside right upper", frameon=False, fontsize=8)
        for text in legend.get_texts():
            text.set_parse_math(False)  # A file name's $ begins no formula.
    save(figure, path)


def draw_interpolation(
    path: Path, curve: Mapping[float, Mapping[str, Mapping[str, float]]]
) -> None:
    """Draw how well the models between two do: on the first set, over how well on each other one.

    Args:
        path: a .png file; its folder is made.
        curve: by share of the way, `{set: {metric: value}}`; the first metric of each is drawn.
    """
    shares = list(curve)
    sets = {name: next(iter(each)) for name, each in curve[shares[0]].items()}
    values = {n: [100 * curve[s][n][metric] for s in shares] for n, metric in sets.items()}
    (own, up), *others = values.items()
    figure = Figure(figsize=(5.2, 4.4), layout="constrained", facecolor="white")
    axes = figure.subplots()
    for name, across in others or [("share of the way", [100 * share for share in shares])]:
        (line,) = axes.plot(across, up, marker="o", label=name)
        for share, *place in zip(shares, across, up, strict=True):
            axes.annotate(
                f"{share:g}",
                place,
                xytext=(5, 4),
                textcoords="offset points",
                fontsize=8,
                color=line.get_color(),
            )
    across = [f"{name} {sets[name]}" for name, _ in others] or ["share of the way"]
    axes.set(
        title="from the start (0) to the end (1)",
        xlabel=f"{', '.join(across)} (%)",
        ylabel=f"{own} {sets[own]} (%)",
    )
    axes.grid(color="#e4e4e4", linewidth=0.5)
    _tidy(axes)
    if len(others) > 1:
        axes.legend(frameon=False)
    save(figure, path)


def draw_trust(path: Path, found: Trust) -> None:
    """Draw histograms of the pairs' statistic, and of how many wrong pairs there are by it.

    Args:
        path: a .png file; its folder is made.
        found: what was estimated.
    """
    ends = np.quantile(np.concatenate([found.statistic, found.null]), [0.001, 0.999])
    if ends[0] == ends[1]:  # All the same.
        ends = np.add(ends, [-0.5, 0.5])
    edges = np.linspace(*ends, BINS + 1)
    pairs, null = (np.histogram(each, edges)[0] for each in (found.statistic, found.null))
    expected = found.share_wrong * null * len(found.statistic) / len(found.null)
    count, wrong = len(found.statistic), found.share_wrong * len(found.statistic)
    figure = Figure(figsize=(8, 4.4), layout="constrained", facecolor="white")
    axes = figure.subplots()
    axes.stairs(pairs, edges, fill=True, color=PAIRS, label=f"all {count:,} pairs")
    label = f"captions drawn at random, as many as are estimated to be wrong ({wrong:,.0f})"
    axes.stairs(expected, edges, color=WRONG, linewidth=1.6, label=label)
    axes.set(
        title=f"Which captions are wrong? About {100 * found.share_wrong:.0f} % of them",
        xlabel="how well image and caption agree with similar pairs\n"
        "(left: hardly, probably wrong; right: well, probably right; "
        "unit: standard deviation of wrong ones)",
        ylabel="number of pairs",
    )
    _tidy(axes)
    figure.legend(loc="outside lower center", frameon=False, fontsize=9)
    save(figure, path)


def loss_curves(lines: Sequence[Mapping[str, float]]) -> dict[str, dict[int, float]]:
    """Return the losses in the lines of metrics.jsonl by step, the whole before its parts.

    >>> loss_curves([{"step": 2, "train/loss": 1.5, "train/temperature": 0.1}])
    {'loss': {2: 1.5}}
    """
    curves: dict[str, dict[int, float]] = {"loss": {}}
    for line in lines:
        for name, value in line.items():
            if name.startswith("train/loss") and math.isfinite(value):
                curve = name.removeprefix("train/").removeprefix("loss_")
                curves.setdefault(curve, {})[int(line["step"])] = value
    return {name: values for name, values in curves.items() if values}


def evaluation_curves(lines: Sequence[Mapping[str, float]]) -> dict[str, dict[int, float]]:
    """Return the first metrics of each evaluation set in the lines of metrics.jsonl, by step.

    >>> evaluation_curves([{"step": 0, "eval/emoji/hit@1": 0.5, "train/loss": 2.0}])
    {'emoji hit@1': {0: 0.5}}
    """
    curves: dict[str, dict[int, float]] = {}
    for line in lines:
        for name, value in line.items():
            if name.startswith("eval/"):
                each, _, metric = name.removeprefix("eval/").rpartition("/")
                curves.setdefault(f"{each} {metric}", {})[int(line["step"])] = value
    sets = dict.fromkeys(name.rpartition(" ")[0] for name in curves)
    shown = [
        name
        for each in sets
        for name in [name for name in curves if name.rpartition(" ")[0] == each][:SHOWN]
    ]
    return {name: curves[name] for name in shown}


def _tidy(axes: Axes) -> None:
    axes.spines[["right", "top"]].set_visible(False)
