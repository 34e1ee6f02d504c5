"""The builder of icons: what is taken, how it is drawn, and that what is held out is unseen."""

import ast
import io
import json
import os
import re
import shlex
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from otter_jax.commands import prepare
from otter_jax.data.builders.iconify import copies, drawings, package, source, splits
from otter_jax.data.builders.iconify.names import captions_of
from otter_jax.data.images import decode
from otter_jax.data.sources import open_source
from otter_jax.data.specs import Spec
from otter_jax.evaluation.sets import open_one

pytest.importorskip("resvg_py")

MIT = {"spdx": "MIT", "title": "MIT", "url": "https://example.org/mit"}
TALL = '<path d="M0 0h2v4h-2zM2 0h2v1h-2z"/>'  # Like an F, of which no two sides are alike.


def make_set(icons: dict, author: str = "A", **contents: object) -> dict:
    """Return a set of icons as @iconify/json has it; `contents` may replace parts of its info."""
    info = {"name": "Set", "author": {"name": author}, "license": MIT, "palette": False,
            "category": "UI 24px"}  # fmt: skip
    info |= contents.pop("info", {})
    bodies = {name: {"body": each} if isinstance(each, str) else each for name, each in
              icons.items()}  # fmt: skip
    return {"info": info, "icons": bodies, "width": 24, "height": 24, **contents}


def write_package(folder: Path, sets: dict[str, object]) -> Path:
    """Write the package into a folder."""
    (folder / "json").mkdir(parents=True)
    (folder / "package.json").write_text('{"name": "@iconify/json", "version": "9.9.9"}')
    for prefix, contents in sets.items():
        text = contents if isinstance(contents, str) else json.dumps(contents)
        (folder / "json" / f"{prefix}.json").write_text(text)
    return folder


def pack(folder: Path, path: Path) -> Path:
    """Pack a folder as `npm pack` does."""
    with tarfile.open(path, "w:gz") as tar:
        tar.add(folder, "package")
    return path


def scribble(number: int) -> str:
    """Return a body that looks like no other number's: blocks on a grid, by its hash."""
    rng = np.random.default_rng(number)
    cells = np.argwhere(rng.random((6, 6)) < 0.45)
    return "".join(f'<path d="M{4 * x} {4 * y}h4v4h-4z"/>' for x, y in cells)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a package of 40 sets, by an author each, of some of 60 concepts."""
    sets = {}
    for number in range(40):
        rng = np.random.default_rng((1, number))
        chosen = rng.choice(60, 20, replace=False)
        icons = {f"concept-{chr(97 + c % 26)}{'xyz'[c // 26]}": scribble(number * 60 + int(c))
                 for c in chosen}  # fmt: skip
        sets[f"s{number:02d}"] = make_set(icons, author=f"author {number}")
    copied = dict(sets["s00"]["icons"])
    sets["zz"] = make_set({}, author="another") | {"icons": copied}  # Nothing but copies.
    return write_package(tmp_path_factory.mktemp("package") / "package", sets)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Name a folder for drawings, which those who need the same find there."""
    return tmp_path_factory.mktemp("drawn")


def open_at(path: Path, folder: Path, options: str = "", processes: int = 1) -> source.IconSource:
    return source.open_icons(Spec.parse(f"iconify:{path}{options}"), folder, processes=processes)


def grey_of(svg: str, size: int = 16) -> np.ndarray:
    data, why, _ = drawings.draw_one(svg, size)
    assert not why
    return decode(data)[..., 0]


@pytest.mark.parametrize(
    ("name", "contents", "caption"),
    [
        ("arrow-left-bold-duotone", {"suffixes": {"": "", "bold": "", "bold-duotone": ""}},
         "arrow left"),
        ("baseline-home", {"prefixes": {"baseline": "Baseline"}}, "home"),
        ("text-bold", {}, "text bold"),
        ("bold", {"suffixes": {"bold": "Bold"}}, "bold"),
        ("Arrow_Up", {}, "arrow up"),
    ],
)  # fmt: skip
def test_listed_styles_leave_the_name(name: str, contents: dict, caption: str) -> None:
    assert captions_of([name], contents) == {name: caption}


def test_a_last_word_is_a_style_where_the_set_often_has_it() -> None:
    names = [f"thing{chr(97 + n)}-bold" for n in range(12)] + ["other", "bold"]
    assert captions_of(names, {})["thingc-bold"] == "thingc"
    assert captions_of(names, {})["bold"] == "bold"
    assert captions_of([*names[:9], "other"], {})["thingc-bold"] == "thingc bold"


def test_numbers_of_several_alike_go_and_others_stay() -> None:
    found = captions_of(["user", "user-2", "user-3", "route-66", "500px", "42"], {})
    assert found == {"user": "user", "user-2": "user", "user-3": "user", "route-66": "route 66",
                     "500px": "500px"}  # fmt: skip


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("flip", [{}, {"hFlip": True}, {"vFlip": True}])
def test_aliases_turn_and_flip(turns: int, flip: dict) -> None:
    contents = make_set({"f": TALL}, aliases={"g": {"parent": "f", "rotate": turns, **flip}})
    contents |= {"width": 4, "height": 4}
    expected = grey_of(package.to_svg(package.resolve("f", contents), contents))
    if flip:
        expected = np.flip(expected, 1 if "hFlip" in flip else 0)
    expected = np.rot90(expected, -turns)  # Iconify turns to the right, NumPy to the left.
    found = grey_of(package.to_svg(package.resolve("g", contents), contents))
    np.testing.assert_array_equal(found, expected)


def test_aliases_of_aliases_add_up() -> None:
    aliases = {"g": {"parent": "f", "rotate": 1, "hFlip": True},
               "h": {"parent": "g", "rotate": 3, "hFlip": True},
               "loop": {"parent": "loop"}, "lost": {"parent": "nowhere"}}  # fmt: skip
    contents = make_set({"f": TALL}, aliases=aliases)
    assert package.resolve("h", contents) == {"rotate": 0, "hFlip": False, "vFlip": False,
                                              "body": TALL}  # fmt: skip
    assert package.resolve("loop", contents) is None and package.resolve("lost", contents) is None


def test_the_box_of_an_icon_is_its_own() -> None:
    body = '<path d="M-4-2h8v2h-8z"/>'
    box = {"left": -4, "top": -2, "width": 8, "height": 4}
    contents = make_set({"wide": {"body": body, **box}}, aliases={"t": {"parent": "wide",
                        "rotate": 1}})  # fmt: skip
    wide, turned = (
        grey_of(package.to_svg(package.resolve(name, contents), contents)) for name in ("wide", "t")
    )
    assert (wide[4:8] == 0).all() and (wide[8:] == 255).all() and (wide[:4] == 255).all()
    np.testing.assert_array_equal(turned, np.rot90(wide, -1))


def test_sets_and_icons_are_left_out_by_reason(tmp_path: Path) -> None:
    good = {"dot": scribble(1), "blank": "<g/>", "bad": "<path", "777": scribble(2),
            "file": '<image href="file:///etc/passwd"/>', "old": {"body": scribble(3), "hidden": 1},
            "firm": scribble(4), "copy": scribble(1), "void": "", "odd": {"body": "<g/>",
            "width": "wide"}, "star": scribble(5), "star-1": scribble(6), "star-2": scribble(7),
            "square": scribble(8), "moving": "<path d='M0 0h9v9z'><animate/></path>"}  # fmt: skip
    sets = {
        "good": make_set(good, categories={"Brands": ["firm"]}, aliases={"point": {"parent":
                         "dot"}}),
        "gpl": make_set({"a": TALL}, info={"license": {"spdx": "GPL-3.0"}}),
        "none": make_set({"a": TALL}, info={"license": None}),
        "colour": make_set({"a": TALL}, info={"palette": True}),
        "logos": make_set({"a": TALL}, info={"category": "Logos"}),
        "brands": make_set({"a": TALL}, info={"name": "Some Brands"}),
        "hidden": make_set({"a": TALL}, info={"hidden": True}),
        "aside": make_set({"a": TALL}, info={"category": None}),
        "foreign": '[1, 2]',
        "cut": '{"icons": {"a"',
    }  # fmt: skip
    found = open_at(write_package(tmp_path / "p", sets), tmp_path / "drawn")
    left_out = json.loads(found.attachments["summary.json"])
    assert found.skipped == {
        "blank": 1, "does not render": 1, "animated": 1, "no word in its name": 1,
        "refers to other files": 1,
        "hidden by its set": 1, "logo": 1, "copy, exact or nearly": 1, "broken icon": 2,
        "more than 2 of a caption in a set": 1, "another name of an icon": 1,
        "licence not chosen": 1, "set without a licence": 1, "set of several colours": 1,
        "set of logos": 2, "superseded set": 1, "unreadable set": 2,
        "set without a category": 1,
    }  # fmt: skip
    assert left_out["sets_left_out"]["unreadable set"] == ["cut", "foreign"]
    # All 23 icons, aliases among them, and the two sets of which nobody knows how many they have.
    assert left_out["pairs"] + sum(found.skipped.values()) == 23 + 2
    assert "| good | Set | A | [MIT](https://example.org/mit) |" in found.attachments[
        "ATTRIBUTION.md"]  # fmt: skip


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.05, 0.5))
def test_alike_ones_are_found_as_by_comparing_all(seed: int, limit: float) -> None:
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 256, (8, 256))
    noise = rng.normal(0, 255, (40, 256)) * rng.uniform(0, 0.5, (40, 1))
    looks = np.clip(base[rng.integers(0, 8, 40)] + noise, 0, 255).astype(np.uint8)
    wide = looks.astype(float)
    wide -= wide.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(wide, axis=1)
    distance = np.linalg.norm(wide[:, None] - wide, axis=2) / np.maximum(lengths[:, None], lengths)
    expected = np.argwhere(np.triu(distance <= limit, 1))
    np.testing.assert_array_equal(copies.alike(looks, limit), expected)


def test_a_copy_of_a_copy_alone_is_kept() -> None:
    pairs = np.array([[0, 1], [1, 2], [2, 3]])
    assert copies.find_copies(4, pairs).tolist() == [False, True, False, True]


def test_sets_of_one_author_or_of_shared_drawings_are_a_family() -> None:
    sets = {p: package.IconSet(p, p, a, "MIT", "", "") for p, a in zip("abcd", "XYXZ", strict=True)}
    prefixes = ["a"] * 10 + ["b"] * 40 + ["c"] * 40 + ["d"] * 200
    shared = np.array([[10 + n, 90 + n] for n in range(12)])
    families = splits.find_families(sets, prefixes, shared)
    assert families == {"a": "a", "b": "b", "c": "a", "d": "b"}
    few = splits.find_families(sets, prefixes, shared[:9])
    assert few["d"] == "d"


def test_nothing_held_out_was_seen(many: Path, drawn: Path) -> None:
    found = open_at(many, drawn)
    assert set(found.splits) == set(splits.SPLITS)
    parts, first = {}, 0
    for split, length in found.splits.items():
        parts[split] = [found[i] for i in range(first, first + length)]
        first += length
    assert first == len(found)
    trained = {record.caption for record in parts["train"]}
    authors = {record.metadata["family"] for record in parts["train"]}
    seen = np.stack([drawings.look(decode(r.image)[..., 0]) for r in parts["train"]])
    for split in splits.STYLES:
        assert not {record.metadata["family"] for record in parts[split]} & authors
        assert {record.caption for record in parts[split]} <= trained
    for split in splits.CONCEPTS:
        assert not {record.caption for record in parts[split]} & trained
        assert {record.metadata["family"] for record in parts[split]} <= authors
    for split in splits.SPLITS[1:]:
        for record in parts[split]:
            look = drawings.look(decode(record.image)[..., 0])[None]
            both = np.concatenate([look, seen])
            pairs = np.stack([np.zeros(len(seen), int), np.arange(1, len(both))], axis=1)
            assert copies.distances(both, pairs).min() > copies.RELATIVE
    assert found.skipped["copy, exact or nearly"] >= 20  # All of the set of nothing but copies.


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".json"}


def test_prepared_splits_are_read_by_name(
    many: Path, drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip("tensorflow_datasets")
    whole, packed = tmp_path / "whole", tmp_path / "packed"
    tarball = pack(many, tmp_path / "package.tgz")
    for path, folder, records in ((many, whole, 100), (tarball, packed, 100)):
        prepare.main([f"--from=iconify:{path}", f"--to={folder}", "--workers=1",
                      f"--records_per_shard={records}"])  # fmt: skip
    assert contents(whole) == contents(packed)
    before = open_at(many, drawn)
    first = 0
    for split, length in before.splits.items():
        after = open_source(f"tfds:{whole}:{split}")
        assert len(after) == length
        for i in (0, length - 1):
            assert after[i].image == before[first + i].image
            assert after[i].caption == before[first + i].caption
        first += length
    assert len(open_source(f"tfds:{whole}")) == before.splits["train"]
    classes = (whole / "classes_style_test.txt").read_text().splitlines()
    held = open_source(f"tfds:{whole}:style_test")
    assert classes == sorted({held[i].caption for i in range(len(held))})
    first_said, _ = re.findall(r"to evaluate on those held out: (.+)", capsys.readouterr().out)
    sets, template = (flag.partition("=")[2] for flag in shlex.split(first_said))
    assert template == "{}"
    style, concepts = (open_one(spec, 32) for spec in ast.literal_eval(sets))
    assert [name for (name,) in style.class_names] == classes and len(style.images) == len(held)
    assert len(concepts.images) == before.splits["concepts_test"]


def test_what_was_drawn_is_not_drawn_again(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drawings, "PART", 100)
    before, drawn = open_at(many, tmp_path), drawings.draw_one
    lost = min(tmp_path.glob("*.npz"))
    lost.unlink()
    asked = []
    monkeypatch.setattr(drawings, "draw_one", lambda svg, size: asked.append(svg) or drawn(svg,
                        size))  # fmt: skip
    after = open_at(many, tmp_path)
    assert 0 < len(asked) <= 100
    open_at(many, tmp_path, processes=2)  # With nothing to do for them.
    assert after.fingerprint == before.fingerprint
    assert all(after[i] == before[i] for i in range(len(before)))


def test_what_was_drawn_outlives_ctrl_c(
    many: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    pytest.importorskip("tensorflow_datasets")
    command = [f"--from=iconify:{many}", f"--to={tmp_path / 'out'}", "--workers=1"]

    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="130"):
        patch.setattr(os, "_exit", sys.exit)  # Which would be the end of the tests, too.
        patch.setattr(source, "choose", stop)
        prepare.main(command)
    assert "same command goes on" in capsys.readouterr().out
    monkeypatch.setattr(drawings, "draw_one", stop)  # Nothing is drawn again.
    prepare.main(command)
    assert len(open_source(f"tfds:{tmp_path / 'out'}")) > 0


def test_a_cut_tarball_ends_in_one_line(many: Path, tmp_path: Path) -> None:
    whole = pack(many, tmp_path / "package.tgz").read_bytes()
    for end in (0, 5, len(whole) // 3, len(whole) - 9, len(whole) - 1):
        (tmp_path / "cut.tgz").write_bytes(whole[:end])
        with pytest.raises(ValueError, match=r"cut\.tgz is cut off, or no tarball .*npm pack .*@2"):
            open_at(tmp_path / "cut.tgz", tmp_path)


def test_other_packages_and_options_are_refused(many: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "package.json").write_text('{"name": "left-pad"}')
    with pytest.raises(ValueError, match=r"not the npm package .*npm pack @iconify/json@2"):
        open_at(other, tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no such folder or tarball"):
        open_at(tmp_path / "nothing", tmp_path)
    for options, message in (
        ("?sets=s01,nowhere", "there is no set 'nowhere'"),
        ("?size=0", "it must be 1 to 1024"),
        ("?sets=", "sets is empty; it wants prefixes of sets with commas"),
        ("?sets=&size=32", "sets is empty"),
        ("?size=32&sets=s01,", "sets is empty"),
        ("?licences=", "licences is empty; it wants SPDX identifiers"),
        ("?colour=1", "unknown option 'colour'"),
        ("?licences=GPL", "no icon is left of 41 sets (licence not chosen: 41)"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            open_at(many, tmp_path, options)


def test_members_of_other_names_are_passed_over(many: Path, tmp_path: Path) -> None:
    path = tmp_path / "package.tgz"
    with tarfile.open(path, "w:gz") as tar:
        for name in ("package/json/../../../escaped.json", "/json/absolute.json"):
            header = tarfile.TarInfo(name)
            header.size = 2
            tar.addfile(header, io.BytesIO(b"{}"))
        link = tarfile.TarInfo("package/json/link.json")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        tar.add(many, "package")
    assert set(package.read_package(path).sets) == set(package.read_package(many).sets)


def test_drawings_are_lossless(tmp_path: Path) -> None:
    contents = make_set({"f": TALL})
    svg = package.to_svg(package.resolve("f", contents), contents)
    data, _, _ = drawings.draw_one(svg, 64)
    import resvg_py

    png = resvg_py.svg_to_bytes(svg_string=svg, width=64, height=64, background="white")
    expected = np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGB"))
    np.testing.assert_array_equal(decode(data), expected)
