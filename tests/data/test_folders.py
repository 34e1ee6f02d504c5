"""Folders of images: classes, texts beside images, and what folders hold besides."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otter_jax.data.folders import PackedStrings
from otter_jax.data.sources import RecordError, Source, open_source


def write(root: Path, *names: str, text: str | None = None) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(f"pixels of {name}".encode())
        if text is not None:
            (root / name).with_suffix(".txt").write_text(text)


def pairs(source: Source) -> dict[str, str]:
    return {source[i].key: source[i].caption for i in range(len(source))}


def test_class_folders(tmp_path: Path) -> None:
    write(tmp_path, "red_panda/2.jpg", "red_panda/1.PNG", "cat/deep/er/3.webp", "cat/notes.md")
    write(tmp_path, "loose.jpg", "cat/._hidden.jpg")
    source = open_source(f"folder:{tmp_path}")
    expected = {"cat/deep/er/3": "cat", "red_panda/1": "red panda", "red_panda/2": "red panda"}
    assert pairs(source) == expected and list(pairs(source)) == list(expected)
    assert source[0].image == b"pixels of cat/deep/er/3.webp"
    assert source.skipped == {"image beside the class folders": 1}


def test_texts_beside_images(tmp_path: Path) -> None:
    write(tmp_path, "a.jpg", text="a cat\n")
    write(tmp_path, "class/b.jpg", text="first\n\n second \nfirst")
    write(tmp_path, "class/c.jpg")
    write(tmp_path, "class/d.jpg", text=" \n")
    (tmp_path / "class" / "e.jpg").touch()
    source = open_source(f"folder:{tmp_path}")
    assert [source[i].captions for i in range(len(source))] == [("a cat",), ("first", "second")]
    assert source.skipped == {"empty caption": 1, "empty image": 1, "no text file": 1}


def test_captions_in_json_files_as_img2dataset_has_them(tmp_path: Path) -> None:
    write(tmp_path, "00000/1.jpg", "00000/2.jpg", "00000/3.jpg", "00000/4.jpg")
    write(tmp_path, "00000/5.jpg", text="a cow")
    for number, metadata in enumerate(
        ({"caption": "a cat"}, {"captions": ["a dog", "a puppy"]}, {"caption": None}, {}), 1
    ):
        (tmp_path / f"00000/{number}.json").write_text(json.dumps(metadata))
    (tmp_path / "00000/5.json").write_text('{"caption": "stale"}')
    source = open_source(f"folder:{tmp_path}")
    found = [source[i].captions for i in range(len(source))]
    assert found == [("a cat",), ("a dog", "a puppy"), ("a cow",)]
    assert source.skipped == {"empty caption": 1, "no text file": 1}


def test_the_majority_says_what_captions_are(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, "cat/1.jpg", "dog/2.jpg")
    (tmp_path / "cat/1.json").write_text('{"width": 3}')  # Not for captions.
    assert set(pairs(open_source(f"folder:{tmp_path}")).values()) == {"cat", "dog"}
    assert not caplog.text
    write(tmp_path, "dog/3.jpg", text="a stray note")
    assert set(pairs(open_source(f"folder:{tmp_path}")).values()) == {"cat", "dog"}
    assert "1 of 3 images have a caption in a file beside them, too few" in caplog.text
    write(tmp_path, "dog/2.jpg", text="a dog")
    assert set(pairs(open_source(f"folder:{tmp_path}")).values()) == {"a dog", "a stray note"}


def test_links_are_followed_but_never_in_a_circle(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere", "x.jpg")
    root = tmp_path / "root"
    write(root, "cat/1.jpg", "cat/sub/2.jpg")
    (root / "dog").symlink_to(tmp_path / "elsewhere")
    (root / "cat" / "sub" / "loop").symlink_to(root)
    (root / "cat" / "self").symlink_to(root / "cat" / "self")
    (root / "cat" / "broken.jpg").symlink_to(root / "gone.jpg")
    source = open_source(f"folder:{root}")
    assert pairs(source) == {"cat/1": "cat", "cat/sub/2": "cat", "dog/x": "dog"}
    assert source.skipped == {"missing image": 1}


def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/cat"
    os.mkdir(folder)
    with open(folder + b"/caf\xe9.jpg", "wb") as file:
        file.write(b"pixels")
    assert open_source(f"folder:{tmp_path}")[0].image == b"pixels"


def test_nothing_usable_and_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no usable image in"):
        open_source(f"folder:{tmp_path}")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        open_source(f"folder:{tmp_path}/none")


def test_a_file_that_goes_and_the_fingerprint(tmp_path: Path) -> None:
    write(tmp_path, "cat/1.jpg", "cat/2.jpg")
    source = open_source(f"folder:{tmp_path}")
    assert source.fingerprint == open_source(f"folder:{tmp_path}").fingerprint
    (tmp_path / "cat" / "1.jpg").unlink()
    with pytest.raises(RecordError, match="missing image"):
        source[0]
    assert source.fingerprint != open_source(f"folder:{tmp_path}").fingerprint


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
def test_packed_strings(strings: list[str]) -> None:
    packed = PackedStrings(strings)
    assert len(packed) == len(strings) and [packed[i] for i in range(len(packed))] == strings


def test_packed_strings_keep_names_that_are_no_utf8() -> None:
    assert PackedStrings(["a", "caf\udce9"])[1] == "caf\udce9"


@pytest.mark.parametrize("hidden", [".ipynb_checkpoints", ".Trash-1000", "@eaDir", "__MACOSX"])
def test_hidden_folders_are_skipped_and_said(tmp_path: Path, hidden: str) -> None:
    write(tmp_path, "cat/1.png", f"{hidden}/1-checkpoint.png", f"cat/{hidden}/2.png")
    source = open_source(f"folder:{tmp_path}")
    assert pairs(source) == {"cat/1": "cat"} and source.skipped == {}
    assert source.notes == [
        f"{tmp_path}: captions are the names of 1 folder",
        f"{tmp_path}: 2 hidden folders skipped, such as {hidden}, cat/{hidden}",
    ]


def test_captions_end_at_newlines_alone(tmp_path: Path) -> None:
    text = "first\u2028still first\x85and more\x0band\x1cmore\nsecond\r\nthird\rfourth\n"
    write(tmp_path, "a.jpg")
    (tmp_path / "a.txt").write_bytes(text.encode())
    first = "first\u2028still first\x85and more\x0band\x1cmore"
    assert open_source(f"folder:{tmp_path}")[0].captions == (first, "second", "third", "fourth")


@pytest.mark.parametrize(
    "names", [("00000", "00001"), ("train",), ("train", "val"), ("images",), ("TEST", "Train")]
)
def test_names_of_folders_that_are_no_captions_need_to_be_meant(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    write(tmp_path, *(f"{name}/1.jpg" for name in names))
    with pytest.raises(
        ValueError,
        match=rf"names of folders \({names[0]}.*\?captions=folders, or write folder:.*/{names[0]}",
    ):
        open_source(f"folder:{tmp_path}")
    source = open_source(f"folder:{tmp_path}?captions=folders")
    assert sorted(pairs(source).values()) == sorted(names)
    assert f"captions are the names of {len(names)} folder" in source.notes[0]
    write(tmp_path, "cat/1.jpg")  # One that is a class.
    assert len(open_source(f"folder:{tmp_path}")) == len(names) + 1


@pytest.mark.parametrize("place", ["metadata.csv", "train/metadata.jsonl"])
def test_a_table_of_captions_in_the_folder_is_named(tmp_path: Path, place: str) -> None:
    write(tmp_path, "train/1.jpg", "cat/2.jpg")
    (tmp_path / place).write_text('{"file_name": "1.jpg", "text": "a cat"}\n')
    with pytest.raises(ValueError, match=rf"has the captions: write csv:{tmp_path}/{place}"):
        open_source(f"folder:{tmp_path}")
    assert len(open_source(f"folder:{tmp_path}?captions=folders")) == 2


def test_the_option_says_where_captions_are(tmp_path: Path) -> None:
    write(tmp_path, "cat/1.jpg", "cat/2.jpg", "dog/3.jpg")
    (tmp_path / "cat" / "1.txt").write_text("a tabby")
    assert pairs(open_source(f"folder:{tmp_path}?captions=files")) == {"cat/1": "a tabby"}
    assert len(open_source(f"folder:{tmp_path}?captions=folders")) == 3
    with pytest.raises(ValueError, match="captions=names; it is folders or files"):
        open_source(f"folder:{tmp_path}?captions=names")


def test_images_by_any_of_their_suffixes_and_others_counted(tmp_path: Path) -> None:
    write(tmp_path, *(f"cat/{n}.{suffix}" for n, suffix in enumerate(
        ("jfif", "JPE", "ppm", "pgm", "avif", "svg", "SVG", "psd"))))  # fmt: skip
    write(tmp_path, "cat/0.svg")  # Beside 0.jfif, whose source it is.
    source = open_source(f"folder:{tmp_path}")
    assert len(source) == 5
    assert source.skipped == {
        "image format that is not read (.psd)": 1, "image format that is not read (.svg)": 2
    }  # fmt: skip


def test_what_lies_beside_loose_images_is_said(tmp_path: Path) -> None:
    write(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "a.jpg.txt").write_text("a cat")
    (tmp_path / "b.TXT").write_text("a dog")
    with pytest.raises(
        ValueError, match=r"image beside the class folders: 2\); .*beside them is a\.jpg\.txt, b\.T"
    ):
        open_source(f"folder:{tmp_path}")


NAMES = st.sampled_from(["1.jpg", "cat/1.jpg", "cat/2.png", "dog/3.webp", ".x/4.jpg", "dog/5.svg",
                         "cat/deep/6.JPG", "cat/._7.jpg", "cat/note.md"])  # fmt: skip


@given(names=st.sets(NAMES), captioned=st.sets(NAMES))
def test_every_image_is_a_pair_or_counted(
    tmp_path_factory: pytest.TempPathFactory, names: set[str], captioned: set[str]
) -> None:
    root = tmp_path_factory.mktemp("folder")
    write(root, "cat/always.jpg", *names)
    write(root, *(name for name in sorted(captioned & names)), text="a caption")
    (root / "cat" / "always.txt").write_text("always")
    images = 1 + sum(name not in (".x/4.jpg", "cat/._7.jpg", "cat/note.md") for name in names)
    source = open_source(f"folder:{root}")
    assert len(source) + sum(source.skipped.values()) == images
    assert all(source[i].caption for i in range(len(source)))
