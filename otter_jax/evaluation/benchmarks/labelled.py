"""Labelled images and the names of their classes: what every reader of a benchmark gives."""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from otter_jax.data.records import in_words, is_image_name
from otter_jax.embedding.image_collections import ImageCollection
from otter_jax.evaluation.class_lists import Names


@dataclasses.dataclass(frozen=True)
class ZeroShotSet:
    """Labelled images and all classes that are ranked.

    Attributes:
        name: what results call it.
        images: the images.
        labels: int [n, L], the true classes of every image, padded with -1.
        class_names: the names of every class; classes may share a name.
        left_out: how many images or labels were left out, by reason.
        other_labels: other truths to count hits by, under the prefix of their metrics.
    """

    name: str
    images: ImageCollection
    labels: np.ndarray
    class_names: tuple[Names, ...]
    left_out: Mapping[str, int]
    other_labels: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


def is_image(path: Path) -> bool:
    """Return whether a file is one by its name; hidden files are not."""
    return is_image_name(path.name)


def find_file(folder: Path, *patterns: str) -> Path:
    """Return the first file of a folder that matches one of the patterns, earlier patterns first.

    Raises:
        FileNotFoundError: with what was looked for.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    for pattern in patterns:
        if found := sorted(folder.glob(pattern)):
            return found[0]
    raise FileNotFoundError(f"{folder} has no {' or '.join(patterns)}")


def find_folder(folder: Path, *names: str) -> Path:
    """Return the first of these folders in a folder, else the folder itself."""
    return next((folder / name for name in names if (folder / name).is_dir()), folder)


def refuse_no_images(where: Path | str, names: Iterable[str], left_out: Mapping[str, int]) -> None:
    """Refuse a set without a single image (ValueError with what was left out)."""
    if not names:
        raise ValueError(f"{where}: there is no image with a label ({in_words(left_out)})")
