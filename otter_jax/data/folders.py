"""Image files in folders: a class a folder, or captions in a file beside every image."""

import dataclasses
import hashlib
import logging
import os
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sized
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
    other_image_suffix,
    parse_metadata,
    read_image,
    size_of_image,
)
from otter_jax.data.text_files import split_lines

_MOST_BYTES = {".txt": MAX_CAPTION_BYTES, ".json": 1 << 20}  # What is read of a file.

_NAMED = 3  # Files and folders, in what is said of more.
CAPTIONS = ("folders", "files")  # Values of the option `captions`.
METADATA_FILES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")  # Hugging Face's.
# Folders of a split, of all images, or numbered as img2dataset numbers them.
_NO_CLASS = re.compile(
    r"\d{4,}|train(ing)?|val(id|idation)?|test(ing)?|dev|data(set)?|images?|img|imgs|pictures|files"
)

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


@dataclasses.dataclass
class Found:
    """What is found on the way through a folder besides its images.

    Attributes:
        skipped: What cannot be used, by reason.
        classes: The first folders of the images that can be used.
        hidden: Folders that were not entered, by their paths.
        other_files: The first few files that are no images.
    """

    skipped: Counter[str] = dataclasses.field(default_factory=Counter)
    classes: set[str] = dataclasses.field(default_factory=set)
    hidden: list[str] = dataclasses.field(default_factory=list)
    other_files: list[str] = dataclasses.field(default_factory=list)

    def notes(self, root: Path, *, names_are_captions: bool) -> list[str]:
        """Return what should be said of a folder, a line each."""
        notes = []
        if names_are_captions:
            notes.append(f"{root}: captions are the names of {_count(self.classes, 'folder')}")
        if self.hidden:
            names = ", ".join(self.hidden[:_NAMED])
            notes.append(f"{root}: {_count(self.hidden, 'hidden folder')} skipped, such as {names}")
        return notes

    def others(self) -> str:
        """Return which files lie beside the images, where captions would have to be."""
        if not self.other_files:
            return ""
        return (
            f"; captions would lie in a .txt or .json of the image's name, beside them is "
            f"{', '.join(self.other_files)}"
        )


def _count(items: Sized, what: str) -> str:
    return f"{len(items):,} {what}{'s' * (len(items) != 1)}"


class Folder:
    """The images below a folder, in the order of their paths.

    If most images have a text file of their name beside them (`cat.jpg` and `cat.txt`), or a json
    file with a `caption` or `captions`, as img2dataset's layout `files` has, these hold the
    captions: the text file one a line, else the json file. Otherwise the caption is the name of the
    first folder below the root, with spaces for underscores; but names such as `00000` or `train`
    are only taken for captions if that is said, by `captions="folders"`. Links to folders are
    followed, but no folder is entered twice, and none that is hidden or a program's own. What
    cannot be used is left out and counted in `skipped` by reason.

    Attributes:
        notes: What should be said before the pairs are used, a line each.
    """

    def __init__(self, root: Path, name: str, captions: str = "") -> None:
        """Find the images, and read what lies beside them.

        Args:
            root: The folder.
            name: What to call it in logs.
            captions: "folders" if captions are the names of folders, "files" if they lie beside
                the images; "": as is found.

        Raises:
            FileNotFoundError: If there is no such folder.
            ValueError: If it has not one usable image, or if its folders' names are no captions.
        """
        if captions not in ("", *CAPTIONS):
            raise ValueError(f"{name}: captions={captions}; it is {' or '.join(CAPTIONS)}")
        if not root.is_dir():
            raise FileNotFoundError(f"{name}: there is no folder {root}")
        self.name = name
        self._root = root
        self._has_captions = has_captions(root) if not captions else captions == "files"
        if not (self._has_captions or captions):
            refuse_names_of_no_class(root, name)
        found = Found()
        self._find_usable(found)
        self.skipped = dict(sorted(found.skipped.items()))
        if not len(self._paths):
            raise ValueError(
                f"{name}: no usable image in {root} ({in_words(self.skipped)}){found.others()}"
            )
        self.notes = found.notes(root, names_are_captions=not self._has_captions)

    def _find_usable(self, found: Found) -> None:
        self._paths = PackedStrings()
        self.caption_counts = array("I")
        digest = hashlib.sha256()
        for path in image_paths(self._root, found):
            try:
                size, texts = size_of_image(self._root / path), self._captions(path)
            except RecordError as error:
                found.skipped[str(error)] += 1
                continue
            self._paths.append(path)
            self.caption_counts.append(len(texts))
            digest.update(repr((os.fsencode(path), size, texts)).encode())
            found.classes.add(path.partition(os.sep)[0])
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._paths)

    def __getitem__(self, i: int) -> Record:
        """Read image `i`; RecordError if its files have gone."""
        path = self._paths[range(len(self))[i]]
        captions = self._captions(path)
        image = read_image(self._root / path)
        return Record(self.key(i), image, captions[0], {}, captions)

    def key(self, i: int) -> str:
        """Return what image `i` is called: its path in the folder, without the suffix."""
        return os.path.splitext(self._paths[range(len(self))[i]])[0]

    def _captions(self, path: str) -> tuple[str, ...]:
        if not self._has_captions:
            return (class_name(path),)
        if not _is_captioned(self._root / path):
            raise RecordError("no text file")
        captions = _captions_beside(self._root / path)
        if not captions:
            raise RecordError("empty caption")
        return captions


def refuse_names_of_no_class(root: Path, name: str) -> None:
    """Refuse a folder whose folders' names are plainly not what their images show.

    Args:
        root: A folder with images in folders, without captions beside them.
        name: Its SPEC, for an error.

    Raises:
        ValueError: If a table beside the images has the captions, or if the folders are those of
            a split or numbered as img2dataset numbers them.
    """
    inside = sorted(each for each in os.listdir(root) if not is_hidden(each))
    for folder in (root, *(root / each for each in inside)):
        for table in METADATA_FILES:
            if (folder / table).is_file():
                raise ValueError(
                    f"{name}: {folder / table} has the captions: write csv:{folder / table}; to "
                    "take the names of folders for captions, add ?captions=folders"
                )
    names: dict[str, None] = {}
    for path in image_paths(root):
        first, separator, _ = path.partition(os.sep)
        if separator and not _NO_CLASS.fullmatch(first.lower()):
            return
        if separator:
            names[first] = None
    if names:
        shown = list(names)[:_NAMED]
        raise ValueError(
            f"{name}: there are no captions beside the images, and the names of folders "
            f"({', '.join(shown)}) are none; if they are meant to be, add ?captions=folders, or "
            f"write folder:{root / shown[0]} if its folders are the classes"
        )


def has_captions(root: Path) -> bool:
    """Return whether captions lie beside a folder's images, rather than in its folders' names.

    The majority decides; where a minority has captions, that these are not used is logged.
    """
    with_captions = images = 0
    for path in image_paths(root):
        images += 1
        try:
            with_captions += _is_captioned(root / path)
        except RecordError:  # There is a file that cannot be read.
            with_captions += 1
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
        lines = split_lines(clean_caption(_read_beside(image, ".txt")))
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
    try:
        with file.open("rb") as opened:
            return opened.read(_MOST_BYTES[suffix])
    except OSError as error:
        raise RecordError(f"unreadable {suffix} ({error.strerror})") from None


def class_name(path: str) -> str:
    """Return the class of an image by its path: its first folder, with spaces for underscores.

    Raises:
        RecordError: If it lies in none, or if the folder's name cannot be a caption.
    """
    folder, separator, _ = path.partition(os.sep)
    caption = folder.replace("_", " ").strip()
    if not separator:
        raise RecordError("image beside the class folders")
    if not caption or not caption.isprintable():
        raise RecordError("folder name that is no caption")
    return caption


def image_paths(root: Path, found: Found | None = None) -> Iterator[str]:
    """Yield the image files below a folder, in a fixed order, by their paths from there.

    Args:
        root: The folder.
        found: Gets what else there is.
    """

    def refuse(error: OSError) -> None:
        raise error  # Rather than train on less without a word.

    found = Found() if found is None else found
    entered: set[tuple[int, int]] = set()
    for folder, subfolders, files in os.walk(root, onerror=refuse, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in entered:  # A link leads back to it.
            subfolders.clear()
            continue
        entered.add((status.st_dev, status.st_ino))
        here = os.path.relpath(folder, root)
        found.hidden += [
            os.path.normpath(os.path.join(here, each)) for each in sorted(subfolders)
            if is_hidden(each)
        ]  # fmt: skip
        subfolders[:] = sorted(each for each in subfolders if not is_hidden(each))
        stems = {os.path.splitext(file)[0] for file in files if is_image_name(file)}
        for file in sorted(files):
            if is_image_name(file):
                yield os.path.normpath(os.path.join(here, file))
            elif (suffix := other_image_suffix(file)) and os.path.splitext(file)[0] not in stems:
                found.skipped[f"image format that is not read ({suffix})"] += 1
            elif len(found.other_files) < _NAMED and not file.startswith("."):
                found.other_files.append(file)


def is_hidden(folder: str) -> bool:
    """Return whether a folder is hidden, or one that a file system or program keeps for itself."""
    return folder.startswith(".") or folder in ("@eaDir", "__MACOSX", "lost+found")
