"""How published data sets make captions out of what they come with, and their official tables.

Conceptual Captions, YFCC and WIT are published as tables of addresses; whoever uses them downloads
the images. Most do so with img2dataset, whose shards `webdataset:` reads, with the table's other
columns as metadata. `official:FILE?images=FOLDER` reads the table itself:

| recipe | table | image |
|---|---|---|
| conceptual_captions | caption, url, without a line of names | ROW.jpg, the first row being 0 |
| yfcc15m | the 25 columns of YFCC100M, without a line of names | PHOTOID.jpg |
| wit | as its first line names them | ROW.jpg |
"""

import hashlib
import re
import urllib.parse
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from otter_jax.data.records import (
    IMAGE_SUFFIXES,
    Record,
    RecordError,
    Source,
    clean_captions,
    read_image,
    size_of_image,
)
from otter_jax.data.sources import open_source
from otter_jax.data.specs import Spec

_YFCC100M_COLUMNS = (
    "line", "photoid", "hash", "uid", "unickname", "datetaken", "dateuploaded", "capturedevice",
    "title", "description", "usertags", "machinetags", "longitude", "latitude", "accuracy",
    "pageurl", "downloadurl", "licensename", "licenseurl", "serverid", "farmid", "secret",
    "secretoriginal", "ext", "marker",
)  # fmt: skip
_WIT_CAPTIONS = (
    "caption_reference_description",
    "caption_alt_text_description",
    "caption_attribution_description",
)
_TAG = re.compile(r"<[/!a-zA-Z][^<>]*>")


class Recipe(NamedTuple):
    """One published data set.

    Attributes:
        columns: Of its table; empty where the first line names them.
        image: The column that the image files are called by; "": they are numbered by row.
        captions: Captions from the columns, or from metadata of the same names; may hold "".
    """

    columns: tuple[str, ...]
    image: str
    captions: Callable[[Mapping[str, str]], list[str]]


def clean_yfcc(text: str) -> str:
    """Return a title or description as OTTER's release cleans it: decoded, without HTML tags."""
    decoded = urllib.parse.unquote(text).replace("+", " ")
    return " ".join(_TAG.sub("", decoded).split())


def yfcc_captions(columns: Mapping[str, str]) -> list[str]:
    """Return title and description in one caption, with a full stop between them."""
    parts = [clean_yfcc(columns.get(name) or "") for name in ("title", "description")]
    return [". ".join(part for part in parts if part)]


def wit_captions(columns: Mapping[str, str]) -> list[str]:
    """Return the caption below the image, else its alternative text, else its attribution."""
    found = (columns.get(name) or "" for name in _WIT_CAPTIONS)
    return [next((text for text in found if text.strip()), "")]


RECIPES = {
    "conceptual_captions": Recipe(("caption", "url"), "", lambda row: [row.get("caption") or ""]),
    "conceptual_12m": Recipe(("url", "caption"), "", lambda row: [row.get("caption") or ""]),
    "yfcc15m": Recipe(_YFCC100M_COLUMNS, "photoid", yfcc_captions),
    "wit": Recipe((), "", wit_captions),
}


def open_pairs(spec: str, recipe: str = "") -> Source:
    """Open a SPEC, or `official:FILE?images=FOLDER`, with the captions of a recipe.

    Raises:
        ValueError: If there is no such recipe, or if an official table is not named with its own.
        FileNotFoundError: For a path at which there is nothing.
    """
    known = ", ".join(RECIPES)
    if recipe and recipe not in RECIPES:
        raise ValueError(f"there is no recipe {recipe!r}; choose from {known}")
    parsed = Spec.parse(spec)
    if parsed.kind != "official":
        source = open_source(spec)
        return Recaptioned(source, RECIPES[recipe]) if recipe else source
    parsed.refuse_options_but("images")
    if not recipe or "images" not in parsed.options:
        raise ValueError(f"{spec}: write official:FILE?images=FOLDER, and a recipe: {known}")
    return OfficialTable(Path(parsed.path), Path(parsed.options["images"]), RECIPES[recipe], spec)


class Recaptioned:
    """A source whose captions are made from each record's metadata."""

    def __init__(self, source: Source, recipe: Recipe) -> None:
        """Wrap a source; records whose metadata give no caption turn out unusable when read."""
        self._source = source
        self._recipe = recipe
        self.name = source.name
        self.skipped = source.skipped
        self.fingerprint = source.fingerprint

    def __len__(self) -> int:
        """Return the number of records."""
        return len(self._source)

    def __getitem__(self, i: int) -> Record:
        """Read record `i`; RecordError if it has no caption by the recipe."""
        record = self._source[i]
        texts = {key: text for key, text in record.metadata.items() if isinstance(text, str)}
        captions = _captions(self._recipe, texts)
        return record._replace(caption=captions[0], captions=captions)


class OfficialTable:
    """The rows of a table of tab-separated values that have an image in a folder.

    Eight bytes a row are kept in memory. What cannot be used, such as an address from which nothing
    could be downloaded, is left out and counted in `skipped` by reason.
    """

    def __init__(self, path: Path, images: Path, recipe: Recipe, name: str) -> None:
        """Read all rows once, and ask the file system for every image.

        Raises:
            FileNotFoundError: If there is no such table or folder.
            ValueError: If not one row is usable.
        """
        for place, there in ((path, path.is_file()), (images, images.is_dir())):
            if not there:
                raise FileNotFoundError(f"{name}: there is no {place}")
        self.name = name
        self._path, self._images, self._recipe = path, images, recipe
        self._columns = recipe.columns
        self._places = array("Q")  # Row and offset, in turn.
        skipped: Counter[str] = Counter()
        digest = hashlib.sha256()
        for row, offset, line in self._lines():
            try:
                image, captions, _ = self._parse(row, line)
                size = size_of_image(image)
            except RecordError as error:
                skipped[str(error)] += 1
                continue
            self._places.extend((row, offset))
            digest.update(repr((image.name, size, captions)).encode("utf-8", "replace"))
        self.skipped = dict(sorted(skipped.items()))
        self.fingerprint = digest.hexdigest()
        if not len(self):
            raise ValueError(f"{name}: no usable row in {path}, {self.skipped}")

    def __len__(self) -> int:
        """Return the number of usable rows."""
        return len(self._places) // 2

    def __getitem__(self, i: int) -> Record:
        """Read row `i` and its image; RecordError if the image has gone."""
        number = range(len(self))[i]
        row, offset = self._places[2 * number : 2 * number + 2]
        with self._path.open("rb") as file:
            file.seek(offset)
            image, captions, columns = self._parse(row, file.readline())
        return Record(image.stem, read_image(image), captions[0], columns, captions)

    def _lines(self) -> Iterator[tuple[int, int, bytes]]:
        """Yield the number, the offset and the text of every row; sets the names of columns."""
        with self._path.open("rb") as file:
            if not self._columns:
                self._columns = tuple(_split(file.readline()))
            row, offset = 0, file.tell()
            for line in iter(file.readline, b""):
                yield row, offset, line
                row, offset = row + 1, offset + len(line)

    def _parse(self, row: int, line: bytes) -> tuple[Path, tuple[str, ...], dict[str, str]]:
        fields = _split(line)
        if len(fields) != len(self._columns):
            raise RecordError("broken row")
        columns = dict(zip(self._columns, fields, strict=True))
        captions = _captions(self._recipe, columns)
        stem = columns[self._recipe.image] if self._recipe.image else str(row)
        return self._find_image(stem), captions, columns

    def _find_image(self, stem: str) -> Path:
        if not stem or "/" in stem or stem.startswith("."):
            raise RecordError("unsafe name")
        files = (self._images / f"{stem}{suffix}" for suffix in IMAGE_SUFFIXES)
        found = next((file for file in files if file.is_file()), None)
        if found is None:
            raise RecordError("missing image")
        return found


def _split(line: bytes) -> list[str]:
    try:
        return line.decode().rstrip("\r\n").split("\t")
    except UnicodeDecodeError:
        raise RecordError("row not UTF-8") from None


def _captions(recipe: Recipe, columns: Mapping[str, str]) -> tuple[str, ...]:
    captions = clean_captions(recipe.captions(columns))
    if not captions:
        raise RecordError("empty caption")
    return captions
