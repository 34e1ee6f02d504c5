"""Labelled sets that a zero-shot classifier is measured on, by name."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ZeroShotSet:
    """Labelled images and the names of all classes.

    Attributes:
      name: what results call it.
      images: uint8 [n, size, size, 3].
      labels: int32 [n, L], the true classes of every image, padded with -1.
      class_names: what is ranked; distinct.
      left_out: how many images were left out, by reason.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    left_out: dict[str, int]


def _openmoji(image_size: int) -> ZeroShotSet:
    from otter_jax.evaluation.benchmarks import openmoji

    return openmoji.load(image_size)


BENCHMARKS: dict[str, Callable[[int], ZeroShotSet]] = {"openmoji": _openmoji}


def load(name: str, image_size: int) -> ZeroShotSet:
    """A benchmark's images, `image_size` pixels wide and high, and its classes.

    Raises:
      ValueError: for an unknown name.
      ModuleNotFoundError: if packages are missing; the message has the pip command.
    """
    if name not in BENCHMARKS:
        raise ValueError(f"there is no benchmark {name!r}; there are: {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name](image_size)
