"""Numbered images from anywhere, read when they are needed, and their features.

A test set of 125,000 images does not fit into memory; its features do. So images are decoded while
they are embedded, by threads ahead of the device, and those that cannot be read are noted.
"""

import collections
import dataclasses
import functools
import hashlib
import itertools
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from otter_jax.data import images
from otter_jax.data.records import (
    READ_AT_A_TIME,
    Record,
    RecordError,
    Source,
    name_record,
    read_in_order,
    read_records,
)
from otter_jax.data.tables import Table
from otter_jax.embedding.encoder import Encoder
from otter_jax.embedding.features import (
    FeatureStore,
    StoredArrays,
    fingerprint,
    rows_at_once,
)
from otter_jax.terminal import progress, say

THREADS = min(16, os.cpu_count() or 1)


@dataclasses.dataclass(frozen=True)
class ImageCollection:
    """Images that are read one by one.

    Attributes:
        keys: what each is called.
        decode: gives image i, uint8 [H, W, 3]; raises ImageError where it cannot be read.
        fingerprint: changes where any image changes.
        transformed: whether images have the model's size already.
    """

    keys: Sequence[str]
    decode: Callable[[int], np.ndarray]
    fingerprint: str
    transformed: bool = False

    def __len__(self) -> int:
        """Return the number of images, readable or not."""
        return len(self.keys)

    def load(self, number: int, encoder: Encoder) -> np.ndarray:
        """Return image `number` as the model sees it, uint8 [size, size, 3]."""
        image = self.decode(number)
        return image if self.transformed else encoder.transform(image)


def from_files(root: Path, names: Sequence[str]) -> ImageCollection:
    """Collect image files under a folder, by their paths in it.

    They count as unchanged while their sizes and times of modification are.
    """
    digest = hashlib.sha256()
    for name in names:
        status = os.stat(root / name)
        digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())

    def decode(number: int) -> np.ndarray:
        try:
            return images.decode((root / names[number]).read_bytes())
        except OSError as error:
            raise images.ImageError(str(error.strerror)) from None

    return ImageCollection(names, decode, digest.hexdigest())


def named_records(source: Source) -> Iterator[tuple[str, Record | None]]:
    """Yield a name for every record, and the record; None for one that turns out unusable."""
    for number, record in read_in_order(source, range(len(source))):
        if isinstance(record, RecordError):
            yield name_record(number), None
        else:
            yield name_record(number, record.key), record


def from_source(source: Source, keys: Sequence[str]) -> ImageCollection:
    """Collect the images of a source of pairs, by the names of its records."""
    read = reading_ahead(source, range(len(source)))

    def decode(number: int) -> np.ndarray:
        try:
            return images.decode(read(number).image)
        except RecordError as error:
            raise images.ImageError(str(error)) from None

    return ImageCollection(keys, decode, source.fingerprint)


def reading_ahead(source: Source, numbers: Sequence[int]) -> Callable[[int], Record]:
    """Return what reads record `numbers[place]` of a source by its place, in any thread.

    Where the source reads many records for little more than the price of one, those of the next
    places are read with it: places are best asked for in ascending order. RecordError is raised for
    a record that cannot be used.
    """
    if not hasattr(source, "read_many"):
        return lambda place: source[int(numbers[place])]
    lock = threading.Lock()

    @functools.lru_cache(maxsize=2)
    def read_part(part: int) -> list[Record | RecordError]:
        first = part * READ_AT_A_TIME
        return read_records(source, [int(n) for n in numbers[first : first + READ_AT_A_TIME]])

    def read(place: int) -> Record:
        part, within = divmod(place, READ_AT_A_TIME)
        with lock:  # Lest all threads read the same part.
            record = read_part(part)[within]
        if isinstance(record, RecordError):
            raise record
        return record

    return read


def from_rows(tables: Sequence[Table], rows: Sequence[tuple[int, int]]) -> ImageCollection:
    """Return the images of some rows: the number of its table and the row's own, of each."""
    keys = [tables[table].row(row).key for table, row in rows]
    if len(tables) == 1 and all(tables[0].row(row).image is not None for _, row in rows):
        return from_files(tables[0].folder, keys)
    if len(tables) > 1:
        keys = [f"{table}:{key}" for (table, _), key in zip(rows, keys, strict=True)]
    digest = hashlib.sha256(repr(rows).encode())
    digest.update("".join(table.fingerprint for table in tables).encode())

    def decode(number: int) -> np.ndarray:
        table, row = rows[number]
        try:
            return images.decode(tables[table].image(row))
        except RecordError as error:
            raise images.ImageError(str(error)) from None

    return ImageCollection(keys, decode, digest.hexdigest())


def from_arrays(pixels: np.ndarray) -> ImageCollection:
    """Collect images [n, size, size, 3] in memory, of the model's size."""
    keys = [str(number) for number in range(len(pixels))]
    return ImageCollection(keys, pixels.__getitem__, fingerprint(pixels), transformed=True)


class Features(NamedTuple):
    """The image tower's features of the images that can be read."""

    features: np.ndarray  # float32 [n, width].
    numbers: np.ndarray  # int [n], which images of the collection.
    unreadable: dict[str, str]  # Key of every other image, and why.


def compute_features(
    collection: ImageCollection, encoder: Encoder, store: FeatureStore, name: str
) -> Features:
    """Return the features of a collection; the image tower runs once for each state of its weights.

    Args:
        collection: the images.
        encoder: with the variables of now.
        store: what it has embedded before is not embedded again.
        name: what to call the images on the screen.

    Raises:
        ValueError: if not one image can be read.
    """

    def compute(known: Sequence[StoredArrays]) -> Iterator[StoredArrays]:
        found = sum(len(part["numbers"]) for part in known)
        first = found + sum(len(part["unreadable"]) for part in known)
        unreadable: dict[int, str] = {}
        readable: list[int] = []  # Of what the tower has been given.
        rows = read_images(collection, encoder, unreadable, first, readable)

        def part(features: np.ndarray, end: int) -> StoredArrays:
            """Return features with their numbers, and which images before `end` have none."""
            numbers, readable[: len(features)] = np.array(readable[: len(features)], int), []
            passed = [number for number in unreadable if number < end]
            reasons = [(collection.keys[number], unreadable.pop(number)) for number in passed]
            return {
                "features": features,
                "numbers": numbers,
                "unreadable": np.array(reasons, dtype=str).reshape(-1, 2),
            }

        parts = store.run_tower(encoder, "image", rows)
        for features in progress(parts, len(collection) - first, f"{name} images", count=len):
            found += len(features)
            is_last = not len(features)
            yield part(features, len(collection) if is_last else readable[len(features) - 1])
        if left_out := len(collection) - found:
            say(f"{name}: {left_out} images cannot be read and are left out")

    stored = store.images(encoder, collection.fingerprint, compute)
    if not len(stored["numbers"]):
        raise ValueError(f"{name}: not one of {len(collection)} images can be read")
    unreadable = dict(stored["unreadable"].tolist())
    return Features(stored["features"], stored["numbers"], unreadable)


def read_images(
    collection: ImageCollection,
    encoder: Encoder,
    unreadable: dict[int, str],
    first: int = 0,
    readable: list[int] | None = None,
) -> Iterator[np.ndarray]:
    """Yield transformed images in order, read by threads; note those that cannot be read.

    Two batches of the tower are read ahead, so that the next is ready when it has one behind it.

    Args:
        collection: the images.
        encoder: for their transform.
        unreadable: gets the number of each that cannot be read, and why.
        first: the number to begin with.
        readable: gets the number of each image before it is yielded, if given.
    """

    def load(number: int) -> np.ndarray | str:
        try:
            return collection.load(number, encoder)
        except images.ImageError as error:
            return str(error)

    numbers = range(first, len(collection))
    ahead = max(8 * THREADS, 2 * rows_at_once(encoder))
    for number, image in zip(numbers, _ahead(load, numbers, ahead), strict=True):
        if isinstance(image, str):
            unreadable[number] = image
            continue
        if readable is not None:
            readable.append(number)
        yield image


def _ahead(
    function: Callable[[int], np.ndarray | str], numbers: Iterable[int], count: int
) -> Iterator[np.ndarray | str]:
    """Yield results in order; `count` of them are computed ahead."""
    with ThreadPoolExecutor(THREADS) as pool:
        numbers = iter(numbers)
        waiting: collections.deque[Future[np.ndarray | str]] = collections.deque(
            pool.submit(function, number) for number in itertools.islice(numbers, count)
        )
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(pool.submit(function, n) for n in itertools.islice(numbers, 1))
