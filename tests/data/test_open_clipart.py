"""The clip-art builder: captions, copies, splits, and shards that come out the same every time."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from otter_jax.data import images
from otter_jax.data.builders import open_clipart
from otter_jax.data.sources import open_source

RDF = """<?xml version="1.0"?>
<svg xmlns="http://www.w3.org/2000/svg" xmlns:cc="http://web.resource.org/cc/"
     xmlns:dc="http://purl.org/dc/elements/1.1/"
     xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><metadata><rdf:RDF><cc:Work>
<dc:title>{title}</dc:title><dc:description>{description}</dc:description>
<dc:subject><rdf:Bag>{keywords}</rdf:Bag></dc:subject>
<dc:creator><cc:Agent><dc:title>{author}</dc:title></cc:Agent></dc:creator>
</cc:Work></rdf:RDF></metadata></svg>"""


def drawing(**changes: object) -> open_clipart.Drawing:
    fields = {"path": "animals/tiger_anna_sm_01", "title": "Tiger", "keywords": (),
              "description": "", "author": "Anna Smith"}  # fmt: skip
    return open_clipart.Drawing(**(fields | changes))


@pytest.mark.parametrize(
    ("changes", "caption"),
    [
        ({}, "Tiger"),
        ({"keywords": ("tiger", "cat", "Anna Smith", "HASH(0x8f45)", "big cat")},
         "Tiger, cat, big cat"),
        ({"title": "Part of the Flat Icon Collection (Wed Aug 25 2004)"}, "tiger"),
        ({"title": "Anna Smith", "keywords": ("striped",)}, "tiger, striped"),
        ({"title": "Wild animals", "title_is_common": True}, "tiger, Wild animals"),
        ({"title": "", "path": "x/01", "description": "A tiger."}, "A tiger."),
        ({"title": "", "path": "x/01"}, ""),
        ({"keywords": tuple("abcdefgh")}, "Tiger, a, b, c, d, e"),
        ({"description": "A sleeping tiger.", "keywords": ("sleeping", "cat")},
         "Tiger, A sleeping tiger, cat"),
        ({"description": "A sleeping tiger.", "description_is_common": True}, "Tiger"),
        ({"description": "contact: anna@example.org"}, "Tiger"),
    ],
)  # fmt: skip
def test_caption(changes: dict, caption: str) -> None:
    assert drawing(**changes).caption == caption


def test_variants_are_one_family() -> None:
    titles = ("Tiger 1", "Tiger 02", "tiger", "Tiger (B and W)", "Blue Tiger")
    families = {drawing(title=title).family for title in titles}
    assert families == {"animals/tiger"}
    assert drawing(title="Lion").family != drawing().family
    assert drawing(title="Blue").family == "animals/blue"


def test_metadata_that_is_missing_or_broken_is_empty(tmp_path: Path) -> None:
    svg = tmp_path / "a.svg"
    assert open_clipart.read_metadata(svg, "a").title == ""
    svg.write_text("<svg><broken")
    assert open_clipart.read_metadata(svg, "a").keywords == ()


def picture(shape: str, colour: str = "red", size: int = 100) -> Image.Image:
    image = Image.new("RGBA", (1000, 1000), (0, 0, 0, 0))
    pen, box = ImageDraw.Draw(image), (100, 100, 700, 900)
    if shape == "oval":
        pen.ellipse(box, fill=colour)
    elif shape == "box":
        pen.rectangle(box, fill=colour)
    else:
        pen.polygon([(box[0], box[1]), (box[2], box[1]), (box[0], box[3])], fill=colour)
    return image.resize((size, size), Image.Resampling.LANCZOS)


def add(root: Path, path: str, image: Image.Image | bytes, title: str, author: str = "") -> None:
    png, svg = root / "png" / f"{path}.png", root / "svg" / f"{path}.svg"
    for file in (png, svg):
        file.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(image, bytes):
        png.write_bytes(image)
    else:
        image.save(png)
    svg.write_text(RDF.format(title=title, description="", keywords="", author=author))


@pytest.fixture
def library(tmp_path: Path) -> Path:
    add(tmp_path, "shapes/oval", picture("oval"), "Oval")
    add(tmp_path, "zoo/egg", picture("oval", size=260), "Egg")  # The same, larger.
    add(tmp_path, "shapes/oval_blue", picture("oval", "blue"), "Oval 2")  # Re-coloured variant.
    add(tmp_path, "flags/box", picture("box", "green"), "Flag of A")
    add(tmp_path, "flags/box2", picture("box", "orange"), "Country B")  # Alike, not a variant.
    add(tmp_path, "shapes/wedge", picture("wedge"), "Wedge")
    add(tmp_path, "shapes/blank", Image.new("RGB", (50, 50), "white"), "Nothing")
    add(tmp_path, "shapes/broken", b"not a picture", "Broken")
    (tmp_path / "png" / "zoo" / "link.png").symlink_to(tmp_path / "png" / "shapes" / "oval.png")
    return tmp_path


def build(library: Path, out: str) -> dict:
    return open_clipart.build(library / "png", library / "svg", library / out, size=200)


def test_copies_go_and_noise_stays(library: Path) -> None:
    summary = build(library, "out")
    assert summary["drawings"] == 9 and summary["kept"] == 4
    assert summary["left_out"] == {
        "blank image": 1,
        "image cannot be read": 1,
        "near-duplicate": 2,
        "the same file under another category": 1,
    }
    source = open_source(f"webdataset:{library / 'out'}")
    assert sorted(source[n].caption for n in range(len(source))) == [
        "Country B", "Flag of A", "Oval", "Wedge",
    ]  # fmt: skip
    image = images.decode(source[0].image)
    assert max(image.shape) <= 200 and image[0, 0].min() > 245  # Transparent became white.
    assert source[0].metadata["sha256"] and source[0].metadata["family"]


def test_same_input_same_bytes(library: Path) -> None:
    first, second = build(library, "a"), build(library, "b")
    assert first["sha256"] == second["sha256"] and first["sha256"]


def test_relatives_are_never_split() -> None:
    drawings = [drawing(path=f"x/{n}", title=f"thing{'abcdefghijklmnopqrst'[n // 2]}")
                for n in range(40)]  # fmt: skip
    families = open_clipart.number_of(each.family for each in drawings)
    heldout = open_clipart.choose_heldout(drawings, families)
    assert heldout.sum() == 4
    for family in set(families.tolist()):
        assert len(set(heldout[families == family].tolist())) == 1


def test_families_join_through_relatives() -> None:
    pairs = open_clipart.Pairs(
        first=np.array([0, 2]),
        second=np.array([1, 3]),
        distance=np.array([0.05, 0.9]),
        largest=np.array([90.0, 255.0]),
        edges=np.array([0.5, 0.2]),
    )
    joined = open_clipart.join_families(
        np.array([0, 1, 2, 3]), pairs, open_clipart.are_relatives(pairs)
    )
    assert joined[0] == joined[1] and len(set(joined.tolist())) == 3


def test_nothing_to_build_from(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no \.png files"):
        open_clipart.build(tmp_path, tmp_path, tmp_path / "out")


def test_embedded_collection_is_what_its_summary_says() -> None:
    train, heldout = open_source("open_clipart"), open_source("open_clipart", split="heldout")
    folder = Path(train.paths[0]).parent
    summary = json.loads((folder / "summary.json").read_text())
    assert (len(train), len(heldout)) == (summary["train"], summary["heldout"])
    assert train.skipped == heldout.skipped == {}
    for name, digest in summary["sha256"].items():
        assert open_clipart.digest((folder / name).read_bytes()) == digest
    families = [
        {source[number].metadata["family"] for number in range(len(source))}
        for source in (train, heldout)
    ]
    assert not families[0] & families[1]
    assert sum(path.stat().st_size for path in folder.iterdir()) < 30 * 2**20
    assert images.decode(heldout[0].image).shape[2] == 3
