"""Brings images to a size as a checkpoint's own library does it in evaluation."""

import math
from typing import Literal, get_args

import numpy as np
from PIL import Image

Mode = Literal["shortest", "shortest_floor", "squash"]
MODES = get_args(Mode)
Resize = tuple[Mode, float, str]  # The last arguments of `resize_as`, as towers keep them.
RESAMPLINGS = {
    "nearest": Image.Resampling.NEAREST,
    "lanczos": Image.Resampling.LANCZOS,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}


def resized_side(size: int, crop_share: float) -> int:
    """Return the length of a side before a square of `size` is cut out, in pixels."""
    return math.floor(size / crop_share + 1e-6)  # 224 / (224 / 256) is a little below 256.


def resize_as(
    image: np.ndarray,
    size: int,
    mode: Mode,
    crop_share: float,
    interpolation: str,
) -> np.ndarray:
    """Return an image as a square of the model's size.

    Where half a pixel is left over at the crop, "shortest" rounds to the even number, as
    torchvision, timm and open_clip do, and "shortest_floor" down, as transformers does.

    Args:
        image: uint8 [height, width, 3].
        size: side of the result, in pixels.
        mode: "shortest" and "shortest_floor" bring the shorter side to `size / crop_share`,
            "squash" both sides; then the centre is cut out.
        crop_share: above 0, at most 1.
        interpolation: a key of `RESAMPLINGS`, antialiased.

    Returns:
        uint8 [size, size, 3].

    Raises:
        ValueError: for another mode or interpolation, or a share that is none.
    """
    if mode not in MODES or interpolation not in RESAMPLINGS:
        raise ValueError(
            f"an image cannot be resized by {mode!r} and {interpolation!r}; it must be one of "
            f"{', '.join(MODES)}, and one of {', '.join(RESAMPLINGS)}"
        )
    if not 0 < crop_share <= 1:
        raise ValueError(f"crop_share is {crop_share}; it must be above 0 and at most 1")
    side = resized_side(size, crop_share)
    height, width = image.shape[:2]
    if mode == "squash":
        height = width = side
    elif height <= width:
        height, width = side, int(side * width / height)
    else:
        height, width = int(side * height / width), side
    resized = np.asarray(Image.fromarray(image).resize((width, height), RESAMPLINGS[interpolation]))
    halve = math.floor if mode == "shortest_floor" else round
    top, left = (halve((length - size) / 2) for length in (height, width))
    return np.ascontiguousarray(resized[top : top + size, left : left + size])
