"""Data sets of TensorFlow Datasets (the extra `[tfds]`), read at random without TensorFlow."""

import contextlib
import hashlib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from otter_jax.data import storage
from otter_jax.data.columns import IMAGE_NAMES, choose_column
from otter_jax.data.records import Record, RecordError, clean_caption
from otter_jax.data.tfds_captions import CaptionFeature, caption_features, choose_caption

UNFINISHED = ".unfinished"  # What `otter-jax prepare` keeps in its folder until it is finished.
INFO = "dataset_info.json"

# [scheme://]NAME_OR_FOLDER[:SPLIT], where a split may be a slice such as train[:1000].
_PATH = re.compile(r"((?:\w+://)?[^:]+)(?::(.+))?")
_SAMPLED = 32  # Records whose texts are looked at where names do not say which the captions are.


class TfdsSource:
    """A split of a data set that was prepared in a format of random access, such as ArrayRecord.

    The image is a feature of type Image; tfds_captions.py says which feature the captions are.
    Hardly anything is read when the source is opened, so that nothing is `skipped`: a record that
    cannot be used shows when it is read. Many records are best read by `read_many`: a file is asked
    for all of them at once, where each alone would cost time in proportion to the file's length.
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
            ValueError: If it is in another format, if a split or feature does not exist, or if it
                is not plain which feature the captions are.
        """
        found = _PATH.fullmatch(path)
        if not found:
            raise ValueError(f"{name}: write tfds:NAME[:SPLIT] or tfds:FOLDER[:SPLIT]")
        self.name = name
        with _explaining_damage(name):
            self._open(found, options, split)

    def _open(self, found: re.Match[str], options: Mapping[str, str], split: str | None) -> None:
        name = self.name
        builder = _open_builder(found[1], name, options.get("data_dir"))
        splits = ", ".join(builder.info.splits)
        if not (split := found[2] or split):
            raise ValueError(
                f"{name}: say which split is meant, as tfds:NAME:SPLIT; it has {splits}"
            )
        features = builder.info.features
        _refuse_other_records(features, name)
        self._image = _choose_image(features, options.get("image", ""), name)
        self._data = _open_split(builder, split, name)
        self._caption = choose_caption(
            caption_features(features), options.get("caption", ""), name, self._sample
        )
        self.caption_counts = None if self._caption.is_list else np.ones(len(self._data), np.uint32)
        self.skipped: dict[str, int] = {}
        self.fingerprint = _fingerprint(builder, split, len(self._data))

    def __len__(self) -> int:
        """Return the number of records."""
        return len(self._data)

    def __getitem__(self, i: int) -> Record:
        """Read record `i`; RecordError if it has no caption or cannot be read."""
        (record,) = self.read_many([i])
        if isinstance(record, RecordError):
            raise record
        return record

    def read_many(self, numbers: Sequence[int]) -> list[Record | RecordError]:
        """Read some records at once, see `records.read_records`; IndexError where there is none."""
        numbers = [range(len(self))[number] for number in numbers]
        return [
            self._record(number, stored)
            for number, stored in zip(numbers, self._read(numbers), strict=True)
        ]

    def _read(self, numbers: Sequence[int]) -> list[Mapping[str, Any] | RecordError]:
        """Return what is stored of some records; RecordError of one that is damaged."""
        try:
            return list(self._data.__getitems__(list(numbers)))
        except MemoryError:
            raise
        except Exception as error:  # Of C++ and of protobuf, as many types as kinds of damage.
            if len(numbers) == 1:
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                return [RecordError(f"damaged record: {reason:.200}")]
            return [stored for number in numbers for stored in self._read([number])]

    def _record(self, number: int, stored: Mapping[str, Any] | RecordError) -> Record | RecordError:
        if isinstance(stored, RecordError):
            return stored
        try:
            captions = self._captions(stored)
        except RecordError as error:
            return error
        image = stored[self._image]
        if not isinstance(image, bytes):
            return RecordError("missing image")
        return Record(str(number), image, captions[0], {}, captions)

    def _captions(self, stored: Mapping[str, Any]) -> tuple[str, ...]:
        values = self._caption.values(stored)
        if self._caption.class_names is not None:
            if not values:
                raise RecordError("no label")
            return tuple(dict.fromkeys(self._class_name(int(value)) for value in values))
        try:
            texts = [clean_caption(text) for text in values]
        except UnicodeDecodeError:
            raise RecordError("caption not UTF-8") from None
        captions = tuple(dict.fromkeys(filter(None, texts)))
        if not captions:
            raise RecordError("empty caption")
        return captions

    def _class_name(self, label: int) -> str:
        if not 0 <= label < len(self._caption.class_names):  # -1: a record without a label.
            raise RecordError("no label")
        return self._caption.class_names[label].replace("_", " ")

    def _sample(self, feature: CaptionFeature) -> list[str]:
        """Return what a feature holds in some records, evenly spread: what its texts look like."""
        count = min(_SAMPLED, len(self))
        numbers = np.unique(np.linspace(0, len(self) - 1, count).astype(int)).tolist()
        return [
            text
            for stored in (self._read(numbers) if numbers else ())
            if not isinstance(stored, RecordError)
            for text in feature.texts(stored)
        ]


@contextlib.contextmanager
def _explaining_damage(name: str) -> Iterator[None]:
    """Make one line of what TFDS raises on damaged files, of as many types as it has parts."""
    try:
        yield
    except (ValueError, OSError, ModuleNotFoundError, MemoryError):
        raise
    except Exception as error:
        raise ValueError(f"{name}: damaged data set ({_reason(error):.200})") from None


def _refuse_other_records(features: Any, name: str) -> None:
    """Refuse a data set whose records are no dictionaries, such as episodes (ValueError)."""
    import tensorflow_datasets as tfds

    if not isinstance(features, tfds.features.FeaturesDict):
        kind = type(features).__name__
        raise ValueError(f"{name}: its records are each a {kind}, and no image with its caption")


def _open_builder(path: str, name: str, data_dir: str | None) -> Any:
    local = Path(path).expanduser()
    # A bare name is a folder if there is one that looks like a data set.
    prepared = any((local / each).exists() for each in (INFO, UNFINISHED))
    is_folder = prepared or path.startswith(("/", ".", "~")) or "://" in path
    if is_folder and "://" not in path:
        path = str(local.absolute())  # As ArrayRecord asks for.
    if (Path(path) / UNFINISHED).is_dir() and not (Path(path) / INFO).is_file():
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
        if is_folder:
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
    first = (str(error).splitlines() or [""])[0].rpartition(": ")[2]
    return first or type(error).__name__


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
