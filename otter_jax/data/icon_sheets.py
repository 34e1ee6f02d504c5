"""Icons with their captions in few files: pages of drawings side by side, and a table of captions.

A pair in a tar shard takes more room for its headers than for a small icon. Here the drawings of
one collection stand on sheets, `sheet-00.webp` and so on, lossless, from left to right and from top
to bottom, as the rows of `pairs.tsv` name them: a split, a key and a caption each. Any viewer shows
them. `otter_jax.data.builders.iconify.sheets` writes such a folder.
"""

import functools
import hashlib
from pathlib import Path

import numpy as np
from PIL import Image

from otter_jax.data.records import Record
from otter_jax.data.text_files import read_lines

PAIRS = "pairs.tsv"
HEADER = "split\tkey\tcaption"
SHEET = "sheet-{:02d}.webp"
SIDE = 64  # Pixels of a drawing.
COLUMNS = 64  # Drawings side by side, and below each other on a full sheet.
ON_A_SHEET = COLUMNS**2


class IconSheets:
    """One split of a folder of sheets; see `records.Source`."""

    def __init__(self, folder: Path, name: str, split: str) -> None:
        """Read the table; sheets are read when they are needed, and held in memory.

        Raises:
            FileNotFoundError: If the table is missing.
            ValueError: If it is no such table, or has no such split.
        """
        header, *lines = read_lines(folder / PAIRS)
        if header != HEADER:
            raise ValueError(f"{folder / PAIRS} begins with {header!r}, and not {HEADER!r}")
        rows = [line.split("\t") for line in lines]
        splits = list(dict.fromkeys(row[0] for row in rows))
        if split not in splits:
            raise ValueError(f"{name} has no split {split!r}; valid splits: {', '.join(splits)}")
        self.name = f"{name}/{split}"
        self._folder = folder
        self._rows = [(n, *row[1:]) for n, row in enumerate(rows) if row[0] == split]
        self.skipped: dict[str, int] = {}
        self.caption_counts = np.ones(len(self._rows), np.uint8)
        digest = hashlib.sha256(f"{split}\n".encode())
        for path in (folder / PAIRS, *sorted(folder.glob("sheet-*.webp"))):
            digest.update(path.read_bytes())
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self._rows)

    def __getitem__(self, i: int) -> Record:
        """Return pair `i`, its image as a PGM file, which is its pixels; IndexError beyond."""
        number, key, caption = self._rows[range(len(self))[i]]
        sheet, place = divmod(number, ON_A_SHEET)
        top, left = (SIDE * each for each in divmod(place, COLUMNS))
        pixels = _read_sheet(self._folder / SHEET.format(sheet))[top : top + SIDE]
        image = b"P5 %d %d 255\n" % (SIDE, SIDE) + pixels[:, left : left + SIDE].tobytes()
        return Record(key, image, caption, {}, (caption,))

    def key(self, i: int) -> str:
        """Return what pair `i` is called; see `records.key_of`."""
        return self._rows[i][1]

    def first_caption(self, i: int) -> str:
        """Return the caption of pair `i`; see `records.first_caption`."""
        return self._rows[i][2]


@functools.cache
def _read_sheet(path: Path) -> np.ndarray:
    """Return a sheet, uint8 [rows * SIDE, COLUMNS * SIDE]."""
    with Image.open(path) as image:
        return np.asarray(image.convert("L"))
