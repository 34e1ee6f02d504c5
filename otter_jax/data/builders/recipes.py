"""How published data sets make captions out of what they come with, and their official tables.

Conceptual Captions, YFCC and WIT are published as tables of addresses; whoever uses them downloads
the images. Most do so with img2dataset, whose shards `webdataset:` reads, with the table's other
columns as metadata. `official:FILE?images=FOLDER` reads the table itself:

| recipe | table | image |
|---|---|---|
| conceptual_captions | caption, url, without a line of names | ROW.jpg, the first row being 0 |
| conceptual_12m | url, caption, without a line of names | ROW.jpg |
| yfcc15m | the 25 columns of YFCC100M, without a line of names | PHOTOID.jpg |
| wit | as its first line names them; fields may stand in quotes | ROW.jpg |
"""

import re
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from otter_jax.data.builders.iconify.source import open_icons
from otter_jax.data.csv_table import Row, TextTable
from otter_jax.data.records import (
    IMAGE_SUFFIXES,
    CaptionRule,
    Progress,
    RecordError,
    Source,
    choose_captions,
    clean_captions,
    no_progress,
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
        captions: Captions from the columns, or from metadata of the same names.
        quoted: Whether fields may stand in quotes, as csv has them.
    """

    columns: tuple[str, ...]
    image: str
    captions: CaptionRule
    quoted: bool = False


def clean_yfcc(text: str) -> str:
    """Return a title or description as OTTER's release cleans it: decoded, without HTML tags."""
    decoded = urllib.parse.unquote(text).replace("+", " ")
    return " ".join(_TAG.sub("", decoded).split())


def conceptual_captions(text: str, columns: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the column `caption`, else the text, which img2dataset makes of it."""
    return clean_captions(_text(columns, "caption")) or clean_captions(text)


def yfcc_captions(text: str, columns: Mapping[str, Any]) -> tuple[str, ...]:
    """Return title and description in one caption, with a full stop between them."""
    del text
    parts = [clean_yfcc(_text(columns, name)) for name in ("title", "description")]
    return clean_captions(". ".join(part for part in parts if part))


def wit_captions(text: str, columns: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the caption below the image, else its alternative text, else its attribution."""
    del text
    return clean_captions([_text(columns, name) for name in _WIT_CAPTIONS])[:1]


def _text(columns: Mapping[str, Any], name: str) -> str:
    value = columns.get(name)
    return value if isinstance(value, str) else ""


RECIPES = {
    "conceptual_captions": Recipe(("caption", "url"), "", conceptual_captions),
    "conceptual_12m": Recipe(("url", "caption"), "", conceptual_captions),
    "yfcc15m": Recipe(_YFCC100M_COLUMNS, "photoid", yfcc_captions),
    "wit": Recipe((), "", wit_captions, quoted=True),
}


def open_pairs(
    spec: str,
    recipe: str = "",
    *,
    cache_dir: Path | None = None,
    progress: Progress = no_progress,
    processes: int | None = None,
) -> Source:
    """Open a SPEC, or `official:FILE?images=FOLDER` with the captions of a recipe, or icons.

    `cache_dir` and `progress` are those of `open_source`; icons, `iconify:PACKAGE`, are drawn
    into the former by some processes.

    Raises:
        ValueError: If there is no such recipe, or if an official table is not named with its own;
            for icons without a `cache_dir`.
        FileNotFoundError: For a path at which there is nothing.
        ModuleNotFoundError: If a package is missing.
    """
    known = ", ".join(RECIPES)
    if recipe and recipe not in RECIPES:
        raise ValueError(f"there is no recipe {recipe!r}; choose from {known}")
    parsed = Spec.parse(spec)
    if parsed.kind == "iconify":
        if recipe or cache_dir is None:
            raise ValueError(f"{spec}: icons need a folder to be drawn into, and have no recipe")
        return open_icons(parsed, cache_dir, processes=processes, progress=progress)
    if parsed.kind != "official":
        captions = RECIPES[recipe].captions if recipe else choose_captions
        return open_source(spec, captions=captions, cache_dir=cache_dir, progress=progress)
    parsed.refuse_options_but("images")
    if not recipe or "images" not in parsed.options:
        raise ValueError(f"{spec}: write official:FILE?images=FOLDER, and a recipe: {known}")
    return OfficialTable(Path(parsed.path), Path(parsed.options["images"]), RECIPES[recipe], spec)


class OfficialTable(TextTable):
    """The rows of a table of tab-separated values that have an image in a folder.

    What cannot be used, such as an address from which nothing could be downloaded, is left out and
    counted in `skipped` by reason.
    """

    def __init__(self, path: Path, images: Path, recipe: Recipe, name: str) -> None:
        """Read all rows once, see `TextTable`; FileNotFoundError if there is no such folder."""
        if not images.is_dir():
            raise FileNotFoundError(f"{name}: there is no folder {images}")
        self._images, self._recipe = images, recipe
        super().__init__(path, name, delimiter="\t", quoted=recipe.quoted, columns=recipe.columns)

    def _parse(self, number: int, fields: list[str]) -> Row:
        if not fields:
            raise RecordError("broken row")
        columns = dict(zip(self._columns, fields, strict=True))
        try:
            "".join(fields).encode()
        except UnicodeEncodeError:
            raise RecordError("row not UTF-8") from None
        captions = self._recipe.captions("", columns)
        if not captions:
            raise RecordError("empty caption")
        stem = columns[self._recipe.image] if self._recipe.image else str(number)
        return Row(stem, self._find_image(stem), captions, columns)

    def _find_image(self, stem: str) -> Path:
        if not stem or "/" in stem or stem.startswith("."):
            raise RecordError("unsafe name")
        files = (self._images / f"{stem}{suffix}" for suffix in IMAGE_SUFFIXES)
        found = next((file for file in files if file.is_file()), None)
        if found is None:
            raise RecordError("missing image")
        return found
