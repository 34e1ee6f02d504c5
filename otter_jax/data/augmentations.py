"""Random views of an image, by name: the crops of images.py, and MoCo v2's colours and blur on top.

"moco" is the augmentation of MoCo v2 (Chen et al. 2020), of which DeCLIP and SLIP take two views:
a random resized crop of 20 to 100 % of the area, colour jitter for 80 % of the images, grey for
20 %, Gaussian blur for 50 %, a mirror image for 50 %. "light" is a random resized crop of 50 to
100 %, the only augmentation of DeCLIP's CLIP baseline and the first view of SLIP.

The adjustments of colour are torchvision's, computed on uint8 with OpenCV: results differ from
torchvision's by rounding alone, at most 1 of 255.
"""

from typing import Any

import cv2
import numpy as np

from otter_jax.data import images
from otter_jax.data.resizing import Resize, resize_as

AUGMENTATIONS = ("none", "resize_random_crop", "random_resized_crop", "light", "moco")

LIGHT_SCALE = (0.5, 1.0)  # share of the image's area that a crop keeps
MOCO_SCALE = (0.2, 1.0)
SCALES = {"light": LIGHT_SCALE, "moco": MOCO_SCALE}  # of their random resized crops
BLUR_SIGMA = (0.1, 2.0)  # pixels


def augment(
    image: np.ndarray,
    size: int,
    rng: np.random.Generator,
    kind: str,
    fit: images.Fit = "crop",
    flip: bool = False,
    is_cut: bool = False,
    resize: Resize | None = None,
) -> np.ndarray:
    """Bring an image to the model's size, at random, as a function of the state of `rng` alone.

    Args:
        image: uint8 [height, width, 3].
        size: Side of the result, in pixels.
        rng: The only source of randomness.
        kind: "moco" and "light" are described above, the others in `images.training_transform`.
        fit: "crop" takes from the image, "pad" from the whole image centred on a white square.
        flip: Whether to mirror every second image. "moco" does so in any case.
        is_cut: Whether the image is already what `draw_view` has drawn of it by the same `rng`.
        resize: How the weights expect images to be brought to their size, where nothing is random
            about it ("none", with "crop"); None for the usual evaluation.

    Returns:
        uint8 [size, size, 3].

    Raises:
        ValueError: If `kind` or `fit` is unknown.
    """
    check_augmentation(kind)
    if kind == "none" and fit == "crop" and resize is not None:
        image = resize_as(image, size, *resize)
        return np.ascontiguousarray(image[:, ::-1]) if flip and rng.random() < 0.5 else image
    flip = flip and kind != "moco"  # Which mirrors after its colours.
    image = images.training_transform(
        image, size, rng, **_crop_of(kind), fit=fit, flip=flip, is_cut=is_cut
    )
    return _moco_colours(image, rng) if kind == "moco" else image


def draw_view(
    height: int, width: int, size: int, rng: np.random.Generator, kind: str
) -> images.Box:
    """Draw which part of an image a view shows, as `augment` with fit "crop" begins.

    Args:
        height: The image's, in pixels.
        width: The image's, in pixels.
        size: Side of the view, in pixels.
        rng: The only source of randomness.
        kind: One of `AUGMENTATIONS` but "none", by which the image `images.is_enlarged` not.
    """
    return images.draw_box(height, width, size, rng, **_crop_of(kind))


def _crop_of(kind: str) -> dict[str, Any]:
    """Return the crop that an augmentation begins with, as arguments of images.py."""
    if kind in SCALES:
        return {"kind": "random_resized_crop", "scale": SCALES[kind]}
    return {"kind": kind}


def check_augmentation(name: str) -> None:
    """Raise ValueError if there is no augmentation of this name."""
    if name not in AUGMENTATIONS:
        raise ValueError(f"unknown augmentation {name!r}; one of {', '.join(AUGMENTATIONS)}")


def _moco_colours(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Vary colours, sharpness and sides of a crop as MoCo v2 does."""
    if rng.random() < 0.8:
        image = color_jitter(image, rng)
    if rng.random() < 0.2:
        image = greyscale(image)
    if rng.random() < 0.5:
        image = gaussian_blur(image, rng.uniform(*BLUR_SIGMA))
    if rng.random() < 0.5:
        image = image[:, ::-1]
    return np.ascontiguousarray(image)


def color_jitter(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Vary brightness, contrast and saturation by up to 40 %, hue by 36 degrees, in any order.

    Args:
        image: uint8 [height, width, 3].
        rng: Draws the four amounts, uniformly, and the order.

    Returns:
        uint8 [height, width, 3].
    """
    adjustments = [
        (adjust_brightness, rng.uniform(0.6, 1.4)),
        (adjust_contrast, rng.uniform(0.6, 1.4)),
        (adjust_saturation, rng.uniform(0.6, 1.4)),
        (adjust_hue, rng.uniform(-0.1, 0.1)),
    ]
    for number in rng.permutation(len(adjustments)):
        adjust, amount = adjustments[number]
        image = adjust(image, amount)
    return image


def adjust_brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """Multiply all values by `factor`; 0 is black, 1 the image."""
    return cv2.convertScaleAbs(image, alpha=factor)


def adjust_contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """Move all values away from the mean grey; 0 is that grey, 1 the image."""
    mean = cv2.mean(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[0]
    shifted = factor * np.arange(256) + (1 - factor) * mean
    return cv2.LUT(image, np.rint(shifted).clip(0, 255).astype(np.uint8))


def adjust_saturation(image: np.ndarray, factor: float) -> np.ndarray:
    """Move every pixel away from its grey; 0 is a grey image, 1 the image."""
    return cv2.addWeighted(image, factor, greyscale(image), 1 - factor, 0)


def adjust_hue(image: np.ndarray, turns: float) -> np.ndarray:
    """Turn all hues on the colour wheel of HSV, by -0.5 to 0.5 of a turn."""
    # In float, because hues in 8 bits would be off by up to 8 of 255 in the result.
    hsv = cv2.cvtColor(image.astype(np.float32), cv2.COLOR_RGB2HSV)
    hsv = cv2.add(hsv, (360 * (turns % 1), 0, 0, 0))  # OpenCV wraps above 360, not below 0.
    return cv2.convertScaleAbs(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB))


def greyscale(image: np.ndarray) -> np.ndarray:
    """Return the image in grey (ITU-R BT.601 luma), still with three channels."""
    return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def gaussian_blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Blur with a Gaussian of `sigma` pixels, cut where it no longer shows in 8 bits."""
    return cv2.GaussianBlur(image, (0, 0), sigma)
