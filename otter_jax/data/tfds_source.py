"""Data sets of TensorFlow Datasets (the extra `[tfds]`), read at random without TensorFlow."""

import contextlib
import hashlib
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from otter_jax.data import storage
from otter_jax.data.columns import CAPTION_NAMES, IMAGE_NAMES, choose_column
from otter_jax.data.records import Record, RecordError, clean_caption

UNFINISHED = ".unfinished"  # What `otter-jax prepare` keeps in its folder until it is finished.

# [scheme://]NAME_OR_FOLDER[:SPLIT], where a split may be a slice such as train[:1000].
_PATH = re.compile(r"((?:\w+://)?[^:]+)(?::(.+))?")


class TfdsSource:
    """A split of a data set that was prepared in a format of random access, such as ArrayRecord.

    The image is a feature of type Image. Captions are a Text, a sequence of them, or the texts of
    a sequence of features; where there are none, the name of the ClassLabel. Nothing is read when
    the source is opened, so that nothing is `skipped`: a record that cannot be used shows when it
    is read.
    """

    def __init__(self, path: str, name: str, options: Mapping[str, str], split: str | None) -> None:
        """Open a split.

        Args:
            path: NAME[:SPLIT] or FOLDER[:SPLIT], where the folder holds dataset_info.json.
            name: What to call it in logs.
            options: `image` and `caption`, features (`captions/text` within a sequence);
                `data_dir`, where prepared data sets lie.
            split: Which split is meant where the path names none; None: the path must.

        Raises:
            ModuleNotFoundError: If tensorflow_datasets is not installed.
            FileNotFoundError: If the data set is not there, or not prepared.
            ValueError: If it is in another format, or if a split or feature does not exist.
        """
        found = _PATH.fullmatch(path)
        if not found:
            raise ValueError(f"{name}: write tfds:NAME[:SPLIT] or tfds:FOLDER[:SPLIT]")
        self.name = name
        builder = _open_builder(found[1], name, options.get("data_dir"))
        splits = ", ".join(builder.info.splits)
        if not (split := found[2] or split):
            raise ValueError(
                f"{name}: say which split is meant, as tfds:NAME:SPLIT; it has {splits}"
            )
        features = builder.info.features
        self._image = _choose_image(features, options.get("image", ""), name)
        self._caption = _choose_caption(features, options.get("caption", ""), name).split("/")
        self._class_names = getattr(features[self._caption[0]], "names", None)
        self._data = _open_split(builder, split, name)
        self.caption_counts = _count_captions(features[self._caption[0]], len(self._data))
        self.skipped: dict[str, int] = {}
        self.fingerprint = _fingerprint(builder, split, len(self._data))

    def __len__(self) -> int:
        """Return the number of records."""
        return len(self._data)

    def __getitem__(self, i: int) -> Record:
        """Read record `i`; RecordError if it has no caption."""
        number = range(len(self))[i]
        stored = self._data[number]
        captions = self._captions(stored)
        return Record(str(number), stored[self._image], captions[0], {}, captions)

    def _captions(self, stored: Mapping[str, Any]) -> tuple[str, ...]:
        value: Any = stored
        for part in self._caption:
            value = value[part]
        if self._class_names is not None:
            return (self._class_name(int(value)),)
        try:
            texts = [
                clean_caption(text) for text in ([value] if isinstance(value, bytes) else value)
            ]
        except UnicodeDecodeError:
            raise RecordError("caption not UTF-8") from None
        captions = tuple(dict.fromkeys(filter(None, texts)))
        if not captions:
            raise RecordError("empty caption")
        return captions

    def _class_name(self, label: int) -> str:
        if not 0 <= label < len(self._class_names):  # -1 stands for a record without a label.
            raise RecordError("no label")
        return self._class_names[label].replace("_", " ")


def _open_builder(path: str, name: str, data_dir: str | None) -> Any:
    if (Path(path) / UNFINISHED).is_dir() and not (Path(path) / "dataset_info.json").is_file():
        raise FileNotFoundError(
            f"{name}: unfinished; run otter-jax prepare --to={path} again, as before"
        )
    try:
        import tensorflow_datasets as tfds
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{name}: tensorflow_datasets is needed ({error.name} is missing): "
            "pip install 'otter_jax[tfds]'"
        ) from None
    try:
        if path.startswith(("/", ".")) or "://" in path:
            return tfds.builder_from_directory(path)
        with contextlib.redirect_stdout(io.StringIO()):  # Where TensorFlow is missing, a banner.
            builder = tfds.builder(path, data_dir=data_dir)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{name}: not prepared, and its builder cannot be loaded here ({_reason(error)}); "
            f"run, where TensorFlow is installed: tfds build {path} --file_format=array_record"
        ) from None
    except (tfds.core.DatasetNotFoundError, OSError) as error:
        raise FileNotFoundError(f"{name}: there is no such data set ({_reason(error)})") from None
    if not builder.info.splits:
        raise FileNotFoundError(
            f"{name}: not prepared in {builder.data_path}; "
            f"run: tfds build {path} --file_format=array_record"
        )
    return builder


def _reason(error: Exception) -> str:
    """Return the last part of the first line of a message, where TFDS has the reason."""
    return str(error).splitlines()[0].rpartition(": ")[2]


def _open_split(builder: Any, split: str, name: str) -> Any:
    import tensorflow_datasets as tfds

    encoded = {
        feature: tfds.decode.SkipDecoding()
        for feature, kind in builder.info.features.items()
        if isinstance(kind, tfds.features.Image)
    }
    try:
        return builder.as_data_source(split=split, decoders=encoded)
    except NotImplementedError:
        raise ValueError(
            f"{name}: prepared as {builder.info.file_format.value}, which cannot be read at "
            "random; prepare it again: tfds build --file_format=array_record"
        ) from None
    except ValueError as error:
        raise ValueError(f"{name}: {str(error).splitlines()[0]}") from None


def _choose_image(features: Mapping[str, Any], wanted: str, name: str) -> str:
    import tensorflow_datasets as tfds

    images = sorted(f for f, kind in features.items() if isinstance(kind, tfds.features.Image))
    if len(images) == 1 and not wanted:
        return images[0]
    return choose_column(images, wanted, IMAGE_NAMES, f"{name}: image", "image")


def _choose_caption(features: Mapping[str, Any], wanted: str, name: str) -> str:
    """Return a feature with text by its path, such as captions/text; else a ClassLabel."""
    import tensorflow_datasets as tfds

    # The order of features is not that of their definition, nor always the same.
    texts = sorted(text for feature, kind in features.items() for text in _texts(feature, kind))
    labels = sorted(f for f, kind in features.items() if isinstance(kind, tfds.features.ClassLabel))
    if not wanted:
        customary = [text for text in texts if _rank(text) < len(CAPTION_NAMES)]
        for candidates in (sorted(customary, key=_rank)[:1], texts or labels):
            if len(candidates) == 1:
                return candidates[0]
    return choose_column([*texts, *labels], wanted, CAPTION_NAMES, f"{name}: caption", "caption")


def _rank(text: str) -> int:
    """Return how customary the name of a caption is, 0 being the most."""
    name = text.split("/")[0].lower()
    return CAPTION_NAMES.index(name) if name in CAPTION_NAMES else len(CAPTION_NAMES)


def _texts(name: str, feature: Any) -> list[str]:
    """Return the paths of the texts that a feature holds itself or in a sequence."""
    import tensorflow_datasets as tfds

    inner = feature.feature if isinstance(feature, tfds.features.Sequence) else feature
    if isinstance(inner, tfds.features.Text):
        return [name]
    if isinstance(inner, tfds.features.FeaturesDict):
        return [
            f"{name}/{key}" for key, kind in inner.items() if isinstance(kind, tfds.features.Text)
        ]
    return []


def _count_captions(feature: Any, count: int) -> np.ndarray | None:
    """Return how many captions each record has; None where records hold lists of captions."""
    import tensorflow_datasets as tfds

    is_list = isinstance(feature, tfds.features.Sequence)
    return None if is_list else np.ones(count, np.uint32)


def _fingerprint(builder: Any, split: str, count: int) -> str:
    """Return a sha256 of what the split is called and of the files it lies in."""
    digest = hashlib.sha256(repr((builder.info.full_name, split, count)).encode())
    for instruction in builder.info.splits[split].file_instructions:
        path = builder.data_path / instruction.filename
        size = path.stat().length
        digest.update(repr((path.name, size)).encode())
        with storage.open_reader(str(path)) as file:
            digest.update(storage.sample(file, 0, size))
    return digest.hexdigest()
