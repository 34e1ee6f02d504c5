"""Features of a source's pairs as both towers are now, in files: more than memory would hold."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from otter_jax.data import images
from otter_jax.data.records import Record, RecordError, Source, read_in_order
from otter_jax.embedding.encoder import Encoder
from otter_jax.embedding.features import FeatureStore, in_parts
from otter_jax.embedding.image_collections import ImageCollection, read_images, reading_ahead
from otter_jax.terminal import progress, say

PART = 256  # Pairs at a time.


class PairFeatures(NamedTuple):
    """What the towers make of the pairs that can be read."""

    image: np.ndarray  # float16 [n, width], unit rows.
    text: np.ndarray  # float16 [n, width], unit rows.
    numbers: np.ndarray  # int [n], which records of the source.
    keys: Sequence[str] = ()  # What they are called, where that is known.


def embed_pairs(
    source: Source,
    encoder: Encoder,
    folder: Path,
    numbers: Sequence[int] | None = None,
    store: FeatureStore | None = None,
) -> PairFeatures:
    """Run both towers over the pairs of a source; of several captions, over the first.

    Args:
        source: the pairs.
        encoder: with the variables of now; images are seen as in evaluation.
        folder: gets the files that the features are mapped from: 2 bytes a number.
        numbers: ascending, which records are wanted; all of them if not given.
        store: where it has the features of the source's images, these are taken.

    Raises:
        ValueError: if not one image can be read.
    """
    wanted = np.arange(len(source)) if numbers is None else np.asarray(numbers)
    known = store and store.known_images(source.fingerprint)
    if known:
        say("the features of the images are known")
        kept = np.isin(known["numbers"], wanted)
        readable, rows = known["numbers"][kept], known["features"][kept]
        noted = {
            number: (record.key, record.caption)
            for number, record in read_in_order(source, readable.tolist())
            if isinstance(record, Record)
        }
        kept = np.isin(readable, list(noted))  # All, unless a file has gone since.
        readable, rows = readable[kept], rows[kept]
        image = _create(folder / "image.npy", len(readable), encoder.image_width)
        _fill(image, [rows])
    else:
        image, readable, noted = _embed_images(source, encoder, folder, wanted)
    if not len(readable):
        raise ValueError(f"{source.name}: not one of {len(wanted)} images can be read")
    if left_out := len(wanted) - len(readable):
        say(f"{source.name}: {left_out} images cannot be read and are left out")
    keys, captions = zip(*(noted[int(number)] for number in readable), strict=True)
    return PairFeatures(
        image[: len(readable)], _embed_captions(captions, encoder, folder), readable, keys
    )


def _embed_captions(captions: Sequence[str], encoder: Encoder, folder: Path) -> np.ndarray:
    """Return features of n captions, of which equal ones go through the tower once."""
    places = {caption: place for place, caption in enumerate(dict.fromkeys(captions))}
    different = _create(folder / "text.npy", len(places), encoder.text_width)
    parts = (encoder.text_features(part) for part in in_parts(places, encoder, PART))
    _fill(different, progress(parts, len(places), "captions of pairs", count=len))
    if len(places) == len(captions):
        return different
    text = _create(folder / "text_of_pairs.npy", len(captions), encoder.text_width)
    for start in range(0, len(captions), PART):
        rows = slice(start, start + PART)
        text[rows] = different[[places[caption] for caption in captions[rows]]]
    return text


def _embed_images(
    source: Source, encoder: Encoder, folder: Path, wanted: np.ndarray
) -> tuple[np.ndarray, np.ndarray, dict[int, tuple[str, str]]]:
    """Return features of the images that can be read, their numbers, and keys and captions."""
    noted: dict[int, tuple[str, str]] = {}
    read = reading_ahead(source, wanted)

    def decode(place: int) -> np.ndarray:
        try:
            record = read(place)
        except RecordError as error:
            raise images.ImageError(str(error)) from None
        noted[int(wanted[place])] = record.key, record.caption
        return images.decode(record.image)

    unreadable: dict[int, str] = {}
    collection = ImageCollection(wanted, decode, source.fingerprint)
    rows = read_images(collection, encoder, unreadable)
    image = _create(folder / "image.npy", len(wanted), encoder.image_width)
    parts = (encoder.image_features(part) for part in in_parts(rows, encoder, PART))
    _fill(image, progress(parts, len(wanted), "images of pairs", count=len))
    return image, np.delete(wanted, list(unreadable)), noted


def _create(path: Path, count: int, width: int) -> np.ndarray:
    return np.lib.format.open_memmap(path, "w+", np.float16, (count, width))


def _fill(rows: np.ndarray, parts: Iterable[np.ndarray]) -> None:
    """Write parts behind each other, as unit rows: float16 has no room for all lengths."""
    filled = 0
    for part in parts:
        length = np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-12)
        rows[filled : filled + len(part)] = part / length
        filled += len(part)
