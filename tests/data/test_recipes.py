"""Ten records of each published data set in its official form: prepared, and read again."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from shard_files import write

from otter_jax.data import prepare
from otter_jax.data.builders import recipes
from otter_jax.data.sources import Source, open_source

pytest.importorskip("tensorflow_datasets")
from otter_jax.data.builders import pairs

WIT = ("language", "image_url", "caption_reference_description", "caption_alt_text_description",
       "caption_attribution_description")  # fmt: skip


def conceptual_captions(number: int) -> list[str]:
    return [f"picture {number} of a “cat”", f"http://example.org/{number}.jpg"]


def yfcc15m(number: int) -> list[str]:
    row = {
        "line": str(number),
        "photoid": f"90{number}",
        "title": f"Caf%C3%A9+{number}",
        "description": "a+%3Cb%3Ebold%3C%2Fb%3E+day %26 night" if number % 2 else "",
    }
    return [row.get(column, "") for column in recipes.RECIPES["yfcc15m"].columns]


def wit(number: int) -> list[str]:
    texts = ["", "", ""]
    texts[number % 3] = f"text {number}"
    return ["en", f"http://example.org/{number}.jpg", *texts]


CASES = {
    "conceptual_captions": (conceptual_captions, (), lambda n: f"picture {n} of a “cat”"),
    "conceptual_12m": (
        lambda n: conceptual_captions(n)[::-1], (), lambda n: f"picture {n} of a “cat”",
    ),
    "yfcc15m": (
        yfcc15m, (), lambda n: f"Café {n}. a bold day & night" if n % 2 else f"Café {n}",
    ),
    "wit": (wit, WIT, lambda n: f"text {n}"),
}  # fmt: skip


def image(number: int) -> bytes:
    return b"\xff\xd8\xff" + bytes([number]) * 50 + b"\xff\xd9"


@pytest.fixture(params=CASES)
def published(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str, Callable]:
    """A recipe, the SPEC of its table of ten rows and nine images, and the captions expected."""
    make_row, header, caption = CASES[request.param]
    rows = [*([header] if header else []), *map(make_row, range(10)), ["broken"]]
    table = tmp_path / "table.tsv"
    table.write_text("".join("\t".join(row) + "\n" for row in rows), encoding="utf-8")
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(9):
        stem = f"90{number}" if request.param == "yfcc15m" else number
        (folder / f"{stem}.jpg").write_bytes(image(number))
    return request.param, f"official:{table}?images={folder}", caption


def assert_published(source: Source, caption: Callable[[int], str], ordered: bool = True) -> None:
    found = [(source[i].image, source[i].captions) for i in range(len(source))]
    expected = [(image(number), (caption(number),)) for number in range(9)]
    assert (found if ordered else sorted(found)) == expected


def test_official_tables_are_read(published: tuple[str, str, Callable]) -> None:
    recipe, spec, caption = published
    source = recipes.open_pairs(spec, recipe)
    assert source.skipped == {"broken row": 1, "missing image": 1}
    assert_published(source, caption)
    with pytest.raises(IndexError):
        source[9]


def test_prepared_and_read_again(published: tuple[str, str, Callable], tmp_path: Path) -> None:
    recipe, spec, caption = published
    prepare.main([f"--from={spec}", f"--to={tmp_path / 'out'}", f"--recipe={recipe}",
                  f"--name={recipe}", "--workers=1"])  # fmt: skip
    assert_published(open_source(f"tfds:{tmp_path / 'out'}"), caption)


def test_built_by_tfds_and_read_again(published: tuple[str, str, Callable], tmp_path: Path) -> None:
    recipe, spec, caption = published
    (kind,) = (each for each in pairs.Pairs.__subclasses__() if each.recipe == recipe)
    builder = kind(spec=spec, data_dir=tmp_path / "out", file_format="array_record")
    builder.download_and_prepare()
    assert_published(open_source(f"tfds:{builder.data_path}"), caption, ordered=False)


def test_shards_of_img2dataset_with_metadata(tmp_path: Path) -> None:
    metadata = {"title": "A+title", "description": "%3Ca+href%3Dx%3Elinked%3C%2Fa%3E", "width": 3}
    shard = [("1.jpg", image(1)), ("1.txt", b"tags"), ("1.json", json.dumps(metadata).encode())]
    nothing = [("2.jpg", image(2)), ("2.txt", b"tags"), ("2.json", b"{}")]
    spec = f"webdataset:{write(tmp_path / '0.tar', shard, nothing)}"
    source = recipes.open_pairs(spec, "yfcc15m")
    assert source[0].captions == ("A title. linked",) == (source[0].caption,)
    with pytest.raises(recipes.RecordError, match="empty caption"):
        source[1]
    prepare.main([f"--from={spec}", f"--to={tmp_path / 'out'}", "--recipe=yfcc15m", "--workers=1"])
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["pairs"] == 1 and manifest["skipped"] == {"empty caption": 1}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("100%25+cotton", "100% cotton"),
        ("1 < 2 and 3 > 2", "1 < 2 and 3 > 2"),
        ("a+%2B+b", "a b"),
        ("<p>\n one </p><br/>two", "one two"),
    ],
)
def test_clean_yfcc(text: str, expected: str) -> None:
    assert recipes.clean_yfcc(text) == expected


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no recipe 'cc'; choose from conceptual_capt"):
        recipes.open_pairs("open_clipart", "cc")
    with pytest.raises(ValueError, match=r"write official:FILE\?images=FOLDER, and a recipe"):
        recipes.open_pairs("official:x.tsv", "wit")
    with pytest.raises(FileNotFoundError, match=r"there is no .*x\.tsv"):
        recipes.open_pairs(f"official:{tmp_path}/x.tsv?images={tmp_path}", "wit")
    (tmp_path / "x.tsv").write_text("a\thttp://b\n")
    with pytest.raises(ValueError, match=r"no usable row in .*'missing image': 1"):
        recipes.open_pairs(f"official:{tmp_path}/x.tsv?images={tmp_path}", "conceptual_captions")
