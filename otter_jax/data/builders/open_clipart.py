"""Builds the embedded collection: clip art with the captions its contributors gave.

Open Clip Art Library 0.18 is public domain art drawn and described by web users, so its captions
are as noisy as web text is. Input are the two unpacked Debian packages openclipart-png (drawings)
and openclipart-svg (the same ones with RDF metadata: title, keywords, description):

    python -m otter_jax.data.builders.open_clipart --png=DIR --svg=DIR --out=DIR

Output are tar shards laid out as img2dataset writes them (KEY.webp, KEY.txt, KEY.json) in two
splits, and summary.json with what was kept and why the rest was not. The same input gives the same
bytes. Noise in captions is kept; only copies of images go.
"""

import argparse
import dataclasses
import hashlib
import html
import io
import json
import re
import tarfile
import xml.etree.ElementTree as ElementTree
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from otter_jax.data import images

SHARD_BYTES = 5_000_000
WEBP_QUALITY = 75
HELDOUT_SHARE = 0.1
LARGEST_HELDOUT_FAMILY = 10
KEYWORDS_ADDED = 5

# Found by looking at pairs near the thresholds; see `are_copies` and `are_relatives`.
RESIZED_DISTANCE = 0.1
RECOLOURED_EDGES = 0.975
RELATIVE_DISTANCE = 0.12
RELATIVE_EDGES = 0.88
COMMON_TEXT = 10  # Drawings that share a title or a description.

# Titles and keywords that say nothing of the picture.
EMPTY_TITLE = re.compile(
    r"^$|flat icon collection|^(untitled|unnamed|no title|title|open ?clip ?art.*|drawing|image|"
    r"icon|svg|clip ?art( by.*)?|new document.*|gnome-mime.*)$",
    re.IGNORECASE,
)
EMPTY_KEYWORD = re.compile(
    r"^(hash(\(.*)?|0x[0-9a-f]+|unsorted|clip ?art|image|media|public domain|svg|png|wmf|none|"
    r"externalsource|open ?clip ?art|.*_?icon_?theme|)$",
    re.IGNORECASE,
)

EMPTY_DESCRIPTION = re.compile(r"@|https?:|www\.|hash\(0x|public domain|^$", re.IGNORECASE)
# What variants of one drawing are told apart by.
VARIANT_WORDS = {
    "b", "w", "bw", "black", "white", "grey", "gray", "red", "orange", "yellow", "green", "blue",
    "purple", "pink", "brown", "and",
}  # fmt: skip

LETTERS = re.compile(r"[^\W\d_]+")


@dataclasses.dataclass(frozen=True)
class Drawing:
    """One drawing and what its file says of it."""

    path: str  # Below the package's folder, without extension.
    title: str
    keywords: tuple[str, ...]
    description: str
    author: str
    title_is_common: bool = False  # Many drawings have it, so it does not tell them apart.
    description_is_common: bool = False

    @property
    def folder(self) -> str:
        """The category."""
        return self.path.rpartition("/")[0]

    @property
    def name(self) -> str:
        """What tells this drawing from others: its own title, else its file's name."""
        if is_informative(self.title, self.author) and not self.title_is_common:
            return self.title
        return name_from_file(self.path, self.author)

    @property
    def caption(self) -> str:
        """The name, a shared title, the description and the keywords, where they add words."""
        head = self.name or self.description
        known, parts = words(head), [head] if head else []
        titles = [self.title] if is_informative(self.title, self.author) else []
        boilerplate = self.description_is_common or EMPTY_DESCRIPTION.search(self.description)
        descriptions = [] if boilerplate else [self.description.rstrip(".")]
        keywords = [
            keyword
            for keyword in self.keywords
            if not EMPTY_KEYWORD.match(keyword) and not is_author(keyword, self.author)
        ]
        for text in titles + descriptions + keywords:
            if words(text) - known and len(parts) <= KEYWORDS_ADDED:
                parts.append(text)
                known |= words(text)
        return ", ".join(parts)

    @property
    def family(self) -> str:
        """Folder and first words of the name: drawings of one family are variants of a kind."""
        letters = LETTERS.findall(self.name.lower())
        kind = [word for word in letters if word not in VARIANT_WORDS] or letters
        return f"{self.folder}/{' '.join(kind[:2])}"


def words(text: str) -> set[str]:
    """Return Lower-case words of a text."""
    return set(re.findall(r"\w+", text.lower()))


def one_line(text: str) -> str:
    """Return a text without line breaks and HTML entities, of which the metadata have a few."""
    return " ".join(html.unescape(text).split())


def slug(text: str) -> str:
    """Return a text as the library writes it in file names."""
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")


def is_author(text: str, author: str) -> bool:
    """Return whether a text is (part of) the author's name."""
    return bool(words(text)) and words(text) <= words(author)


def is_informative(title: str, author: str) -> bool:
    """Return whether a title says something of the picture."""
    return not (EMPTY_TITLE.search(title) or is_author(title, author))


def name_from_file(path: str, author: str) -> str:
    """Return the words of a file's name, without the library's _01 and the author's (cut) name."""
    stem = re.sub(r"[_.\- ]*((?<!\d)0\d*[a-z]?)?$", "", path.rpartition("/")[2].lower())
    name = slug(author)
    for length in range(len(name), 2, -1):
        if stem.endswith("_" + name[:length]):
            stem = stem[: -length - 1]
            break
    return " ".join(re.findall(r"[^\W_]+", stem))


def read_metadata(svg: Path, path: str) -> Drawing:
    """Read the RDF of an SVG; what is missing or broken stays empty."""
    found = {"title": "", "description": "", "creator": ""}
    keywords: tuple[str, ...] = ()
    try:
        work = next(e for e in ElementTree.parse(svg).iter() if local_name(e) == "Work")
    except (OSError, StopIteration, ElementTree.ParseError):
        work = ()
    for element in work:
        kind, text = local_name(element), one_line("".join(element.itertext()))
        if kind in found and not found[kind]:
            found[kind] = text
        elif kind == "subject":
            items = (e for e in element.iter() if local_name(e) == "li")
            keywords = tuple(one_line(item.text or "") for item in items)
    return Drawing(path, found["title"], keywords, found["description"], found["creator"])


def local_name(element: ElementTree.Element) -> str:
    """Return a tag without its namespace."""
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""


@dataclasses.dataclass(frozen=True)
class Look:
    """What a drawing looks like, wherever on the page and however large it was drawn.

    Attributes:
        colours: float32 [16 * 16 * 3], 255 minus the colours of a coarse thumbnail; white is 0.
        edges: float32 [16 * 16], where outlines are, of length 1; blind to colour.
    """

    colours: np.ndarray
    edges: np.ndarray


def look(image: np.ndarray) -> Look:
    """Describe an RGB image by its inked part, fitted into a square."""
    inked = (image < 245).any(axis=2)
    if inked.any():
        rows, columns = np.flatnonzero(inked.any(axis=1)), np.flatnonzero(inked.any(axis=0))
        image = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    square = images.evaluation_transform(image, 128, fit="pad")
    colours = 255.0 - cv2.resize(square, (16, 16), interpolation=cv2.INTER_AREA).astype(np.float32)
    smooth = cv2.GaussianBlur(square.astype(np.float32), (0, 0), 1.5)
    slope = np.hypot(cv2.Sobel(smooth, -1, 1, 0), cv2.Sobel(smooth, -1, 0, 1)).max(axis=2)
    edges = cv2.resize(np.sqrt(slope), (16, 16), interpolation=cv2.INTER_AREA)
    edges = edges - edges.mean()
    return Look(colours.ravel(), (edges / (np.linalg.norm(edges) + 1e-6)).ravel())


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Pairs of drawings that are at all alike, as columns; `first` < `second`."""

    first: np.ndarray
    second: np.ndarray
    distance: np.ndarray  # Of the colours, relative to the amount of ink.
    largest: np.ndarray  # Largest difference of any colour, 0..255; inf where not close.
    edges: np.ndarray  # Cosine of the outlines.


def alike_pairs(looks: Sequence[Look], block: int = 512) -> Pairs:
    """Return all pairs that could be copies or relatives."""
    colours = np.stack([each.colours for each in looks])
    edges = np.stack([each.edges for each in looks])
    ink = np.maximum(np.linalg.norm(colours, axis=1), 1.0)
    squares = np.square(colours).sum(axis=1)
    found = []
    for start in range(0, len(looks), block):
        rows = slice(start, start + block)
        products = colours[rows] @ colours.T
        distance = np.sqrt(np.maximum(squares[rows, None] + squares[None] - 2 * products, 0.0))
        distance /= np.maximum(ink[rows, None], ink[None])
        cosine = edges[rows] @ edges.T
        first, second = np.nonzero((distance < RELATIVE_DISTANCE) | (cosine > RELATIVE_EDGES))
        first, second = (x[first + start < second] for x in (first, second))
        found.append((first + start, second, distance[first, second], cosine[first, second]))
    first, second, distance, cosine = map(np.concatenate, zip(*found, strict=True))
    largest = np.full(len(first), np.inf, np.float32)
    for number in np.flatnonzero(distance < RESIZED_DISTANCE):
        largest[number] = np.abs(colours[first[number]] - colours[second[number]]).max()
    return Pairs(first, second, distance, largest, cosine)


def are_copies(pairs: Pairs, families: np.ndarray) -> np.ndarray:
    """Return which pairs are the same picture.

    Anywhere in the library: the same colours and outlines, resized or redrawn. Within a family also
    the same outlines in other colours; elsewhere those may be, say, the flags of two countries.
    """
    same_family = families[pairs.first] == families[pairs.second]
    same = (pairs.distance < 0.04) & (pairs.largest < 30)
    resized = (pairs.distance < RESIZED_DISTANCE) & (pairs.edges > 0.985) & (pairs.largest < 45)
    return same | resized | (same_family & (pairs.edges > RECOLOURED_EDGES))


def are_relatives(pairs: Pairs) -> np.ndarray:
    """Return which pairs are too alike for one to be trained on while the other is held out."""
    close = pairs.distance < RELATIVE_DISTANCE
    recoloured = (pairs.edges > RELATIVE_EDGES) & (pairs.distance < 0.35)
    return close | (pairs.edges > 0.97) | recoloured


def find_copies(count: int, pairs: Pairs, copies: np.ndarray) -> np.ndarray:
    """Return which drawings are copies of an earlier one that is kept, bool [count]."""
    earlier: dict[int, list[int]] = defaultdict(list)
    for first, second in zip(pairs.first[copies], pairs.second[copies], strict=True):
        earlier[int(second)].append(int(first))
    dropped = np.zeros(count, bool)
    for number in range(count):
        dropped[number] = any(not dropped[other] for other in earlier[number])
    return dropped


def join_families(families: np.ndarray, pairs: Pairs, relatives: np.ndarray) -> np.ndarray:
    """Join families wherever drawings of two are relatives: int [count], a root a family."""
    parent = list(range(int(families.max()) + 1))

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = parent[parent[number]]
            number = parent[number]
        return number

    for first, second in zip(pairs.first[relatives], pairs.second[relatives], strict=True):
        a, b = root(int(families[first])), root(int(families[second]))
        parent[max(a, b)] = min(a, b)
    return np.array([root(int(number)) for number in families])


def choose_heldout(drawings: Sequence[Drawing], families: np.ndarray) -> np.ndarray:
    """Return which drawings are held out: whole small families, ordered by a hash of their name."""
    members: dict[int, list[int]] = defaultdict(list)
    for number, family in enumerate(families.tolist()):
        members[family].append(number)
    small = [group for group in members.values() if len(group) <= LARGEST_HELDOUT_FAMILY]
    small.sort(key=lambda group: digest(min(drawings[number].family for number in group).encode()))
    heldout = np.zeros(len(drawings), bool)
    for group in small:
        if heldout.sum() + len(group) <= HELDOUT_SHARE * len(drawings):
            heldout[group] = True
    return heldout


def digest(data: bytes) -> str:
    """Return the sha256, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


@dataclasses.dataclass(frozen=True)
class Picture:
    """A drawing with its picture, ready to be written."""

    drawing: Drawing
    webp: bytes
    size: tuple[int, int]  # Width and height.
    look: Look
    source_digest: str


def load_picture(drawing: Drawing, png: Path, size: int) -> Picture | str:
    """Decode a drawing, white below it, its longer side at most `size`; or why it cannot be used.

    Re-encoding is deterministic: the same library version gives the same bytes.
    """
    if not drawing.caption:
        return "no usable text"
    data = png.read_bytes()
    try:
        image = images.decode(data)
    except images.ImageError:
        return "image cannot be read"
    if image.min() > 245:
        return "blank image"
    scale = size / max(image.shape[:2])
    if scale < 1:
        width, height = (max(1, round(side * scale)) for side in image.shape[1::-1])
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    _, encoded = cv2.imencode(".webp", image[..., ::-1], [cv2.IMWRITE_WEBP_QUALITY, WEBP_QUALITY])
    return Picture(drawing, encoded.tobytes(), image.shape[1::-1], look(image), digest(data))


def read_drawings(png: Path, svg: Path, skipped: Counter[str]) -> list[Drawing]:
    """Return all drawings with their metadata, in the order of their paths; links are counted."""
    paths = []
    for path in sorted(png.rglob("*.png")):
        if path.is_symlink():
            skipped["the same file under another category"] += 1
        else:
            paths.append(path.relative_to(png).with_suffix("").as_posix())
    if not paths:
        raise FileNotFoundError(f"--png={png}: there are no .png files below it")
    drawings = [read_metadata(svg / f"{path}.svg", path) for path in paths]
    titles = Counter(drawing.title for drawing in drawings)
    descriptions = Counter(drawing.description for drawing in drawings)
    return [
        dataclasses.replace(
            each,
            title_is_common=titles[each.title] >= COMMON_TEXT,
            description_is_common=descriptions[each.description] >= COMMON_TEXT,
        )
        for each in drawings
    ]


def load_pictures(
    drawings: Sequence[Drawing], png: Path, size: int, skipped: Counter[str]
) -> list[Picture]:
    """Return the pictures that can be used; the others are counted by reason."""
    pictures: dict[str, Picture] = {}
    with ThreadPoolExecutor(2) as threads:
        found = threads.map(
            lambda drawing: load_picture(drawing, png / f"{drawing.path}.png", size), drawings
        )
        for number, result in enumerate(found):
            if number % 500 == 0:
                print(f"drawing {number} of {len(drawings)}", flush=True)
            if isinstance(result, str):
                skipped[result] += 1
            elif (pixels := digest(result.webp)) in pictures:
                skipped["exact duplicate"] += 1
            else:
                pictures[pixels] = result
    return list(pictures.values())


def number_of(names: Iterable[str]) -> np.ndarray:
    """Return a number for every name, equal ones for equal names, int [n]."""
    return np.unique(list(names), return_inverse=True)[1]


def build(png: Path, svg: Path, out: Path, size: int = 256) -> dict[str, object]:
    """Write the shards and summary.json into `out`; returns the summary.

    Args:
        png: folder of the drawings (usr/share/openclipart/png of the unpacked package).
        svg: folder of the SVGs, with the same paths below it.
        out: folder of the shards; made if missing.
        size: longest side of the pictures, in pixels.
    """
    skipped: Counter[str] = Counter()
    drawings = read_drawings(png, svg, skipped)
    pictures = load_pictures(drawings, png, size, skipped)
    pairs = alike_pairs([picture.look for picture in pictures])
    families = number_of(picture.drawing.family for picture in pictures)
    copies = find_copies(len(pictures), pairs, are_copies(pairs, families))
    skipped["near-duplicate"] = int(copies.sum())
    joined = join_families(families, pairs, are_relatives(pairs))[~copies]
    kept = [picture for picture, copy in zip(pictures, copies, strict=True) if not copy]
    heldout = choose_heldout([picture.drawing for picture in kept], joined)
    out.mkdir(parents=True, exist_ok=True)
    shards: dict[str, str] = {}
    for split, chosen in (("train", ~heldout), ("heldout", heldout)):
        rows = [picture for picture, is_chosen in zip(kept, chosen, strict=True) if is_chosen]
        shards |= write_shards(out, split, rows)
    summary = {
        "drawings": len(drawings) + skipped["the same file under another category"],
        "kept": len(kept),
        "train": int((~heldout).sum()),
        "heldout": int(heldout.sum()),
        "left_out": dict(sorted(skipped.items())),
        "sha256": shards,
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return summary


def write_shards(out: Path, split: str, pictures: Sequence[Picture]) -> dict[str, str]:
    """Write SPLIT-00000.tar and so on, about `SHARD_BYTES` each; returns their sha256."""
    shards: list[list[Picture]] = [[]]
    for picture in pictures:
        if sum(len(each.webp) for each in shards[-1]) > SHARD_BYTES:
            shards.append([])
        shards[-1].append(picture)
    digests = {}
    for shard, rows in enumerate(shards):
        path = out / f"{split}-{shard:05d}.tar"
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for number, picture in enumerate(rows):
                for name, data in members(picture, f"{shard:05d}{number:05d}"):
                    header = tarfile.TarInfo(name)  # Time 0, owner 0: the same bytes every time.
                    header.size = len(data)
                    tar.addfile(header, io.BytesIO(data))
        digests[path.name] = digest(path.read_bytes())
    return digests


def members(picture: Picture, key: str) -> Iterator[tuple[str, bytes]]:
    """Yield the three files of a pair, with their names."""
    drawing = picture.drawing
    metadata = {
        "key": key,
        "caption": drawing.caption,
        "title": drawing.title,
        "author": drawing.author,
        "path": f"{drawing.path}.png",
        "family": drawing.family,
        "width": picture.size[0],
        "height": picture.size[1],
        "sha256": picture.source_digest[:16],
    }
    yield f"{key}.webp", picture.webp
    yield f"{key}.txt", drawing.caption.encode()
    yield f"{key}.json", json.dumps(metadata, ensure_ascii=False).encode()


def main() -> None:
    """Build the collection that the command line describes."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name in ("png", "svg", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--size", type=int, default=256, help="longest side in pixels")
    arguments = parser.parse_args()
    print(json.dumps(build(**vars(arguments)), indent=2))


if __name__ == "__main__":
    main()
