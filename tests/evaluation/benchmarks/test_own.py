"""Folders and CSVs of one's own."""

from pathlib import Path

import numpy as np
import pytest

from otter_jax.evaluation import benchmarks
from otter_jax.evaluation.benchmarks import own


def write_images(folder: Path, names: list[str]) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"image")
    return folder


def test_a_folder_of_folders(tmp_path: Path) -> None:
    write_images(tmp_path, ["red_panda/2.jpg", "red_panda/deep/1.PNG", "cat/x.webp", "loose.jpg",
                            "cat/notes.txt", "cat/.hidden.jpg", "empty/notes.txt"])  # fmt: skip
    found = own.load_folder("mine", tmp_path)
    assert found.class_names == (("cat",), ("red panda",))
    assert list(found.images.keys) == ["cat/x.webp", "red_panda/2.jpg", "red_panda/deep/1.PNG"]
    np.testing.assert_array_equal(found.labels, [[0], [1], [1]])
    assert found.left_out == {"image beside the class folders": 1}


def test_a_folder_with_a_class_list(tmp_path: Path) -> None:
    write_images(tmp_path / "images", ["n02/a.jpg", "n01/b.jpg"])
    (tmp_path / "c.txt").write_text("n01\tcat\nn02\tdog|hound\nn03\tcow\n")
    found = benchmarks.load(f"folder:{tmp_path / 'images'}?classes={tmp_path / 'c.txt'}", 32)
    assert found.class_names == (("cat",), ("dog", "hound"), ("cow",))
    np.testing.assert_array_equal(found.labels, [[0], [1]])
    (tmp_path / "c.txt").write_text("n01\tcat\n")
    with pytest.raises(ValueError, match="unknown class 'n02'"):
        benchmarks.load(f"folder:{tmp_path / 'images'}?classes={tmp_path / 'c.txt'}", 32)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    write_images(tmp_path, ["loose.jpg"])
    with pytest.raises(ValueError, match=r"one folder a class.*no image with a label"):
        own.load_folder("mine", tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder"):
        own.load_folder("mine", tmp_path / "nowhere")


def test_a_csv_with_quotes_several_labels_and_gaps(tmp_path: Path) -> None:
    write_images(tmp_path, ["a, b.jpg", "c.jpg", "d.jpg"])
    (tmp_path / "set.csv").write_text(
        '\ufefflabels,image,remark\ncat|animal,"a, b.jpg",x\n"dog, big",c.jpg,\n,d.jpg,\n'
        "cat,gone.jpg,\n",
        encoding="utf-8",
    )
    found = benchmarks.load(f"csv:{tmp_path / 'set.csv'}", 32)
    assert found.class_names == (("animal",), ("cat",), ("dog, big",))
    np.testing.assert_array_equal(found.labels, [[1, 0], [2, -1], [-1, -1]])
    assert found.left_out == {"image missing": 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("image,words\na.jpg,cat\n", "none of labels, .* is among 'image', 'words'"),
        ("image,labels\na.jpg\n", "no usable row in .*broken row: 1"),
        ("image,labels\nb.jpg,cat\n", "missing image: 1"),
        ("image,labels\na.jpg,\n", "no image with a label"),
    ],
)
def test_bad_csvs_are_refused(tmp_path: Path, text: str, message: str) -> None:
    write_images(tmp_path, ["a.jpg"])
    (tmp_path / "set.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        own.load_csv("mine", tmp_path / "set.csv")


def test_a_missing_csv_is_named() -> None:
    with pytest.raises(FileNotFoundError, match="no file /nowhere"):
        own.load_csv("mine", Path("/nowhere"))
