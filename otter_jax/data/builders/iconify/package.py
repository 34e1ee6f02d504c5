"""Reads the npm package @iconify/json, chooses among its sets, and makes SVGs of its icons.

Each file of its folder json/ is a set: what it says of itself (`info`: name, author, licence,
whether it is of one colour), bodies of SVGs by name, and aliases, which may flip and rotate. The
tarball is read as a stream: nothing is unpacked, and no name in it becomes a path.
"""

import dataclasses
import gzip
import hashlib
import json
import math
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from otter_jax.data.builders.iconify.names import captions_of
from otter_jax.data.records import in_words

NAME = "@iconify/json"
GET_IT = f"get it by npm pack {NAME}@2.2.535"  # The version that docs/icons.md is about.
MAX_SET_BYTES = 1 << 28  # Beyond any set there is; the largest of 2.2.535 has 104 MB.
LICENCES = ("MIT", "Apache-2.0", "ISC", "CC0-1.0", "Unlicense", "CC-BY-4.0", "CC-BY-3.0")
VARIANTS = 2  # Of a caption in a set: there are sets that draw each icon in thirty ways.
DEFAULT_SIDE = 16  # Of an icon that does not say how large it is.

_LOGOS = ("Logos", "Programming")  # Categories of sets: these are names of firms and of file types.
_BRANDS = re.compile(r"\b(brand|logo)s?\b", re.IGNORECASE)
_ANIMATED = re.compile(r"<(animate|set\b)", re.IGNORECASE)
_ELSEWHERE = re.compile(r"""href\s*=\s*(?!["']#)""", re.IGNORECASE)  # Refers to another file.


@dataclasses.dataclass(frozen=True)
class IconSet:
    """One set, as far as it says something of itself.

    Attributes:
        prefix: What the package calls it.
        title: What people call it.
        author: Who drew it, or whose it is.
        licence: Its SPDX identifier.
        licence_url: Where its licence stands, or "".
        url: Where it comes from, or "".
    """

    prefix: str
    title: str
    author: str
    licence: str
    licence_url: str
    url: str


@dataclasses.dataclass(frozen=True)
class Icon:
    """One icon that was chosen.

    Attributes:
        prefix: Its set.
        name: What the set calls it.
        caption: The name in words, see `names.captions_of`.
        svg: The whole drawing.
    """

    prefix: str
    name: str
    caption: str
    svg: str


@dataclasses.dataclass
class Package:
    """What was chosen of the package, in the order of sets, and what was not.

    Attributes:
        icons: The icons.
        sets: Their sets, by prefix.
        skipped: How many icons were left out, by reason; of unreadable sets, how many sets.
        skipped_sets: Why each of the other sets was left out, by prefix.
        version: The package's.
    """

    icons: list[Icon] = dataclasses.field(default_factory=list)
    sets: dict[str, IconSet] = dataclasses.field(default_factory=dict)
    skipped: Counter[str] = dataclasses.field(default_factory=Counter)
    skipped_sets: dict[str, str] = dataclasses.field(default_factory=dict)
    version: str = "unknown"


@dataclasses.dataclass(frozen=True)
class Wish:
    """Which sets are wanted, besides that they are of one colour and no logos.

    Attributes:
        licences: SPDX identifiers of those that will do.
        sets: Prefixes of the only ones that are wanted; none: all.
        largest: How many icons a set may have, variants beyond `VARIANTS` not counted.
    """

    licences: tuple[str, ...] = LICENCES
    sets: tuple[str, ...] = ()
    largest: int = 1_000_000


def read_package(path: Path, wish: Wish = Wish()) -> Package:
    """Return the icons of the sets that are wanted.

    Args:
        path: The package's folder, or its tarball.
        wish: Which are.

    Raises:
        FileNotFoundError: If there is nothing at the path.
        ValueError: If it is no such package, if the tarball is cut or damaged, if a set that is
            wanted does not exist, or if nothing is left.
    """
    found = Package()
    manifest: dict[str, Any] = {}
    contents = {}
    for name, data in _files(path):
        if name == "package.json":
            manifest = _object(data) or {}
        else:
            contents[name.removeprefix("json/").removesuffix(".json")] = data
    if manifest.get("name") != NAME:
        raise ValueError(f"iconify:{path} is not the npm package {NAME}; {GET_IT}")
    found.version = str(manifest.get("version", found.version))
    if missing := set(wish.sets) - set(contents):
        raise ValueError(f"iconify:{path}: there is no set {min(missing)!r}")
    for prefix in sorted(contents):
        if not wish.sets or prefix in wish.sets:
            _take_set(found, prefix, contents[prefix], wish)
    if not found.icons:
        reasons = in_words(Counter(found.skipped_sets.values()))
        raise ValueError(f"iconify:{path}: no icon is left of {len(contents)} sets ({reasons})")
    return found


def _files(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield package.json and the files of json/, by their names in the package."""
    if path.is_dir():
        for file in (path / "package.json", *sorted(path.glob("json/*.json"))):
            if file.is_file():
                size = file.stat().st_size
                data = file.read_bytes() if size <= MAX_SET_BYTES else b""
                yield file.relative_to(path).as_posix(), data
    elif path.is_file():
        yield from _members(path)
    else:
        raise FileNotFoundError(f"iconify:{path}: there is no such folder or tarball")


def _members(path: Path) -> Iterator[tuple[str, bytes]]:
    try:
        with tarfile.open(path, "r|gz") as tar:
            for member in tar:
                name = member.name.partition("/")[2]  # npm puts all into a folder, "package".
                if member.isfile() and re.fullmatch(r"package\.json|json/[\w-]+\.json", name):
                    file = tar.extractfile(member) if member.size <= MAX_SET_BYTES else None
                    yield name, file.read() if file else b""
        # tarfile takes what ends between two members for whole; gzip has a checksum at its end.
        with gzip.open(path) as whole:
            while whole.read(1 << 20):
                pass
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"iconify:{path} is cut off, or no tarball ({error}); {GET_IT}") from None


def _object(data: bytes) -> dict[str, Any] | None:
    """Return the json object in `data`, None if it is none."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _take_set(found: Package, prefix: str, data: bytes, wish: Wish) -> None:
    """Add the icons of a set, or note why there are none of it."""
    contents = _object(data)
    if contents is None or not isinstance(contents.get("icons"), dict):
        found.skipped_sets[prefix] = "unreadable set"
        found.skipped["unreadable set"] += 1  # Nobody knows of how many icons.
        return
    info = _mapping(contents.get("info"))
    if reason := reason_to_leave_out(info, wish.licences):
        found.skipped_sets[prefix] = reason
        found.skipped[reason] += len(contents["icons"])
        return
    skipped: Counter[str] = Counter()
    icons = list(_icons_of(prefix, contents, skipped))
    if len(icons) > wish.largest:
        found.skipped_sets[prefix] = "set larger than wanted"
        found.skipped["set larger than wanted"] += len(icons) + skipped.total()
        return
    found.skipped.update(skipped)
    if not icons:
        found.skipped_sets[prefix] = "no icon can be used"
        return
    found.icons.extend(icons)
    licence, author = _mapping(info["license"]), _mapping(info.get("author"))
    found.sets[prefix] = IconSet(
        prefix,
        str(info.get("name", prefix)),
        str(author.get("name", "unknown")),
        str(licence["spdx"]),
        str(licence.get("url", "")),
        str(author.get("url", "")),
    )


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def reason_to_leave_out(info: Mapping[str, Any], licences: Iterable[str]) -> str | None:
    """Return why a set is left out, by what it says of itself, or None.

    It must have one of the licences, one colour and a category; and be current, which those are not
    that are hidden. Sets of logos, by category or name, show what a firm chose, not what
    is meant.
    """
    licence = _mapping(info.get("license")).get("spdx")
    if not licence:
        return "set without a licence"
    if licence not in licences:
        return "licence not chosen"
    if info.get("palette") is not False:
        return "set of several colours"
    if info.get("hidden"):
        return "superseded set"
    if not info.get("category"):
        return "set without a category"
    if info["category"] in _LOGOS or _BRANDS.search(str(info.get("name", ""))):
        return "set of logos"
    return None


def _icons_of(prefix: str, contents: Mapping[str, Any], skipped: Counter[str]) -> Iterator[Icon]:
    """Yield the icons of a set, at most `VARIANTS` of a caption.

    They come by a hash of their names, lest those of a caption are always the same two styles, such
    as thin and bold outlines, which stand side by side in the alphabet.
    """
    named = dict(_named_bodies(contents, skipped))
    captions = captions_of(named, contents)
    skipped["no word in its name"] += len(named) - len(captions)
    drawn: dict[str, set[str]] = {}
    for name in sorted(captions, key=lambda name: hashlib.sha256(name.encode()).digest()):
        caption = captions[name]
        icon = named[name]
        try:
            svg = to_svg(icon, contents)
        except (ValueError, TypeError):
            skipped["broken icon"] += 1
            continue
        of_caption = drawn.setdefault(caption, set())
        if _ELSEWHERE.search(svg):
            skipped["refers to other files"] += 1
        elif _ANIMATED.search(svg):
            skipped["animated"] += 1  # Its first frame is often a part of it, or nothing.
        elif svg in of_caption:
            skipped["exact copy"] += 1
        elif len(of_caption) == VARIANTS:
            skipped[f"more than {VARIANTS} of a caption in a set"] += 1
        else:
            of_caption.add(svg)
            yield Icon(prefix, name, caption, svg)


def _named_bodies(
    contents: Mapping[str, Any], skipped: Counter[str]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield names with icons and their transforms: those of the set, and its aliases."""
    brands = {
        name
        for category, names in _mapping(contents.get("categories")).items()
        if _BRANDS.search(category) and isinstance(names, list)
        for name in names
        if isinstance(name, str)
    }
    for name in (*contents["icons"], *_mapping(contents.get("aliases"))):
        icon = resolve(name, contents)
        if icon is None:
            skipped["broken icon"] += 1
        elif icon.get("hidden"):
            skipped["hidden by its set"] += 1
        elif name in brands:
            skipped["logo"] += 1
        elif name not in contents["icons"] and not any(icon[key] for key in _TRANSFORMS):
            skipped["another name of an icon"] += 1
        else:
            yield name, icon


_TRANSFORMS = ("rotate", "hFlip", "vFlip")


def resolve(name: str, contents: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return an icon or alias with all that its parents say; None if there is no body in the end.

    Quarter turns add up, flips take each other back; of sizes the nearest counts, as
    https://iconify.design/docs/types/iconify-json.html has it.
    """
    icons, aliases = contents["icons"], _mapping(contents.get("aliases"))
    found: dict[str, Any] = {"rotate": 0, "hFlip": False, "vFlip": False}
    seen: set[object] = set()
    while True:
        entry = icons.get(name, aliases.get(name))
        if not isinstance(entry, dict) or name in seen:
            return None
        seen.add(name)
        for key, value in entry.items():
            if key == "rotate" and isinstance(value, int):
                found[key] = (found[key] + value) % 4
            elif key in ("hFlip", "vFlip"):
                found[key] ^= bool(value)
            elif key != "parent":
                found.setdefault(key, value)
        if "body" in entry:
            return found if isinstance(entry["body"], str) and entry["body"].strip() else None
        name = entry.get("parent", "")
        if not isinstance(name, str):
            return None


def to_svg(icon: Mapping[str, Any], contents: Mapping[str, Any]) -> str:
    """Return the SVG of a resolved icon, black, flipped and rotated about the middle of its box.

    Args:
        icon: As `resolve` gives it.
        contents: The set, for the box of icons that have none of their own.

    Raises:
        ValueError, TypeError: If its box is none.
    """
    defaults = {"left": 0, "top": 0, "width": DEFAULT_SIDE, "height": DEFAULT_SIDE}
    left, top, width, height = (
        float(icon.get(key, contents.get(key, default))) for key, default in defaults.items()
    )
    if not (all(map(math.isfinite, (left, top))) and 0 < width < 1e6 and 0 < height < 1e6):
        raise ValueError(f"box of {width} by {height} at {left}, {top}")
    x, y = left + width / 2, top + height / 2
    moves = []
    if icon["rotate"]:
        moves.append(f"rotate({90 * icon['rotate']} {x:g} {y:g})")
    if icon["hFlip"]:
        moves.append(f"translate({2 * x:g} 0) scale(-1 1)")
    if icon["vFlip"]:
        moves.append(f"translate(0 {2 * y:g}) scale(1 -1)")
    if icon["rotate"] % 2:
        width, height = height, width
    body = icon["body"]
    if moves:
        body = f'<g transform="{" ".join(moves)}">{body}</g>'
    box = f"{x - width / 2:g} {y - height / 2:g} {width:g} {height:g}"
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}" color="black">{body}</svg>'


def attribution(package: Package) -> str:
    """Return who drew what under which licence, as Markdown: what CC BY asks for."""
    lines = [
        f"# Icons from {NAME} {package.version}",
        "",
        "Black on white, drawn at one size; names were made captions, and copies left out.",
        "",
        "| set | title | author | licence |",
        "|---|---|---|---|",
    ]
    for each in package.sets.values():
        author = f"[{each.author}]({each.url})" if each.url else each.author
        licence = f"[{each.licence}]({each.licence_url})" if each.licence_url else each.licence
        lines.append(f"| {each.prefix} | {each.title} | {author} | {licence} |")
    return "\n".join(lines) + "\n"
