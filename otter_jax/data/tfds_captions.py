"""Which feature of a TFDS data set holds the captions: chosen by what it is, not by being alone.

Most sets for classification have a text beside the label that nobody would train on, the name of a
file or an id. So a text is only taken for the captions where its name says so, or where it reads
like language:

1. a text with a customary name, such as `caption`, `captions/text` or `title`;
2. a label: the ClassLabel with a customary name (`label`), the only one there is, or where there is
   none a text of such a name; unless some text beside it reads like language;
3. without a label, the only text that reads like language.

Whatever is less plain is refused, with the features and what they hold.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from otter_jax.data.caption_checks import reads_like_language
from otter_jax.data.columns import CAPTION_NAMES, LABEL_NAMES

_LENGTH_SHOWN = 60


class CaptionFeature(NamedTuple):
    """A feature that could hold captions: texts, or labels with the names of their classes.

    Attributes:
        path: Keys that lead to it; a key of TFDS may have slashes itself.
        is_list: Whether a record holds several.
        class_names: Of a ClassLabel; None of a text.
    """

    path: tuple[str, ...]
    is_list: bool
    class_names: Sequence[str] | None

    @property
    def name(self) -> str:
        """What the option `caption` calls it."""
        return "/".join(self.path)

    def values(self, stored: Mapping[str, Any]) -> list[Any]:
        """Return what a record holds: texts as bytes, or numbers of classes."""
        value: Any = stored
        for key in self.path:
            value = value[key]
        return [_as_bytes(each) for each in _flat(value)]

    def texts(self, stored: Mapping[str, Any]) -> list[str]:
        """Return what a record holds as text; classes by their names, where they have one."""
        values = self.values(stored)
        if self.class_names is None:
            return [value.decode("utf-8", "replace") for value in values]
        numbers = range(len(self.class_names))
        return [self.class_names[int(value)] for value in values if int(value) in numbers]


def _flat(value: Any) -> Iterator[Any]:
    """Yield the items of lists within lists."""
    if isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim):
        for each in value:
            yield from _flat(each)
    elif type(value).__name__ == "RaggedTensor":  # TFDS's own, of NumPy arrays.
        yield from _flat(value.to_list())
    else:
        yield value.item() if isinstance(value, np.ndarray) else value


def _as_bytes(value: Any) -> Any:
    return value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value


def caption_features(features: Mapping[str, Any]) -> list[CaptionFeature]:
    """Return all features that could hold captions, by name.

    Args:
        features: A `tfds.features.FeaturesDict`.
    """
    found = [each for key in features for each in _walk(features[key], (key,), False)]
    return sorted(
        found, key=lambda each: each.name
    )  # The order of features is not always the same.


def _walk(feature: Any, path: tuple[str, ...], is_list: bool) -> Iterator[CaptionFeature]:
    import tensorflow_datasets as tfds

    kinds = tfds.features
    if isinstance(feature, kinds.FeaturesDict):
        for key in feature:
            yield from _walk(feature[key], (*path, key), is_list)
    elif isinstance(feature, kinds.Sequence):
        yield from _walk(feature.feature, path, True)
    elif isinstance(feature, kinds.ClassLabel):
        yield CaptionFeature(path, is_list, feature.names)
    elif isinstance(feature, kinds.Tensor) and _holds_text(feature):
        yield CaptionFeature(path, is_list or bool(feature.shape), None)


def _holds_text(feature: Any) -> bool:
    return isinstance(feature.shape, tuple) and np.dtype(feature.np_dtype) == object


def choose_caption(
    features: Sequence[CaptionFeature],
    wanted: str,
    name: str,
    sample: Callable[[CaptionFeature], list[str]],
) -> CaptionFeature:
    """Choose the feature with the captions, see the head of this file.

    Args:
        features: All that could be it.
        wanted: The name of one; "": what is plainly meant.
        name: What to call the data set in an error.
        sample: Gives what a feature holds in some records.

    Raises:
        ValueError: If there is no such feature, or if it is not plain which is meant.
    """
    if wanted:
        if such := [each for each in features if wanted == each.name]:
            return such[0]
        raise ValueError(
            f"{name}: caption column not found: there is no {wanted!r} among "
            f"{_names(features)}; name it by adding ?caption=FEATURE to the SPEC"
        )
    texts = [each for each in features if each.class_names is None]
    if caption := _most_customary(texts, CAPTION_NAMES):
        return caption
    label = _choose_label(features)
    worded = [each for each in texts if each != label and not _is_named_otherwise(each)
              and reads_like_language(sample(each))]  # fmt: skip
    plain = [*([label] if label else []), *worded]
    if len(plain) == 1:
        return plain[0]
    raise ValueError(
        f"{name}: caption column not found: it is not plain which feature holds the captions; name "
        f"it by adding ?caption=FEATURE to the SPEC. There are {_with_examples(features, sample)}"
    )


def _choose_label(features: Sequence[CaptionFeature]) -> CaptionFeature | None:
    """Return the label of a set for classification; None where there is none, or several alike.

    Lists of labels are never meant without being named: their classes may be "negative" or a pose.
    """
    texts = [each for each in features if each.class_names is None]
    labels = [each for each in features if each.class_names is not None]
    single = [each for each in labels if not each.is_list]
    return (
        _most_customary(single, LABEL_NAMES)
        or (single[0] if len(labels) == len(single) == 1 else None)
        or (_most_customary(texts, LABEL_NAMES) if not labels else None)
    )


def _most_customary(
    features: Sequence[CaptionFeature], customary: Sequence[str]
) -> CaptionFeature | None:
    """Return the feature whose name is the most customary; None without such, or of two alike."""

    def rank(feature: CaptionFeature) -> tuple[int, bool, int]:
        keys = [key.lower() for key in feature.path]
        first = min((customary.index(key) for key in keys if key in customary), default=-1)
        return first, keys[-1] not in customary, len(keys)

    ranks = sorted((rank(each), each) for each in features if not _is_identifier(each.path[-1]))
    ranks = [(each, feature) for each, feature in ranks if each[0] >= 0]
    if not ranks or (len(ranks) > 1 and ranks[0][0] == ranks[1][0]):
        return None
    return ranks[0][1]


def _is_named_otherwise(feature: CaptionFeature) -> bool:
    """Return whether a text's name says that it is an identifier, or the label in words."""
    return _is_identifier(feature.name) or feature.path[-1].lower() in LABEL_NAMES


def _is_identifier(name: str) -> bool:
    """Return whether a feature's name says that it holds names of files, addresses or ids."""
    words = name.lower().replace("/", "_").split("_")
    return not _IDENTIFIERS.isdisjoint(words) or words[-1].endswith(("name", "id", "url"))


_IDENTIFIERS = {"file", "filename", "filepath", "path", "id", "ids", "uuid", "url", "key", "hash",
                "license", "language", "date", "creator", "author", "user"}  # fmt: skip


def _names(features: Sequence[CaptionFeature]) -> str:
    return ", ".join(repr(each.name) for each in features) or "no text and no label"


def _with_examples(
    features: Sequence[CaptionFeature], sample: Callable[[CaptionFeature], list[str]]
) -> str:
    """Return the features with the first text that each holds."""
    examples = []
    for each in features:
        found = next((text for text in sample(each) if text), None)
        example = "nothing" if found is None else repr(found[:_LENGTH_SHOWN])
        examples.append(f"{each.name!r} ({example})")
    return ", ".join(examples) or "no text and no label"
