"""Drawing plans: what fills a device's memory, and what takes a step's time."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from otter_jax.pictures.figures import save

GIB = 2**30
COLORS = {
    "parameters": "#0b2c5f",
    "optimizer": "#3a6ea5",
    "teacher": "#7fb2d6",
    "queue": "#8f7ab8",
    "activations and loss": "#e9a23b",
    "compute": "#0b2c5f",
    "memory": "#e9a23b",
    "exchange": "#d1495b",
}


class Planned(Protocol):
    """What a picture needs of a plan."""

    topology: str
    chip_memory: int
    memory_by_kind: dict[str, int]
    seconds: dict[str, float]


def draw_plans(path: Path, name: str, plans: Sequence[Planned]) -> None:
    """Draw, for each topology, the memory of a device by kind and the least time by what limits it.

    Args:
        path: a .png file; its folder is made.
        name: of the config, for the title.
        plans: at least one.
    """
    figure = Figure(figsize=(9, 1.6 + 0.5 * len(plans)), layout="constrained", facecolor="white")
    memory, times = figure.subplots(1, 2, sharey=True)
    figure.suptitle(f"A step of {name}")
    for row, plan in enumerate(plans):
        stack(memory, row, {kind: size / GIB for kind, size in plan.memory_by_kind.items()})
        memory.plot([plan.chip_memory / GIB] * 2, [row - 0.4, row + 0.4], color="#222222")
        for offset, (what, seconds) in zip((0.25, 0, -0.25), plan.seconds.items(), strict=True):
            label = what if row == 0 else None
            times.barh(row + offset, 1e3 * seconds, 0.22, color=COLORS[what], label=label)
    memory.set(xlabel="GiB of a device (line: all that it has)", yticks=range(len(plans)))
    memory.set_yticklabels([plan.topology for plan in plans])
    times.set(xlabel="ms at full rates")
    for axes in (memory, times):
        axes.spines[["top", "right"]].set_visible(False)
        handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        axes.legend(handles.values(), handles, frameon=False, fontsize=7, loc="best")
    memory.invert_yaxis()
    save(figure, path)


def stack(axes: Axes, row: int, sizes: dict[str, float]) -> None:
    """Draw one bar of parts beside each other."""
    left = 0.0
    for kind, size in sizes.items():
        axes.barh(row, size, 0.6, left=left, color=COLORS[kind], label=kind)
        left += size
