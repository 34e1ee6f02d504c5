"""From encoded images to uint8 arrays of the size the model asks for.

Arrays are uint8 [height, width, 3], RGB, 0 to 255; normalisation happens on the device. Decoding
never passes on a broken image: it raises `ImageError`, and the pipeline counts it by its reason.
The evaluation transform is resampled by Pillow, the reference that published scores go back to;
training may use OpenCV, which is faster and whose small differences drown in the augmentation.
"""

import importlib
import io
import math
import os
import warnings
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

Fit = Literal["crop", "pad"]
TrainingKind = Literal["resize_random_crop", "random_resized_crop", "none"]

Reason = Literal[
    "zero bytes",
    "not an image",  # or one of which not even the header is whole
    "truncated",
    "damaged",
    "too many pixels",
    "too thin",
    "unknown range of values",  # 32-bit pixels, of which no file says what is black and white
]
REASONS: tuple[str, ...] = get_args(Reason)

# What the web and photographers use, told by content and never by name. Pillow reads thirty more;
# one of them runs another program (EPS), and none is worth its risk.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")

MAX_PIXELS = 178_956_970  # half a GiB at three bytes a pixel; Pillow refuses at the same number
MAX_ASPECT_RATIO = 200  # resizing the shorter side of a hairline would fill the memory
RESIZE_FACTOR = 256 / 224  # the customary margin between resizing and cropping
CROP_SCALE = (0.2, 1.0)  # shares of the area
CROP_RATIO = (3 / 4, 4 / 3)  # width / height

_WHITE = 255
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0  # A tag of TIFF, and its value.
_ORIENTATION, _UPRIGHT = 0x0112, 1  # A tag of EXIF, and its usual value.
_PNG_LIMITS = ("MAX_TEXT_CHUNK", "text chunks")  # What Pillow's errors name.
_JPEG = b"\xff\xd8\xff"
_PNG = b"\x89PNG\r\n\x1a\n"
_PACKAGES = {"HEIF": "pillow_heif", "JXL": "pillow_jxl"}  # Of the extra `images`.
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1", b"hevc", b"hevx")
_BRANDS_END = 64  # Bytes; a file names a handful, of four letters each.
_JPEG_XL = (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")
_HALVED_FROM = 2.4  # times the size wanted; never further from bicubic than bilinear would be
_BILINEAR_TO = 1.4  # times the size wanted; until here as near to bicubic as Pillow's bilinear
_LINEAR_FROM = 1.6  # times the size wanted; from here on nearer to bicubic, and faster
_REDUCED = (
    (8, cv2.IMREAD_REDUCED_GRAYSCALE_8),
    (4, cv2.IMREAD_REDUCED_GRAYSCALE_4),
    (2, cv2.IMREAD_REDUCED_GRAYSCALE_2),
)  # with IMREAD_COLOR_RGB beside them, in colour

# Pillow warns from half the size on at which it refuses; here the refusal is the whole rule.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# Whoever loads in several threads has an image in each; OpenCV's own would only be in their way.
cv2.setNumThreads(1)


class ImageError(ValueError):
    """Bytes that are no image, or one that is broken or too large; the message is one line.

    Attributes:
        reason: One of `REASONS`; the kind of failure, which is what can be counted.
    """

    def __init__(self, reason: str, detail: str = ""):
        """Say what kind of failure it is, and what may help to understand it."""
        self.reason = reason
        super().__init__(f"{reason}: {detail}" if detail else reason)


class Box(NamedTuple):
    """A part of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int

    def cut(self, image: np.ndarray) -> np.ndarray:
        """Return this part of an image [height, width, ...], not copied."""
        rows = slice(self.top, self.top + self.height)
        return image[rows, self.left : self.left + self.width]


def decode(data: bytes, *, at_least: int | None = None) -> np.ndarray:
    """Decode an image file, upright (EXIF) and with transparency laid on white.

    JPEGs go through OpenCV, which is faster. Everything else goes through Pillow, which knows
    palettes, 16 bits, CMYK and transparency, and which notices a file that was cut. Of an animation
    or of several pages the first counts. Colour profiles are ignored, as they are by those who
    trained the published models. What a JPEG lost in its middle is as libjpeg fills it.

    Args:
        data: The contents of an image file in one of `FORMATS`.
        at_least: Side, in pixels, that is enough for what comes next (see `sufficient_side`). A
            JPEG is then decoded at half, a quarter or an eighth of its size as long as its shorter
            side stays at least this long. None decodes every pixel, as an evaluation must.

    Returns:
        uint8 [height, width, 3], RGB.

    Raises:
        ImageError: If the bytes are no complete image, or if it has more than `MAX_PIXELS`
            pixels or sides more unequal than `MAX_ASPECT_RATIO` to 1.
    """
    if not data:
        raise ImageError("zero bytes")
    try:
        with _open(data) as image:
            _check_size(*image.size)
            if _is_plain_jpeg(image, data):
                array = _decode_jpeg(data, min(image.size), at_least)
                if array is not None:
                    return array
            return _decode_pillow(image)
    except Exception as error:  # Pillow's readers raise a dozen types on broken files
        if _is_of_large_chunks(error):
            return decode(without_texts(data), at_least=at_least)
        raise _explain(error, data) from None


def size_by_rows(data: bytes) -> tuple[int, int] | None:
    """Return (height, width) of a JPEG that holds one row of the image after the other.

    Returns:
        None for every other file; for JPEGs that EXIF turns, that were cut or are no RGB or grey;
        and for progressive ones, of which damage anywhere may show everywhere.

    Raises:
        ImageError: If it is no image, or one that is too large, see `decode`.
    """
    if not data.startswith(_JPEG):
        return None
    try:
        with _open(data) as image:
            _check_size(*image.size)
            by_rows = _is_plain_jpeg(image, data) and "progressive" not in image.info
            return (image.height, image.width) if by_rows and not _is_turned(image) else None
    except Exception as error:
        raise _explain(error, data) from None


def as_array(image: Image.Image | np.ndarray | bytes | str | os.PathLike) -> np.ndarray:
    """Return any image as `decode` returns the file it comes from.

    Args:
        image: A file's contents or path; an image that Pillow opened or made; or an array, which
            is taken as it is.

    Returns:
        uint8 [height, width, 3], RGB.

    Raises:
        ImageError: If it is broken, too large, or of an unknown range of values, see `decode`.
        ValueError: If it is no image at all, or an array of another type or shape.
        FileNotFoundError: If there is no file of this path.
    """
    if isinstance(image, bytes):
        return decode(image)
    if isinstance(image, str | os.PathLike) and os.path.isfile(image):
        return decode(Path(image).read_bytes())
    if isinstance(image, os.PathLike) or (isinstance(image, str) and "://" not in image):
        raise FileNotFoundError(f"there is no image file {os.fspath(image):.200}")
    if isinstance(image, str):
        raise ValueError(f"{image:.200} is a URL: download the image, and give its path")
    if isinstance(image, Image.Image):
        try:
            _check_size(*image.size)
            return _decode_pillow(image)
        except Exception as error:
            raise _explain(error, b"") from None
    if not isinstance(image, np.ndarray):
        raise ValueError(
            f"an image should be a PIL image or a uint8 array, found {image!r}; files are opened "
            "with PIL.Image.open or given by their path, at which there must be one"
        )
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(
            f"an image should be uint8 [H, W, 3], found {image.dtype} {list(image.shape)}"
        )
    return image


def _decode_pillow(image: Image.Image) -> np.ndarray:
    """Return an image of Pillow's, opened or made, upright and with transparency laid on white."""
    _check_range(image)
    image.load()
    if _is_inverted(image):
        image = Image.fromarray(~np.asarray(image))
    return np.array(to_rgb(_upright(image)))


def _open(data: bytes) -> Image.Image:
    """Open an image file of one of `FORMATS`, or of a format whose package is installed."""
    name = _format_of_a_package(data)
    if not name:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    package = _PACKAGES[name]
    try:
        plugin = importlib.import_module(package)
    except ModuleNotFoundError:
        raise ImageError(
            "not an image", f"{name} needs {package}: pip install 'otter_jax[images]'"
        ) from None
    if name == "HEIF":
        plugin.register_heif_opener()
    return Image.open(io.BytesIO(data), formats=(name,))


def _format_of_a_package(data: bytes) -> str:
    """Return the format of a file that Pillow does not read alone, by its first bytes; else ""."""
    brands = data[8:_BRANDS_END] if data[4:8] == b"ftyp" else b""
    if brands[:4] in _HEIF_BRANDS and b"avif" not in brands:  # An AVIF may be a "mif1" first.
        return "HEIF"
    return "JXL" if data.startswith(_JPEG_XL) else ""


def _is_of_large_chunks(error: Exception) -> bool:
    """Return whether Pillow refused a PNG for texts or a profile above its limits alone."""
    return isinstance(error, ValueError) and any(limit in str(error) for limit in _PNG_LIMITS)


def without_texts(data: bytes) -> bytes:
    """Return a PNG without its texts and colour profile, of which no pixel depends.

    What says how it is to be turned (`eXIf`) stays.
    """
    kept, place = [_PNG], len(_PNG)
    while place + 12 <= len(data):
        length = int.from_bytes(data[place : place + 4])
        if data[place + 4 : place + 8] not in (b"tEXt", b"zTXt", b"iTXt", b"iCCP"):
            kept.append(data[place : place + 12 + length])
        place += 12 + length
    return b"".join(kept) + data[place:]


def format_and_mode(data: bytes) -> str:
    """Return format and mode of an image that can be decoded, such as "JPEG RGB"."""
    try:
        with _open(data) as image:
            return f"{image.format} {image.mode}"
    except ValueError:  # Of texts or a profile that are too large.
        with _open(without_texts(data)) as image:
            return f"{image.format} {image.mode}"


def sufficient_side(size: int, kind: str) -> int | None:
    """Return the shorter side that is plenty for training, for `decode(at_least=...)`.

    It leaves twice the pixels a side that the smallest view needs. Then a JPEG that was decoded at
    a fraction of its size gives what the whole one gives, but for differences smaller than those
    between bilinear and bicubic resampling; with less, its decoder's aliasing would show.

    Args:
        size: Side of the result, in pixels.
        kind: An augmentation. "none" gives None, as every pixel counts; all others than those of
            `training_transform` are taken for random resized crops of `CROP_SCALE`, or larger.
    """
    if kind == "none":
        return None
    if kind == "resize_random_crop":
        return 2 * round(size * RESIZE_FACTOR)
    smallest = math.sqrt(CROP_SCALE[0] * CROP_RATIO[0])  # box, where the image's side is 1
    return 2 * math.ceil(size / smallest)


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
    scale: tuple[float, float] = CROP_SCALE,
    ratio: tuple[float, float] = CROP_RATIO,
    is_cut: bool = False,
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
        is_cut: Whether the image is already what `draw_box` has drawn of it by the same `rng`. Then
            sides up to 1.4 times `size` are resized bilinearly, which takes a third of the time.

    Returns:
        uint8 [size, size, 3].

    Raises:
        ValueError: If `kind` or `fit` is none of the above.
    """
    _check_fit(fit, RESIZE_FACTOR)
    if is_cut:
        result = _resize_cut(image, size)
    elif kind == "resize_random_crop":
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


def draw_box(
    height: int,
    width: int,
    size: int,
    rng: np.random.Generator,
    kind: TrainingKind,
    scale: tuple[float, float] = CROP_SCALE,
    ratio: tuple[float, float] = CROP_RATIO,
) -> Box:
    """Draw which part of an image a view shows, as `training_transform` with fit "crop" begins.

    Args:
        height: The image's, in pixels.
        width: The image's, in pixels.
        size: Side of the view.
        rng: The only source of randomness.
        kind: "random_resized_crop"; or "resize_random_crop", if the image is large enough for it,
            see `is_enlarged`.
        scale: See `training_transform`.
        ratio: See `training_transform`.
    """
    if kind == "random_resized_crop":
        return _random_box(height, width, rng, scale, ratio)
    return _random_square(height, width, size, rng)


def is_enlarged(height: int, width: int, size: int, kind: str) -> bool:
    """Return whether a view of an image is cut from a larger copy of the whole one."""
    return kind == "resize_random_crop" and min(height, width) < round(size * RESIZE_FACTOR)


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ImageError("too many pixels", f"{width} x {height}, at most {MAX_PIXELS:,} in all")
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise ImageError("too thin", f"{width} x {height}, at most {MAX_ASPECT_RATIO} to 1")


def _check_range(image: Image.Image) -> None:
    # Pillow has the 16 bits of a PGM, and of PNG in older versions, in 32.
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        raise ImageError("unknown range of values", "32 bits a channel")


def _is_plain_jpeg(image: Image.Image, data: bytes) -> bool:
    """Return whether OpenCV may decode it: of a cut JPEG it fills the rest with grey, unsaid."""
    return image.format == "JPEG" and image.mode in ("RGB", "L") and data.endswith(b"\xff\xd9")


def _is_turned(image: Image.Image) -> bool:
    """Return whether EXIF says, or may say, that an image is to be turned."""
    if "exif" not in image.info:
        return False
    try:
        return image.getexif().get(_ORIENTATION, _UPRIGHT) != _UPRIGHT
    except Exception:  # as many types as for the image itself
        return True


def _decode_jpeg(data: bytes, shorter_side: int, at_least: int | None) -> np.ndarray | None:
    """Decode by OpenCV, upright; None where it cannot."""
    mode = cv2.IMREAD_COLOR_RGB
    for divisor, reduced in _REDUCED:
        if at_least is not None and shorter_side >= divisor * at_least:
            mode |= reduced
            break
    return cv2.imdecode(np.frombuffer(data, np.uint8), mode)


def _upright(image: Image.Image) -> Image.Image:
    """Turn an image as its EXIF says; where that is damaged, the image is as good without."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # as many types as for the image itself
        return image


def _explain(error: Exception, data: bytes) -> ImageError:
    """Say of what kind an error is that was raised on opening or decoding."""
    if isinstance(error, ImageError):
        return error
    if isinstance(error, Image.DecompressionBombError):  # before the size could be asked for
        return ImageError("too many pixels", f"at most {MAX_PIXELS:,}")
    if isinstance(error, UnidentifiedImageError):
        return ImageError("not an image", f"none of {', '.join(FORMATS)}")
    message = " ".join(str(error).split()) or type(error).__name__
    cut = "truncated" in message.lower() or _is_cut_webp(data)
    return ImageError("truncated" if cut else "damaged", message)


def _is_cut_webp(data: bytes) -> bool:
    """Return whether a WebP is shorter than it says; its decoder calls every failure the same."""
    return data.startswith(b"RIFF") and len(data) < 8 + int.from_bytes(data[4:8], "little")


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to RGB, transparency laid on white."""
    if image.mode.startswith("I"):  # 16 bits a pixel; Pillow's own conversion clips at 255
        image = Image.fromarray(_grey_of_16_bits(image))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _is_inverted(image: Image.Image) -> bool:
    """Return whether 16 bits of grey have 0 for white, which Pillow minds of 8 bits alone."""
    photometric = getattr(image, "tag_v2", {}).get(_PHOTOMETRIC)
    return image.mode.startswith("I;16") and photometric == _WHITE_IS_ZERO


def _grey_of_16_bits(image: Image.Image) -> np.ndarray:
    """Return 16 bits of grey as 8, uint8 [height, width]; a transparent value is white."""
    values = np.asarray(image)
    grey = (values >> 8).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = _WHITE
    return grey


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
    """Return an image of at most `side` pixels a side, centred on a white square."""
    height, width = image.shape[:2]
    top, left = (side - height) // 2, (side - width) // 2
    square = np.full((side, side, 3), _WHITE, np.uint8)
    square[top : top + height, left : left + width] = image
    return square


def _resize_pillow(image: np.ndarray, height: int, width: int) -> np.ndarray:
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(resized)


def _resize_opencv(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize fast and without aliasing, nearly as the antialiased bicubic of the evaluation.

    OpenCV's own antialiasing, area averaging, is slow unless the sizes are multiples, and blurs
    where they are close. So an image that is much too large is halved (of an odd length the last
    pixel goes: training crops anyway), and then twice the pixels wanted are interpolated and
    averaged two by two. Halving a little too soon would blur, a little too late would alias.
    Cubic interpolation is only better than linear where the sizes are close.
    """
    if image.shape[0] <= height and image.shape[1] <= width:
        return cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)
    while min(image.shape[0] / height, image.shape[1] / width) >= _HALVED_FROM:
        rows, columns = image.shape[0] // 2, image.shape[1] // 2
        even = image[: 2 * rows, : 2 * columns]
        image = cv2.resize(even, (columns, rows), interpolation=cv2.INTER_AREA)
    is_far = min(image.shape[0] / height, image.shape[1] / width) >= _LINEAR_FROM
    interpolation = cv2.INTER_LINEAR if is_far else cv2.INTER_CUBIC
    finer = cv2.resize(image, (2 * width, 2 * height), interpolation=interpolation)
    return cv2.resize(finer, (width, height), interpolation=cv2.INTER_AREA)


def _resize_cut(image: np.ndarray, size: int) -> np.ndarray:
    """Resize to a square, where it shrinks a little by two pixels a side in place of many.

    The result is about as near to the antialiased bicubic as Pillow's bilinear, which is
    torchvision's default, and takes a third of the time.
    """
    shortest, longest = sorted(image.shape[:2])
    if size <= shortest and longest <= _BILINEAR_TO * size:
        return cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR)
    return _resize_opencv(image, size, size)


def _resize_random_crop(
    image: np.ndarray, size: int, rng: np.random.Generator, fit: Fit
) -> np.ndarray:
    side = round(size * RESIZE_FACTOR)
    if fit == "pad":
        image = _pad(_resize_opencv(image, *_inside(image, side)), side)
    elif is_enlarged(*image.shape[:2], size, "resize_random_crop"):
        image = _resize_opencv(image, *_covering(image, side))
    box = _random_square(*image.shape[:2], size, rng)  # cut out first: half the pixels to resize
    return _resize_opencv(box.cut(image), size, size)


def _random_square(height: int, width: int, size: int, rng: np.random.Generator) -> Box:
    """Draw the place of a square as large as the view is in an image resized for evaluation."""
    side = round(min(height, width) * size / round(size * RESIZE_FACTOR))
    top, left = (int(rng.integers(length - side + 1)) for length in (height, width))
    return Box(top, left, side, side)


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
    box = _random_box(*image.shape[:2], rng, scale, ratio)
    return _resize_opencv(box.cut(image), size, size)


def _random_box(
    height: int,
    width: int,
    rng: np.random.Generator,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> Box:
    """Draw a box: uniform in area, log-uniform in shape.

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
            return Box(top, left, box_height, box_width)
    shape = float(np.clip(width / height, *ratio))
    box_height = min(height, max(1, round(width / shape)))
    box_width = min(width, max(1, round(height * shape)))
    return Box((height - box_height) // 2, (width - box_width) // 2, box_height, box_width)
