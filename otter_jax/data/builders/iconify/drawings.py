"""Draws SVGs by resvg, in several processes, and keeps what is drawn: an interruption loses little.

The SVGs are drawn in parts. Each is kept under a hash of all that it depends on, so what is found
under its name is right, whoever has put it there.
"""

import functools
import hashlib
import io
import json
import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from otter_jax.data.records import Progress
from otter_jax.data.scan_pool import scan_in_order

PART = 2000  # Icons.
FORMAT = 1  # Of the drawings; others are drawn anew.
FAINTEST = 245  # Of the greys of ink, 0 being black.
LOOK_SIDE = 16


class Part(NamedTuple):
    """What became of some SVGs.

    Attributes:
        data: uint8 [bytes], lossless WebP files behind each other.
        ends: int64 [n], where each ends in `data`.
        problems: str [n], why there is no drawing, or "".
        looks: uint8 [n, LOOK_SIDE ** 2], see `look`.
    """

    data: np.ndarray
    ends: np.ndarray
    problems: np.ndarray
    looks: np.ndarray


class Drawings:
    """The drawings of a list of SVGs, which lie in files."""

    def __init__(self, files: Sequence[Path], count: int) -> None:
        """Take the files of the parts, `PART` drawings in each but the last, `count` in all."""
        self._files, self._count = tuple(files), count

    def __len__(self) -> int:
        """Return the number of drawings."""
        return self._count

    def image(self, number: int) -> bytes:
        """Return a drawing as a WebP file."""
        part, place = divmod(range(self._count)[number], PART)
        found = _read_part(self._files[part])
        start = int(found.ends[place - 1]) if place else 0
        return found.data[start : found.ends[place]].tobytes()

    def key(self, number: int) -> str:
        """Return a hash of all that a drawing depends on, with its place behind it."""
        part, place = divmod(range(self._count)[number], PART)
        return f"{self._files[part].stem}/{place}"

    def looks(self) -> np.ndarray:
        """Return what they look like, uint8 [n, LOOK_SIDE ** 2]."""
        return np.concatenate([_read_part(file).looks for file in self._files])

    def problems(self) -> list[str]:
        """Return why there is no drawing, or "", of each."""
        return [str(why) for file in self._files for why in _read_part(file).problems]


def draw(
    svgs: Sequence[str], size: int, folder: Path, processes: int | None, progress: Progress
) -> Drawings:
    """Draw SVGs black on white, or find them drawn.

    Args:
        svgs: The drawings.
        size: Width and height in pixels.
        folder: Where they are kept; made if missing.
        processes: How many draw; one for each core if not given.
        progress: Shows how far it is.

    Raises:
        ModuleNotFoundError: If resvg-py is missing.
        OSError: If the folder cannot be written.
    """
    require_resvg()
    folder.mkdir(parents=True, exist_ok=True)
    asked = [_write_question(svgs[i : i + PART], size, folder) for i in range(0, len(svgs), PART)]
    missing = [str(path) for path in asked if not _answer(path).is_file()]
    if missing:
        done = scan_in_order(_draw_part, missing, processes=processes or os.cpu_count() or 1)
        for _ in progress(done, len(missing), f"parts of {PART} icons drawn"):
            pass
    return Drawings([_answer(path) for path in asked], len(svgs))


def require_resvg() -> None:
    """Raise ModuleNotFoundError, with the remedy, if resvg-py is not installed."""
    try:
        import resvg_py  # noqa: F401
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "icons are drawn by the package resvg-py, which is missing; "
            "run: pip install 'otter_jax[quickstart]'"
        ) from None


def _write_question(svgs: Sequence[str], size: int, folder: Path) -> Path:
    """Write down what a process is to draw, under a hash of it, unless it is drawn; its file."""
    question = json.dumps({"format": FORMAT, "size": size, "svgs": list(svgs)}).encode()
    path = folder / f"{hashlib.sha256(question).hexdigest()}.json"
    if not _answer(path).is_file():
        path.write_bytes(question)
    return path


def _answer(question: Path) -> Path:
    return question.with_suffix(".npz")


def _draw_part(path: str) -> None:
    """Draw what a file asks for, whole or not at all."""
    question = json.loads(Path(path).read_bytes())
    drawn = [draw_one(svg, question["size"]) for svg in question["svgs"]]
    images = [image for image, _, _ in drawn]
    part = Part(
        data=np.frombuffer(b"".join(images), np.uint8),
        ends=np.cumsum([len(image) for image in images]),
        problems=np.array([why for _, why, _ in drawn]),
        looks=np.stack([look for _, _, look in drawn]),
    )
    answer = _answer(Path(path))
    partial = answer.with_name(f"{answer.stem}.{uuid.uuid4().hex}.partial")
    with partial.open("wb") as file:
        np.savez(file, **part._asdict())
    partial.replace(answer)
    Path(path).unlink()


@functools.lru_cache(maxsize=4)
def _read_part(path: Path) -> Part:
    with np.load(path, allow_pickle=False) as arrays:
        return Part(*(arrays[name] for name in Part._fields))


def draw_one(svg: str, size: int) -> tuple[bytes, str, np.ndarray]:
    """Return a drawing as lossless WebP, why there is none or "", and its look.

    The same SVG gives the same bytes, as no fonts and no files of the machine are used.
    """
    import resvg_py

    nothing = np.zeros(LOOK_SIDE**2, np.uint8)
    try:
        png = resvg_py.svg_to_bytes(
            svg_string=svg, width=size, height=size, background="white", skip_system_fonts=True
        )
    except ValueError:
        return b"", "does not render", nothing
    grey = np.asarray(Image.open(io.BytesIO(bytes(png))).convert("L"))
    if grey.min() > FAINTEST:
        return b"", "blank", nothing
    # Of a box that is no square, resvg draws no more than the box, or a row more.
    grey = _padded(grey[:size, :size], (size, size), 255)
    encoded = io.BytesIO()
    Image.fromarray(grey).save(encoded, "webp", lossless=True, quality=80, method=4)
    return encoded.getvalue(), "", look(grey)


def look(grey: np.ndarray) -> np.ndarray:
    """Return what a drawing looks like, wherever in its frame and however large it is.

    Args:
        grey: uint8 [H, W], white where there is no ink.

    Returns:
        uint8 [LOOK_SIDE ** 2], the ink of a thumbnail of the inked part in a square; a blank one
        has none.
    """
    inked = grey <= FAINTEST
    rows, columns = np.flatnonzero(inked.any(axis=1)), np.flatnonzero(inked.any(axis=0))
    if not len(rows):
        return np.zeros(LOOK_SIDE**2, np.uint8)
    ink = 255 - grey[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    square = _padded(ink, (max(ink.shape),) * 2, 0)
    return cv2.resize(square, (LOOK_SIDE, LOOK_SIDE), interpolation=cv2.INTER_AREA).ravel()


def _padded(image: np.ndarray, shape: tuple[int, int], value: int) -> np.ndarray:
    """Return an image in the middle of a larger one."""
    missing = [wanted - found for wanted, found in zip(shape, image.shape, strict=True)]
    return np.pad(image, [(n // 2, n - n // 2) for n in missing], constant_values=value)
