"""Decodes of a JPEG no more than random crops show of it.

The crops are drawn first, from the size that the header gives. Then

- what lies below the lowest of them is not decoded: the decoder is given the file with a header
  that says it ends there. It reads a JPEG from its top, so that no pixel above depends on it;
- crops that are all larger than twice their target are decoded at half their size, from four times
  on at a quarter, from eight times on at an eighth. The decoder's inverse cosine transform does
  that, from the low frequencies of each block of 8 x 8 pixels, for less than the whole one.

So crops at full size have the very pixels of the whole image. Of photographs, views of crops at a
half or a quarter are about as far from the antialiased bicubic as those of the whole image are, at
an eighth up to twice as far. Crops that are hardly larger than the view are resized bilinearly, see
`images.training_transform`.
"""

import importlib
import types
from collections.abc import Sequence

import numpy as np

from otter_jax.data import images
from otter_jax.data.images import Box

DECODINGS = (1, 2)  # Of every pixel, and as here; a run goes on in the one it began with.
DIVISORS = (8, 4, 2)  # At which a JPEG decoder is fast.
CONTEXT = 16  # Rows below a crop whose colours its last rows are interpolated from; at most 4 are.

_FRAMES = (0xC0, 0xC1)  # Baseline and extended: the segments that hold the size.
_START_OF_SCAN = 0xDA


def decoder() -> types.ModuleType:
    """Return simplejpeg, whose decoder says nothing of the rest of a file that was cut short.

    Raises:
        ModuleNotFoundError: If it is not installed.
    """
    try:
        return importlib.import_module("simplejpeg")
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "config.data.decoding=2 needs simplejpeg: pip install 'otter_jax[jpeg]', or set it to 1"
        ) from None


def decode_boxes(
    data: bytes, size: tuple[int, int], boxes: Sequence[Box], target: int
) -> list[np.ndarray]:
    """Decode some boxes of a JPEG.

    Args:
        data: The contents of the file.
        size: Its (height, width), as `images.size_by_rows` gives them.
        boxes: Parts of it, in pixels of the whole image.
        target: Side that all of them will be resized to, in pixels.

    Returns:
        uint8 [h, w, 3], RGB, of each box: h and w are its own, or a half, a quarter or an eighth of
        them, which is at least `target`; then it begins and ends at a multiple of 2, 4 or 8.

    Raises:
        ImageError: If the JPEG cannot be decoded, see `images.decode`.
    """
    divisor = _divisor(boxes, target)
    end = max(box.top + box.height for box in boxes)
    rows = _decode_rows(data, size, end, divisor)
    if rows is None:
        rows, divisor = images.decode(data), 1
        if rows.shape[:2] != size:
            raise images.ImageError("damaged", "its header says another size")
    return [_scaled(box, divisor).cut(rows) for box in boxes]


def _divisor(boxes: Sequence[Box], target: int) -> int:
    """Return the largest at which no box becomes smaller than the target."""
    shortest = min(min(box.height, box.width) for box in boxes)
    return next((each for each in DIVISORS if shortest >= each * target), 1)


def _scaled(box: Box, divisor: int) -> Box:
    """Return the box in an image that is smaller by a divisor."""
    return Box(*(length // divisor for length in box))


def _decode_rows(data: bytes, size: tuple[int, int], end: int, divisor: int) -> np.ndarray | None:
    """Return the rows above `end` and some more, [.., width, 3] / divisor; None if that fails."""
    height = min(size[0], end + CONTEXT)
    short = data if height == size[0] else _with_height(data, height)
    if short is None:
        return None
    smaller = -(-height // divisor), -(-size[1] // divisor)
    try:
        rows = decoder().decode_jpeg(
            short, min_height=smaller[0], min_width=smaller[1], min_factor=divisor, strict=False
        )
    except ValueError:
        return None
    return rows if rows.shape[:2] == smaller else None


def _with_height(data: bytes, height: int) -> bytes | None:
    """Return a JPEG file whose header says another height; None if its header is an odd one."""
    place = 2
    while place + 9 <= len(data) and data[place] == 0xFF and data[place + 1] != _START_OF_SCAN:
        if data[place + 1] in _FRAMES:
            return data[: place + 5] + height.to_bytes(2) + data[place + 7 :]
        place += 2 + int.from_bytes(data[place + 2 : place + 4])
    return None
