"""Features of published TFDS data sets, stored as data, and pairs made up for them.

tfds_features.json names for every set the caption that is plainly meant (null: none is) and its
features: a kind and its size, a list for a sequence, an object for a dictionary.
"""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds

SETS: dict[str, dict[str, Any]] = json.loads(
    Path(__file__).with_name("tfds_features.json").read_text(encoding="utf-8")
)
PNG = cv2.imencode(".png", np.zeros((2, 2, 3), np.uint8))[1].tobytes()
_LANGUAGE = ("a dog on the grass", "the man at the left", "two cats asleep", "an old red car")
_LANGUAGE_FEATURES = ("raw", "text", "question", "answer", "topic", "caption",
                      "caption_title_and_reference_description")  # fmt: skip


def build(kind: Any) -> Any:
    """The feature of TFDS that a description stands for."""
    features = tfds.features
    if isinstance(kind, dict):
        return features.FeaturesDict({key: build(each) for key, each in kind.items()})
    if isinstance(kind, list):
        return features.Sequence(build(kind[0]))
    name, _, size = kind.partition(":")
    if name == "ClassLabel":
        return features.ClassLabel(names=[f"class_{letters(n)}" for n in range(int(size))])
    if name in ("Image", "Text"):
        return getattr(features, name)()
    shape = tuple(None if side == "?" else int(side) for side in size.split(",")) if size else ()
    return features.Tensor(shape=shape, dtype=np.str_ if name == "str" else np.dtype(name))


def letters(number: int) -> str:
    """A number in letters, as names of classes rarely have digits."""
    return "".join(chr(ord("a") + int(digit)) for digit in str(number))


def text_of(name: str, number: int) -> str:
    """What a text of that name holds in a record: language, or the likes of a file's name."""
    is_language = name.split("/")[-1] in _LANGUAGE_FEATURES
    return _LANGUAGE[number % 4] if is_language else f"{name.split('/')[-1]}_{number:05d}"


def example(kind: Any, number: int, name: str = "") -> Any:
    """What a feature could hold in record `number`."""
    if isinstance(kind, dict):
        return {key: example(each, number, key) for key, each in kind.items()}
    if isinstance(kind, list):
        return [example(kind[0], number + n, name) for n in range(2)]
    plain, _, size = kind.partition(":")
    if plain in ("Text", "str"):
        return text_of(name, number)
    if plain == "ClassLabel":
        return number % int(size)
    if plain == "Image":
        return PNG  # Encoded: arrays are encoded by TensorFlow.
    shape = tuple(int(side) for side in size.replace("?", "1").split(",")) if size else ()
    return np.zeros(shape, plain) if shape else np.dtype(plain).type(number)
