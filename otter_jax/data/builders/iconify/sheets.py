"""Writes the icons that come with the package: sheets of drawings and a table of captions.

    python -m otter_jax.data.builders.iconify.sheets --from=iconify:PACKAGE?sets=... --to=DIR

makes of a SPEC as `otter-jax prepare` takes it what `otter_jax.data.icon_sheets` reads, with
ATTRIBUTION.md and summary.json beside it. The same package gives the same bytes.
"""

import argparse
import itertools
import tempfile
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from otter_jax.data.builders.iconify.source import IconSource, open_icons
from otter_jax.data.icon_sheets import COLUMNS, HEADER, ON_A_SHEET, PAIRS, SHEET, SIDE
from otter_jax.data.specs import Spec


def write_sheets(source: IconSource, folder: Path) -> None:
    """Write all splits of a source, in its order, into a folder; made if missing.

    Raises:
        OSError: If it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    splits = itertools.chain.from_iterable(
        itertools.repeat(split, length) for split, length in source.splits.items()
    )
    rows = [
        f"{split}\t{source.key(number)}\t{source.first_caption(number)}"
        for number, split in enumerate(splits)
    ]
    (folder / PAIRS).write_text("\n".join([HEADER, *rows]) + "\n", encoding="utf-8")
    for sheet, first in enumerate(range(0, len(source), ON_A_SHEET)):
        numbers = range(first, min(first + ON_A_SHEET, len(source)))
        pixels = _side_by_side([_grey(source[number].image) for number in numbers])
        path = folder / SHEET.format(sheet)
        Image.fromarray(pixels).save(path, lossless=True, quality=80, method=4)
    for name in ("ATTRIBUTION.md", "summary.json"):
        (folder / name).write_text(source.attachments[name], encoding="utf-8")


def _grey(image: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_GRAYSCALE)


def _side_by_side(drawings: list[np.ndarray]) -> np.ndarray:
    """Return drawings in rows of `COLUMNS`, the last one filled up with white."""
    rows = -(-len(drawings) // COLUMNS)
    page = np.full((rows, SIDE, COLUMNS, SIDE), 255, np.uint8)
    for place, drawing in enumerate(drawings):
        row, column = divmod(place, COLUMNS)
        page[row, :, column] = drawing
    return page.reshape(rows * SIDE, COLUMNS * SIDE)


def main() -> None:
    """Write what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--from", dest="spec", required=True, type=Spec.parse)
    parser.add_argument("--to", required=True, type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as drawn:
        write_sheets(open_icons(options.spec, Path(drawn)), options.to)


if __name__ == "__main__":
    main()
