"""From encoded images to uint8 arrays of the size the model asks for.

Arrays are uint8 [height, width, 3], RGB, 0 to 255; normalisation happens on the device. Decoding
never passes on a broken image: it raises `ImageError`, and the pipeline counts it. The evaluation
transform is resampled by Pillow, the reference that published scores go back to; training may use
OpenCV, which is faster and whose small differences drown in the augmentation.
"""

import io
import warnings
from typing import Literal

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

Fit = Literal["crop", "pad"]
TrainingKind = Literal["resize_random_crop", "random_resized_crop", "none"]

MAX_PIXELS = 178_956_970  # half a GiB at three bytes a pixel; Pillow refuses at the same number
MAX_ASPECT_RATIO = 200  # resizing the shorter side of a hairline would fill the memory
RESIZE_FACTOR = 256 / 224  # the customary margin between resizing and cropping

_WHITE = 255

# Pillow warns from half the size on at which it refuses; here the refusal is the whole rule.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class ImageError(ValueError):
    """Bytes that are no image, or one that is broken or too large; the message is one line."""


def decode(data: bytes) -> np.ndarray:
    """Decode an image file, upright (EXIF) and with transparency laid on white.

    JPEGs go through OpenCV, which is faster. Everything else goes through Pillow, which knows
    palettes, 16 bits, CMYK and transparency, and which notices a file that was cut. Of an animation
    the first frame counts. Colour profiles are ignored.

    Args:
        data: The contents of an image file in any format Pillow reads.

    Returns:
        uint8 [height, width, 3], RGB.

    Raises:
        ImageError: If the bytes are no complete image, or if it has more than `MAX_PIXELS`
            pixels or sides more unequal than `MAX_ASPECT_RATIO` to 1.
    """
    if not data:
        raise ImageError("empty image file")
    try:
        with Image.open(io.BytesIO(data)) as image:
            _check_size(*image.size)
            if _is_plain_jpeg(image, data):
                array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
                if array is not None:
                    return array
            return np.array(to_rgb(ImageOps.exif_transpose(image)))
    except ImageError:
        raise
    except Image.DecompressionBombError:  # raised on opening, before the size can be asked for
        raise ImageError(f"more than {MAX_PIXELS:,} pixels") from None
    except UnidentifiedImageError:
        raise ImageError(f"unknown image format ({len(data)} bytes)") from None
    except Exception as error:  # Pillow's readers raise a dozen types on broken files
        raise ImageError(f"broken image: {' '.join(str(error).split())}") from None


def evaluation_transform(
    image: np.ndarray, size: int, fit: Fit = "crop", resize_factor: float = RESIZE_FACTOR
) -> np.ndarray:
    """Bring an image to the model's size, always in the same way.

    "crop" is the protocol of the published numbers: the shorter side becomes
    `size * resize_factor`, by antialiased bicubic resampling, and the centre is cut out; roundings
    are torchvision's. "pad" shows the whole image, centred on white, for drawings that a centre
    crop would behead.

    Args:
        image: uint8 [height, width, 3].
        size: Side of the result, in pixels.
        fit: "crop" or "pad".
        resize_factor: Shorter side before the crop, as a multiple of `size`; at least 1.

    Returns:
        uint8 [size, size, 3].

    Raises:
        ValueError: If `fit` is neither, or `resize_factor` is below 1.
    """
    _check_fit(fit, resize_factor)
    if fit == "pad":
        return _pad(_resize_pillow(image, *_inside(image, size)), size)
    resized = _resize_pillow(image, *_covering(image, round(size * resize_factor)))
    top, left = (round((side - size) / 2) for side in resized.shape[:2])
    return np.ascontiguousarray(resized[top : top + size, left : left + size])


def training_transform(
    image: np.ndarray,
    size: int,
    rng: np.random.Generator,
    kind: TrainingKind = "resize_random_crop",
    fit: Fit = "crop",
    flip: bool = False,
    scale: tuple[float, float] = (0.2, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> np.ndarray:
    """Bring an image to the model's size, at random, as a function of the state of `rng` alone.

    Args:
        image: uint8 [height, width, 3].
        size: Side of the result, in pixels.
        rng: The only source of randomness.
        kind: "resize_random_crop" resizes as for evaluation and crops anywhere (OTTER, CLIP);
            "random_resized_crop" cuts out a box of random area and shape (DeCLIP, SimCLR);
            "none" is the evaluation transform.
        fit: "crop" takes from the image, "pad" from the whole image centred on a white square.
        flip: Whether to mirror every second image. Off by default: captions speak of left and
            right, and mirrored writing is no writing.
        scale: Smallest and largest share of the area that "random_resized_crop" keeps.
        ratio: Smallest and largest width / height of its box.

    Returns:
        uint8 [size, size, 3].

    Raises:
        ValueError: If `kind` or `fit` is none of the above.
    """
    _check_fit(fit, RESIZE_FACTOR)
    if kind == "resize_random_crop":
        result = _resize_random_crop(image, size, rng, fit)
    elif kind == "random_resized_crop":
        result = _random_resized_crop(image, size, rng, fit, scale, ratio)
    elif kind == "none":
        result = evaluation_transform(image, size, fit)
    else:
        raise ValueError(
            f"unknown augmentation {kind!r}; one of resize_random_crop, random_resized_crop, none"
        )
    if flip and rng.random() < 0.5:
        result = result[:, ::-1]
    return np.ascontiguousarray(result)


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ImageError(f"{width} x {height} pixels, more than {MAX_PIXELS:,} in all")
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise ImageError(f"{width} x {height} pixels, sides more than {MAX_ASPECT_RATIO} to 1")


def _is_plain_jpeg(image: Image.Image, data: bytes) -> bool:
    """Whether OpenCV may decode it: it fills what a cut JPEG lacks with grey, without a word."""
    return image.format == "JPEG" and image.mode in ("RGB", "L") and data.endswith(b"\xff\xd9")


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to RGB, transparency laid on white."""
    if image.mode.startswith("I"):  # 16 bits a pixel; Pillow's own conversion clips at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _check_fit(fit: str, resize_factor: float) -> None:
    if fit not in ("crop", "pad"):
        raise ValueError(f"unknown fit {fit!r}; one of crop, pad")
    if resize_factor < 1:
        raise ValueError(f"resize_factor is {resize_factor}; it must be at least 1")


def _covering(image: np.ndarray, side: int) -> tuple[int, int]:
    """Return the (height, width) at which the shorter side is `side`; rounding as torchvision."""
    height, width = image.shape[:2]
    if height <= width:
        return side, int(side * width / height)
    return int(side * height / width), side


def _inside(image: np.ndarray, side: int) -> tuple[int, int]:
    """Return the (height, width) at which the longer side is `side`."""
    longer = max(image.shape[:2])
    height, width = (max(1, round(length * side / longer)) for length in image.shape[:2])
    return height, width


def _pad(image: np.ndarray, side: int) -> np.ndarray:
    """Centre an image of at most `side` pixels a side on a white square."""
    height, width = image.shape[:2]
    top, left = (side - height) // 2, (side - width) // 2
    square = np.full((side, side, 3), _WHITE, np.uint8)
    square[top : top + height, left : left + width] = image
    return square


def _resize_pillow(image: np.ndarray, height: int, width: int) -> np.ndarray:
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(resized)


def _resize_opencv(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize fast; area averaging is OpenCV's antialiasing, and only for shrinking."""
    shrinks = height * width < image.shape[0] * image.shape[1]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    return cv2.resize(image, (width, height), interpolation=method)


def _resize_random_crop(
    image: np.ndarray, size: int, rng: np.random.Generator, fit: Fit
) -> np.ndarray:
    side = round(size * RESIZE_FACTOR)
    if fit == "pad":
        image = _pad(_resize_opencv(image, *_inside(image, side)), side)
    else:
        image = _resize_opencv(image, *_covering(image, side))
    top, left = (int(rng.integers(length - size + 1)) for length in image.shape[:2])
    return image[top : top + size, left : left + size]


def _random_resized_crop(
    image: np.ndarray,
    size: int,
    rng: np.random.Generator,
    fit: Fit,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> np.ndarray:
    if fit == "pad":  # twice the size, so that a crop of a quarter of the area is still sharp
        image = _pad(_resize_opencv(image, *_inside(image, 2 * size)), 2 * size)
    top, left, height, width = _random_box(*image.shape[:2], rng, scale, ratio)
    return _resize_opencv(image[top : top + height, left : left + width], size, size)


def _random_box(
    height: int,
    width: int,
    rng: np.random.Generator,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> tuple[int, int, int, int]:
    """Draw (top, left, height, width) of a box: uniform in area, log-uniform in shape.

    As in torchvision, a box that sticks out is drawn again, ten times at most; then the largest
    central box of an allowed shape is taken.
    """
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        shape = np.exp(rng.uniform(*np.log(ratio)))
        box_width, box_height = round(np.sqrt(area * shape)), round(np.sqrt(area / shape))
        if 0 < box_width <= width and 0 < box_height <= height:
            top = int(rng.integers(height - box_height + 1))
            left = int(rng.integers(width - box_width + 1))
            return top, left, box_height, box_width
    shape = float(np.clip(width / height, *ratio))
    box_height = min(height, max(1, round(width / shape)))
    box_width = min(width, max(1, round(height * shape)))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width
