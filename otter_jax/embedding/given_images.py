"""What people have for an image: a file, Pillow's, an array of bytes or of numbers from 0 to 1."""

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from otter_jax.data.images import as_array
from otter_jax.data.records import is_image_name

AnyImage = Image.Image | np.ndarray | jax.Array | bytes | str | os.PathLike
CHANNELS = (1, 3, 4)  # Grey, RGB, RGB with transparency.


def one_by_one(images: AnyImage | Iterable[AnyImage]) -> Iterable[AnyImage]:
    """Return the images that were given: one, several, or an array of them.

    Raises:
        ValueError: for what can be neither.
    """
    if isinstance(images, jax.Array):
        images = np.asarray(images)
    if isinstance(images, Image.Image | bytes | str | os.PathLike):
        return [images]
    if isinstance(images, np.ndarray) and images.ndim in (2, 3):
        return [images]
    if not isinstance(images, Iterable) or (isinstance(images, np.ndarray) and images.ndim != 4):
        raise ValueError(f"images should be an image or several, found {_described(images)}")
    return images


def image_files(images: str | os.PathLike | Iterable[str | os.PathLike]) -> list[Path]:
    """Return the image files of a folder and of those below it, by name; or the paths given.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: for a URL, or if there is no image file.
    """
    if not isinstance(images, str | os.PathLike):
        return [Path(path) for path in images]
    if "://" in str(images):
        raise ValueError(f"{images} is a URL: download its images, and name their folder")
    if not Path(images).is_dir():
        raise FileNotFoundError(f"{images}: there is no such folder")
    found = sorted(path for path in Path(images).rglob("*") if is_image_name(path.name))
    if not found:
        raise ValueError(f"{images}: there is no image file in this folder, nor below it")
    return found


def readable(
    files: Iterable[Path], transform: Callable[[Path], np.ndarray], found: list[Path]
) -> Iterator[np.ndarray]:
    """Yield the images that can be read, transformed, and note their files in `found`."""
    for file in files:
        try:
            image = transform(file)
        except (ValueError, OSError):
            continue
        found.append(file)
        yield image


def as_rgb(image: AnyImage) -> np.ndarray:
    """Return an image as `data.images.decode` returns the file it comes from.

    Args:
        image: as `data.images.as_array` takes it; or an array, also JAX's, [H, W] or [H, W, C] with
            1, 3 or 4 channels, of bytes or of numbers in [0, 1].

    Returns:
        uint8 [H, W, 3].

    Raises:
        ValueError: if it is no image, naming what was found.
    """
    if not isinstance(image, np.ndarray | jax.Array):
        return as_array(image)
    array = np.asarray(image)
    if jnp.issubdtype(array.dtype, jnp.floating):  # JAX's: NumPy's does not know bfloat16.
        array = _bytes_of(array.astype(np.float32))
    if array.ndim == 2:
        array = array[:, :, None]
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] not in CHANNELS:
        raise ValueError(
            "an array of an image should be [H, W] or [H, W, C] with 1, 3 or 4 channels, uint8 or "
            f"floats in [0, 1], found {_described(image)}"
        )
    if array.shape[2] == 1:
        array = np.repeat(array, 3, axis=2)
    return as_array(Image.fromarray(array) if array.shape[2] == 4 else array)


def _bytes_of(array: np.ndarray) -> np.ndarray:
    """Return numbers from 0 to 1 as bytes; refuse others, as those that have been normalised."""
    if array.size and not (array.min() >= 0 and array.max() <= 1):
        raise ValueError(
            f"floats of an image should lie in [0, 1], found {array.min():.4g} to "
            f"{array.max():.4g}: give bytes as uint8, and do not normalise"
        )
    return np.rint(255 * array).astype(np.uint8)


def _described(images: object) -> str:
    if isinstance(images, np.ndarray | jax.Array):
        return f"{images.dtype} {list(images.shape)}"
    return type(images).__name__
