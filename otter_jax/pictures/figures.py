"""Drawing: soft targets as a matrix with thumbnails, and sheets of images with ranked names.

Figures are made without pyplot, so nothing global changes and no display is needed.
"""

import math
import warnings
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

RIGHT, WRONG, INK = "#00734d", "#7a7a7a", "#222222"
# White at zero, so that empty cells vanish; lightness falls evenly, so it also works in grey.
MASS = LinearSegmentedColormap.from_list("mass", ["#ffffff", "#bcd9ea", "#4a90c2", "#0b2c5f"])
LABELLED_FROM = 0.05
LETTER = 0.068  # Inches that a letter of a caption takes.
SLANT = math.radians(50)


def draw_targets(
    path: Path, images: np.ndarray, captions: Sequence[str], target: np.ndarray, title: str
) -> None:
    """Draw the soft targets of some pairs as a matrix: images down the side, captions on top.

    Args:
        path: a .png file; its folder is made.
        images: uint8 [n, S, S, 3].
        captions: n texts.
        target: [n, n] in [0, 1]; row i says how image i's mass is spread over the captions.
        title: one line.

    Raises:
        ValueError: if the sizes do not agree.
    """
    count = len(images)
    if target.shape != (count, count) or len(captions) != count:
        raise ValueError(
            f"{count} images need {count} captions and a [{count}, {count}] target, found "
            f"{len(captions)} and {list(target.shape)}"
        )
    cell = 0.52  # Inches.
    captions = [plain(caption, 40) for caption in captions]
    longest = LETTER * max(map(len, captions))
    up, aside = longest * math.sin(SLANT), longest * math.cos(SLANT)
    left, top = 2 * cell, 0.95 + up
    width = left + count * cell + max(1.2, aside - 0.5 * cell)
    height = top + count * cell + 0.5
    figure = Figure(figsize=(width, height), facecolor="white")
    matrix = figure.add_axes(
        (left / width, 0.3 / height, count * cell / width, count * cell / height)
    )
    highest = max(0.3, float(target.max()))
    shown = matrix.imshow(100 * target, cmap=MASS, vmin=0.0, vmax=100 * highest, aspect="auto")
    matrix.set(xticks=range(count), yticks=[], xlim=(-0.5, count - 0.5), ylim=(count - 0.5, -0.5))
    matrix.xaxis.tick_top()
    matrix.set_xticklabels(captions, rotation=math.degrees(SLANT), ha="left", fontsize=8.5)
    for label in matrix.get_xticklabels():
        label.set_parse_math(False)  # A caption's $ is money, not a formula.
    matrix.tick_params(length=0)
    _mark_cells(matrix, target)
    for row, image in enumerate(images):
        bottom = (0.3 + (count - 1 - row) * cell) / height
        _thumbnail(
            figure.add_axes(((left - cell) / width, bottom, cell / width, cell / height)), image
        )
    bar = figure.add_axes(((left + count * cell + 0.25) / width, 0.3 / height,
                           0.16 / width, count * cell / height))  # fmt: skip
    figure.colorbar(shown, cax=bar).set_label("mass of the soft target, in percent", fontsize=9)
    bar.tick_params(labelsize=8)
    figure.text(0.15 / width, 1 - 0.3 / height, plain(title, 120), fontsize=12, weight="bold",
                color=INK, parse_math=False)  # fmt: skip
    figure.text(
        0.15 / width, 1 - 0.6 / height,
        "Each row spreads one image's target over the captions; outlined: the given pair.",
        fontsize=9, color=INK,
    )  # fmt: skip
    save(figure, path)


def draw_predictions(
    path: Path,
    images: np.ndarray,
    truth: Sequence[str],
    predictions: Sequence[Sequence[tuple[str, float]]],
    title: str,
) -> None:
    """Draw a sheet of images, each with its true name and the names ranked best for it.

    Right names are green, bold and ticked, so that they also stand out in grey.

    Args:
        path: a .png file; its folder is made.
        images: uint8 [n, S, S, 3].
        truth: n true names; several are separated by " | ".
        predictions: for every image, (name, similarity), best first.
        title: one line.

    Raises:
        ValueError: if the numbers differ.
    """
    if not len(images) == len(truth) == len(predictions):
        raise ValueError(
            f"{len(images)} images, {len(truth)} true names and {len(predictions)} predictions"
        )
    columns = min(4, max(len(images), 1))
    rows = -(-len(images) // columns)
    cell_width, cell_height, head = 4.1, 1.5, 0.6
    width, height = columns * cell_width, rows * cell_height + head
    figure = Figure(figsize=(width, height), facecolor="white")
    figure.text(0.15 / width, 1 - 0.35 / height, plain(title, 120), fontsize=12, weight="bold",
                color=INK, parse_math=False)  # fmt: skip
    for number, (image, name, ranked) in enumerate(zip(images, truth, predictions, strict=True)):
        row, column = divmod(number, columns)
        x, y = column * cell_width + 0.1, height - head - (row + 1) * cell_height
        _thumbnail(
            figure.add_axes((x / width, (y + 0.2) / height, 1.15 / width, 1.15 / height)), image
        )
        lines = [(plain(name, 38), INK, "bold")]
        names = [part.strip() for part in name.split(" | ")]
        for guess, score in ranked:
            right = guess.strip() in names
            text = f"{'✓' if right else '  '} {plain(guess, 32)}  {score:.2f}"
            lines.append((text, RIGHT if right else WRONG, "bold" if right else "normal"))
        for line, (text, colour, weight) in enumerate(lines):
            figure.text((x + 1.22) / width, (y + 1.24 - 0.21 * line) / height, text,
                        fontsize=7.8, color=colour, weight=weight, va="center",
                        parse_math=False)  # fmt: skip
    save(figure, path)


def plain(text: str, length: int) -> str:
    """Return one line of at most `length` characters, cut between words where that loses little."""
    line = " ".join(text.split())
    if len(line) <= length:
        return line or "…"
    cut = line[: length - 1]
    space = cut.rfind(" ")
    return (cut[:space] if space > length // 2 else cut) + "…"


def _mark_cells(matrix: Axes, target: np.ndarray) -> None:
    """Draw a light grid, an outline around every given pair, and numbers where there is mass."""
    count = len(target)
    for line in np.arange(-0.5, count):
        matrix.axhline(line, color="#e4e4e4", linewidth=0.5)
        matrix.axvline(line, color="#e4e4e4", linewidth=0.5)
    for side in matrix.spines.values():
        side.set_visible(False)
    for number in range(count):
        corner = (number - 0.5, number - 0.5)
        matrix.add_patch(_outline(corner))
    for row, column in zip(*np.nonzero(target >= LABELLED_FROM), strict=True):
        mass = target[row, column]
        matrix.text(column, row, f"{100 * mass:.0f}", ha="center", va="center", fontsize=8,
                    color="white" if mass > 0.6 * target.max() else INK)  # fmt: skip


def _outline(corner: tuple[float, float]) -> Rectangle:
    return Rectangle(corner, 1, 1, fill=False, edgecolor="#d1495b", linewidth=1.2, zorder=3)


def _thumbnail(axes: Axes, image: np.ndarray) -> None:
    axes.imshow(image, interpolation="antialiased")
    axes.axis("off")


def save(figure: Figure, path: Path) -> None:
    """Write a figure, from the first process only; its folder is made."""
    if jax.process_index() != 0:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(path, dpi=110)
