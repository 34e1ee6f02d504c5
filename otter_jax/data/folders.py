"""Image files in folders: a class a folder, or captions in a file beside every image."""

import hashlib
import logging
import os
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from otter_jax.data.records import (
    MAX_CAPTION_BYTES,
    Record,
    RecordError,
    choose_captions,
    clean_caption,
    clean_captions,
    in_words,
    is_image_name,
    parse_metadata,
    read_image,
    size_of_image,
)

_MOST_BYTES = {".txt": MAX_CAPTION_BYTES, ".json": 1 << 20}  # What is read of a file.

_log = logging.getLogger(__name__)


class PackedStrings:
    """Many short strings in two arrays, lest ten million names be ten million Python objects.

    A list that only grows; of strings that were no UTF-8, too.
    """

    def __init__(self, strings: Iterable[str] = ()) -> None:
        """Start with some strings."""
        self._blob = bytearray()
        self._ends = array("Q", [0])
        for string in strings:
            self.append(string)

    def append(self, string: str) -> None:
        """Add a string at the end."""
        self._blob += string.encode("utf-8", "surrogateescape")
        self._ends.append(len(self._blob))

    def __len__(self) -> int:
        """Return the number of strings."""
        return len(self._ends) - 1

    def __getitem__(self, i: int) -> str:
        """Return string `i`, counted from 0."""
        return self._blob[self._ends[i] : self._ends[i + 1]].decode("utf-8", "surrogateescape")


class Folder:
    """The images below a folder, in the order of their paths.

    If most images have a text file of their name beside them (`cat.jpg` and `cat.txt`), or a json
    file with a `caption` or `captions`, as img2dataset's layout `files` has, these hold the
    captions: the text file one a line, else the json file. Otherwise the caption is the name of the
    first folder below the root, with spaces for underscores. Links to folders are followed, but no
    folder is entered twice. What cannot be used is left out and counted in `skipped` by reason.
    """

    def __init__(self, root: Path, name: str) -> None:
        """Find the images, and read what lies beside them.

        Raises:
            FileNotFoundError: If there is no such folder.
            ValueError: If it has not one usable image.
        """
        if not root.is_dir():
            raise FileNotFoundError(f"{name}: there is no folder {root}")
        self.name = name
        self._root = root
        self._has_captions = has_captions(root)
        self._paths = PackedStrings()
        self.caption_counts = array("I")
        skipped: Counter[str] = Counter()
        digest = hashlib.sha256()
        for path in _image_paths(root):
            try:
                size, captions = size_of_image(root / path), self._captions(path)
            except RecordError as error:
                skipped[str(error)] += 1
                continue
            self._paths.append(path)
            self.caption_counts.append(len(captions))
            digest.update(repr((os.fsencode(path), size, captions)).encode())
        self.skipped = dict(sorted(skipped.items()))
        self.fingerprint = digest.hexdigest()
        if not len(self._paths):
            raise ValueError(f"{name}: no usable image in {root} ({in_words(self.skipped)})")

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._paths)

    def __getitem__(self, i: int) -> Record:
        """Read image `i`; RecordError if its files have gone."""
        path = self._paths[range(len(self))[i]]
        captions = self._captions(path)
        image = read_image(self._root / path)
        return Record(os.path.splitext(path)[0], image, captions[0], {}, captions)

    def _captions(self, path: str) -> tuple[str, ...]:
        if not self._has_captions:
            return (_class_name(path),)
        if not _is_captioned(self._root / path):
            raise RecordError("no text file")
        captions = _captions_beside(self._root / path)
        if not captions:
            raise RecordError("empty caption")
        return captions


def has_captions(root: Path) -> bool:
    """Return whether captions lie beside a folder's images, rather than in its folders' names.

    The majority decides; where a minority has captions, that these are not used is logged.
    """
    with_captions = images = 0
    for path in _image_paths(root):
        images += 1
        with_captions += _is_captioned(root / path)
    if 0 < 2 * with_captions <= images:
        _log.warning(
            "%s: %d of %d images have a caption in a file beside them, too few to be meant: "
            "the names of the folders are the captions",
            root,
            with_captions,
            images,
        )
    return 2 * with_captions > images


def _is_captioned(image: Path) -> bool:
    """Return whether there is a file beside an image that is for its captions, if it has any."""
    if image.with_suffix(".txt").is_file():
        return True
    return not {"caption", "captions"}.isdisjoint(parse_metadata(_read_beside(image, ".json")))


def _captions_beside(image: Path) -> tuple[str, ...]:
    """Return the captions in the files beside an image; RecordError if they are not UTF-8."""
    try:
        lines = clean_caption(_read_beside(image, ".txt")).splitlines()
    except UnicodeDecodeError:
        raise RecordError("caption not UTF-8") from None
    return clean_captions(lines) or choose_captions(
        "", parse_metadata(_read_beside(image, ".json"))
    )


def _read_beside(image: Path, suffix: str) -> bytes:
    """Return the beginning of the file of that suffix beside an image; nothing if there is none."""
    file = image.with_suffix(suffix)
    if not file.is_file():  # Opening a pipe would wait for ever.
        return b""
    with file.open("rb") as opened:
        return opened.read(_MOST_BYTES[suffix])


def _class_name(path: str) -> str:
    folder, separator, _ = path.partition(os.sep)
    caption = folder.replace("_", " ").strip()
    if not separator:
        raise RecordError("image beside the class folders")
    if not caption or not caption.isprintable():
        raise RecordError("folder name that is no caption")
    return caption


def _image_paths(root: Path) -> Iterator[str]:
    """Yield the image files below a folder, in a fixed order, by their paths from there."""

    def refuse(error: OSError) -> None:
        raise error  # Rather than train on less without a word.

    entered: set[tuple[int, int]] = set()
    for folder, subfolders, files in os.walk(root, onerror=refuse, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in entered:  # A link leads back to it.
            subfolders.clear()
            continue
        entered.add((status.st_dev, status.st_ino))
        subfolders.sort()
        for file in sorted(filter(is_image_name, files)):
            yield os.path.relpath(os.path.join(folder, file), root)
