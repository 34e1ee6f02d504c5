"""Ten records of each published data set in its official form: prepared, and read again."""

import csv
import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
from shard_files import write

from otter_jax.commands import prepare
from otter_jax.data.builders import recipes
from otter_jax.data.sources import Source, open_source

pytest.importorskip("tensorflow_datasets")

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


def assert_published(source: Source, caption: Callable[[int], str]) -> None:
    found = [(source[i].image, source[i].captions) for i in range(len(source))]
    expected = [(image(number), (caption(number),)) for number in range(9)]
    assert found == expected


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


def test_shards_of_img2dataset_with_metadata(tmp_path: Path) -> None:
    metadata = {"title": "A+title", "description": "%3Ca+href%3Dx%3Elinked%3C%2Fa%3E", "width": 3}
    shard = [("1.jpg", image(1)), ("1.txt", b"tags"), ("1.json", json.dumps(metadata).encode())]
    nothing = [("2.jpg", image(2)), ("2.txt", b"tags"), ("2.json", b'{"title": 3}')]
    spec = f"webdataset:{write(tmp_path / '0.tar', shard, nothing)}"
    source = recipes.open_pairs(spec, "yfcc15m")
    assert source[0].captions == ("A title. linked",) == (source[0].caption,)
    assert len(source) == 1 and source.skipped == {"empty caption": 1}
    prepare.main([f"--from={spec}", f"--to={tmp_path / 'out'}", "--recipe=yfcc15m", "--workers=1"])
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["pairs"] == 1 and manifest["skipped"] == {"empty caption": 1}


@pytest.mark.parametrize(
    ("recipe", "metadata"),
    [
        ("conceptual_captions", {"caption": "a cat"}),
        ("conceptual_12m", {"caption": "a cat"}),
        ("yfcc15m", {"title": "a+cat", "description": ""}),
        ("wit", {"caption_reference_description": "", "caption_alt_text_description": "a cat"}),
    ],
)
@pytest.mark.parametrize("text", [None, b"", b" \n"])
def test_captions_that_only_the_metadata_hold(
    tmp_path: Path, recipe: str, metadata: dict, text: bytes | None
) -> None:
    members = [("1.jpg", image(1)), ("1.json", json.dumps(metadata).encode())]
    members += [] if text is None else [("1.txt", text)]
    nothing = [("2.jpg", image(2)), ("2.json", b"{}"), ("2.txt", b"")]
    source = recipes.open_pairs(f"webdataset:{write(tmp_path / '0.tar', members, nothing)}", recipe)
    assert [source[i].captions for i in range(len(source))] == [("a cat",)]
    assert source.skipped == {"empty caption": 1}


def test_the_text_stands_in_for_the_caption_of_conceptual_captions(tmp_path: Path) -> None:
    shard = [("1.jpg", image(1)), ("1.json", b'{"url": "x"}'), ("1.txt", b"a cat")]
    path = write(tmp_path / "0.tar", shard)
    assert recipes.open_pairs(f"webdataset:{path}", "conceptual_12m")[0].caption == "a cat"


@pytest.mark.parametrize("recipe", recipes.RECIPES)
def test_other_processes_can_be_sent_the_pairs_of_a_recipe(tmp_path: Path, recipe: str) -> None:
    metadata = {"caption": "x", "title": "x", "caption_alt_text_description": "x"}
    shard = [("1.jpg", image(1)), ("1.json", json.dumps(metadata).encode())]
    source = recipes.open_pairs(f"webdataset:{write(tmp_path / '0.tar', shard)}", recipe)
    assert pickle.loads(pickle.dumps(source))[0].caption == "x"


def test_indexes_of_recipes_are_kept_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("otter_jax.data.shard_index._WORTH_KEEPING", 1)
    shard = [("1.jpg", image(1)), ("1.json", b'{"title": "a title"}'), ("1.txt", b"own")]
    other = [("2.jpg", image(2)), ("2.txt", b"tags")]
    spec = f"webdataset:{write(tmp_path / '0.tar', shard, other)}"
    for _ in range(2):
        assert recipes.open_pairs(spec, "yfcc15m")[0].caption == "a title"
        assert [len(recipes.open_pairs(spec, recipe)) for recipe in ("", "yfcc15m")] == [2, 1]


def write_table(folder: Path, rows: str) -> str:
    (folder / "table.tsv").write_text(rows, encoding="utf-8", newline="")
    for number in range(4):
        (folder / f"{number}.jpg").write_bytes(image(number))
    return f"official:{folder / 'table.tsv'}?images={folder}"


def test_fields_of_wit_stand_in_quotes(tmp_path: Path) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter="\t")
    texts = ['a "quoted" word', "two\nlines", "a\ttab", "plain"]
    writer.writerows([WIT, *(["en", "http://x", text, "", ""] for text in texts)])
    source = recipes.open_pairs(write_table(tmp_path, buffer.getvalue()), "wit")
    assert [source[i].caption for i in range(4)] == texts and source.skipped == {}
    assert [source[i].image for i in range(4)] == [image(number) for number in range(4)]


def test_quotes_of_conceptual_captions_are_text(tmp_path: Path) -> None:
    texts = ['"no quotes" around all', '"never closed', 'an 8" disk', "plain"]
    spec = write_table(tmp_path, "".join(f"{text}\thttp://x\n" for text in texts))
    source = recipes.open_pairs(spec, "conceptual_captions")
    assert [source[i].caption for i in range(4)] == texts and source.skipped == {}


def test_an_official_table_that_changed_is_noticed(tmp_path: Path) -> None:
    spec = write_table(tmp_path, "a cat\thttp://x\n")
    source = recipes.open_pairs(spec, "conceptual_captions")
    write_table(tmp_path, "longer\thttp://x\n")
    with pytest.raises(ValueError, match=r"table\.tsv has changed since it was opened"):
        source[0]


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
    with pytest.raises(ValueError, match="icons: only tar shards have metadata to make captions"):
        recipes.open_pairs("icons", "wit")
    with pytest.raises(
        ValueError, match="icons need a folder to be drawn into, and have no recipe"
    ):
        recipes.open_pairs("iconify:x.tgz", "wit", cache_dir=tmp_path)
    with pytest.raises(ValueError, match="only tar shards have metadata to make captions of"):
        recipes.open_pairs("folder:x", "wit")
    with pytest.raises(FileNotFoundError, match=r"there is no .*x\.tsv"):
        recipes.open_pairs(f"official:{tmp_path}/x.tsv?images={tmp_path}", "wit")
    (tmp_path / "x.tsv").write_text("a\thttp://b\n")
    with pytest.raises(ValueError, match=r"no usable row in .*\(missing image: 1\)"):
        recipes.open_pairs(f"official:{tmp_path}/x.tsv?images={tmp_path}", "conceptual_captions")
