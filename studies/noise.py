"""Wrong captions as the field makes them: which image each caption is trained with.

    random     the captions of some pairs change places (NCR, Huang et al., NeurIPS 2021)
    category   a caption gives way to that of another pair of its category (LEMoN's `cat`)
    noun       a caption gives way to that of another pair with which it shares a noun (LEMoN's)
    FILE.npy   as published: entry i is the number of the image that caption i is trained with
               (L2RM), or that all captions of image i are (DECL, RCL)
    FILE.txt   as published: line i is what stands for caption i (NPC)

Published files count on the order of SCAN's `train_caps.txt`: captions of image 0, of image 1, and
so on, equally many of each. `in_order` brings captions into it.
"""

import re
import tokenize
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from otter_jax.data.text_files import read_lines
from studies.collection import shuffled_captions

KINDS = ("random", "category", "noun")
TRIES = 30  # To draw a caption of another image.


class Captions(NamedTuple):
    """The captions of some images, one after the other."""

    text: tuple[str, ...]
    image_of: np.ndarray  # int, of each the number of its image.

    def by_image(self) -> list[list[int]]:
        """Return the numbers of each image's captions."""
        found: list[list[int]] = [[] for _ in range(self.image_of.max() + 1)]
        for caption, image in enumerate(self.image_of.tolist()):
            found[image].append(caption)
        return found


class Pairing(NamedTuple):
    """What is trained on: pairs of an image and a caption, by their numbers."""

    image: np.ndarray  # int [n].
    caption: np.ndarray  # int [n].

    def wrong(self, captions: Captions) -> np.ndarray:
        """Return which pairs have a caption that their image does not have, bool [n]."""
        images = zip(captions.image_of.tolist(), captions.text, strict=True)
        right = {(image, plain(text)) for image, text in images}
        given = zip(self.image.tolist(), self.caption.tolist(), strict=True)
        return np.array([(i, plain(captions.text[c])) not in right for i, c in given])


class Noise(NamedTuple):
    """A kind of noise, as it is written in a command: `random:0.4`, or the name of a file."""

    kind: str  # One of `KINDS`, or a path.
    share: float = 0.0  # Of wrong captions; of a file it is not asked.

    @classmethod
    def parse(cls, text: str) -> "Noise":
        """Read `KIND:SHARE` or a path; ValueError where it is neither."""
        if Path(text).suffix in (".npy", ".txt"):
            return cls(str(Path(text)))
        kind, _, share = text.partition(":")
        try:
            found = cls(kind, abs(float(share)) if float(share) == 0 else float(share))
        except ValueError:
            found = cls("")
        if found.kind not in KINDS or not 0.0 <= found.share <= 1.0:
            forms = ", ".join(f"{each}:SHARE" for each in KINDS)
            raise ValueError(
                f"unknown noise {text!r}: it must be {forms} with a share in [0, 1], or a .npy "
                "or .txt file"
            )
        return found

    def __str__(self) -> str:
        """Return it as it is written, in one way."""
        short = f"{self.share:g}"
        share = short if float(short) == self.share else repr(self.share)
        return f"{self.kind}:{share}" if self.kind in KINDS else self.kind


def make(
    noise: Noise,
    captions: Captions,
    labels: Sequence[Sequence[Hashable]],
    rng: np.random.Generator,
) -> Pairing:
    """Return the pairs of some images and captions, some of which are wrong.

    Args:
        noise: which, and how much.
        captions: right ones.
        labels: of each caption, its categories or its nouns, where the kind asks for them.
        rng: source of the choice; of a file it is not asked.
    """
    everyone = np.arange(len(captions.text))
    if noise.kind == "random":
        source, _ = shuffled_captions(np.zeros_like(everyone), noise.share, rng)
        return Pairing(captions.image_of, source)
    if noise.kind in KINDS:
        source = sharing_a_label(labels, captions.image_of, noise.share, rng)
        return Pairing(captions.image_of, source)
    if noise.kind.endswith(".npy"):
        return Pairing(read_index(Path(noise.kind), captions), everyone)
    return Pairing(captions.image_of, read_captions(Path(noise.kind), captions))


def sharing_a_label(
    labels: Sequence[Sequence[Hashable]],
    image_of: np.ndarray,
    share: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """Return which caption stands for each: for some, another image's that shares a label with it.

    A label is drawn from those of a chosen caption, then a caption from the others that have it,
    as in LEMoN's release (Zhang et al., ICML 2025). A caption may stand for several, and some that
    are chosen stay as they are, since no other image's shares their label.

    Args:
        labels: of each caption, in an order.
        image_of: int [n], of each caption.
        share: of all captions, how many are chosen; fewer where fewer have any label.
        rng: source of the choice.

    Returns:
        int [n], numbers of captions.
    """
    having: dict[Hashable, list[int]] = defaultdict(list)
    for number, own in enumerate(labels):
        for label in dict.fromkeys(own):
            having[label].append(number)
    source = np.arange(len(labels))
    labelled = rng.permutation([number for number, own in enumerate(labels) if own])
    for number in labelled[: round(share * len(labels))].tolist():
        own = labels[number]
        having_it = having[own[rng.integers(len(own))]]
        for _ in range(TRIES):
            found = having_it[rng.integers(len(having_it))]
            if image_of[found] != image_of[number]:
                source[number] = found
                break
    return source


def read_index(path: Path, captions: Captions) -> np.ndarray:
    """Return the image that each caption is trained with, int [n], from a published .npy file.

    Raises:
        ValueError: if the file is none, or not for as many images or captions.
    """
    try:  # Mapped, since a damaged header may ask for more memory than there is.
        index = np.array(np.lib.format.open_memmap(path, mode="r"))
    except (ValueError, EOFError, SyntaxError, tokenize.TokenError):
        raise ValueError(
            f"{path}: no whole .npy file of numbers; pickles are not read, nor is .npz"
        ) from None
    images = int(captions.image_of.max()) + 1
    if index.ndim != 1 or not np.issubdtype(index.dtype, np.integer):
        raise ValueError(f"{path}: {index.dtype} {list(index.shape)}, expected int [n]")
    if len(index) not in (images, len(captions.text)):
        raise ValueError(
            f"{path}: {len(index)} numbers, where there are {images} images with "
            f"{len(captions.text)} captions"
        )
    if index.min() < 0 or index.max() >= images:
        raise ValueError(f"{path}: numbers from {index.min()} to {index.max()}, of {images} images")
    return index if len(index) == len(captions.text) else index[captions.image_of]


def read_captions(path: Path, captions: Captions) -> np.ndarray:
    """Return which caption stands for each, int [n], from a published file of captions.

    Captions are compared by their letters and digits.

    Raises:
        ValueError: if there are more or fewer lines, or one that is no caption of the data.
    """
    lines = read_lines(path)
    if len(lines) != len(captions.text):
        raise ValueError(
            f"{path}: {len(lines)} lines, where there are {len(captions.text)} captions"
        )
    number_of: dict[str, int] = {}
    for number, text in enumerate(captions.text):
        number_of.setdefault(plain(text), number)
    source = np.array([number_of.get(plain(line), -1) for line in lines])
    if (source < 0).any():
        line = int((source < 0).argmax())
        raise ValueError(f"{path}:{line + 1}: {lines[line]!r} is no caption of the data")
    return source


def in_order(path: Path, captions: Captions) -> tuple[np.ndarray, np.ndarray]:
    """Return images and captions in the order of a file like SCAN's `train_caps.txt`.

    Returns:
        int [images], the numbers of the images, and int [lines], those of their captions.

    Raises:
        ValueError: if lines are not equally many of each image, or do not fit any.
    """
    lines, count = read_lines(path), len(captions.by_image())
    each = len(lines) // count
    if not lines:
        raise ValueError(f"{path} is empty; it should have the captions of {count} images")
    if each * count != len(lines):
        raise ValueError(f"{path}: {len(lines)} lines are no multiple of {count} images")
    having: dict[str, list[int]] = defaultdict(list)
    for number, text in enumerate(captions.text):
        having[plain(text)].append(number)
    images, numbers, taken = [], [], set()
    for start in range(0, len(lines), each):
        found = [having[plain(line)] for line in lines[start : start + each]]
        votes = Counter(image for own in found for image in set(captions.image_of[own].tolist()))
        left = [image for image in votes if image not in taken]  # Images may have equal captions.
        image = max(left, key=votes.get, default=-1)
        taken.add(image)
        for line, own in enumerate(found, start):
            mine = [number for number in own if captions.image_of[number] == image]
            if not mine:
                raise ValueError(
                    f"{path}:{line + 1}: {lines[line]!r} is no caption of the image whose other "
                    "captions stand beside it"
                )
            numbers.append(mine[0])
        images.append(image)
    return np.array(images), np.array(numbers)


def plain(caption: str) -> str:
    """Return the letters and digits of a caption, in lower case.

    >>> plain("A man's  hat .")
    'amanshat'
    """
    return re.sub(r"[\W_]+", "", caption.lower())
