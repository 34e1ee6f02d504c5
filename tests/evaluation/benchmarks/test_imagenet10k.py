"""Tencent's dictionary and image list, in every form in which they are released."""

from pathlib import Path

import numpy as np
import pytest

from otter_jax.evaluation.benchmarks import imagenet10k

HEADER = "category_index\tcategory_id\tindex_of_parent_category\tcategory name\n"
ROWS = [
    "n00002452\t-1\tthing",
    "n00020827\t-1\tmatter",
    "n00002684\t-1\tobject, physical object",
    "n05220461\t2\tliving thing, animate thing",
    "n05538625\t3\tdog, domestic dog, Canis familiaris",
    "n01900150\t3\tcat",
]
DICTIONARY = HEADER + "".join(f"{n}\t{row}\n" for n, row in enumerate(ROWS))
IMAGES = """n05538625/n05538625_17303.JPEG\t4\t3\t2
n01900150/n01900150_4482.JPEG\t5\t3\t2
n00020827/n00020827_1.JPEG\t1\t4\t3\t2
n05220461/n05220461_7.JPEG\t3\t2
"""


@pytest.fixture
def release(tmp_path: Path) -> Path:
    (tmp_path / "dictionary_and_semantic_hierarchy.txt").write_text(DICTIONARY)
    (tmp_path / "val_image_id_from_imagenet.txt").write_text(IMAGES)
    (tmp_path / "images" / "n00020827").mkdir(parents=True)
    for name in ("n05538625_17303.JPEG", "n05220461_7.JPEG", "n00020827/n00020827_1.JPEG"):
        (tmp_path / "images" / name).write_bytes(b"jpeg")
    return tmp_path


def test_the_release_is_read(release: Path) -> None:
    found = imagenet10k.load("in10k", release)
    assert found.class_names[:3] == (("thing",), ("matter",), ("object", "physical object"))
    assert list(found.images.keys) == [
        "n05538625_17303.JPEG", "n00020827/n00020827_1.JPEG", "n05220461_7.JPEG",
    ]  # fmt: skip
    np.testing.assert_array_equal(found.labels, [[4, 3, 2, -1], [1, 4, 3, 2], [3, 2, -1, -1]])
    np.testing.assert_array_equal(found.other_labels["leaf_"], [[4, -1], [1, 4], [3, -1]])
    assert found.left_out == {"image missing": 1}


def test_other_forms_of_the_release_are_the_same(release: Path) -> None:
    wanted = imagenet10k.load("in10k", release)
    dictionary = release / "dictionary_and_semantic_hierarchy.txt"
    images = release / "val_image_id_from_imagenet.txt"
    dictionary.write_text("".join(f"{row}\n" for row in ROWS))  # Without index and header.
    images.write_text(IMAGES.replace("4\t3", "4:1\t3:1"))  # With confidences.
    for _ in range(2):
        found = imagenet10k.load("in10k", release)
        assert found.class_names == wanted.class_names
        np.testing.assert_array_equal(found.labels, wanted.labels)
        # As OTTER ships them: other names, and two blanks for a tab in the first row.
        dictionary.rename(dictionary := release / "tencent_classes.txt")
        images.rename(images := release / "tencent_val_image_id_from_imagenet.txt")
        dictionary.write_text(DICTIONARY.replace("-1\tthing", "-1  thing"))


@pytest.mark.parametrize("label", ["6", "-1", "99:1"])
def test_classes_that_do_not_exist_are_named(release: Path, label: str) -> None:
    path = release / "val_image_id_from_imagenet.txt"
    path.write_text(f"{IMAGES}n1/n1_1.JPEG\t2\t{label}\n")
    number = label.split(":")[0]
    with pytest.raises(ValueError, match=f"line 5 .* unknown class {number}: there are 6"):
        imagenet10k.load("in10k", release)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "dictionary_and_semantic_hierarchy.txt",
            DICTIONARY + "7\tn1\t2\tx\n",
            "line 8 .* class 6",
        ),
        ("dictionary_and_semantic_hierarchy.txt", HEADER + "0\tn1\t-1\t\n", "line 2 should be"),
        ("dictionary_and_semantic_hierarchy.txt", HEADER, "list of classes is empty"),
        ("val_image_id_from_imagenet.txt", "n1/n1_1.JPEG\tdog\n", "line 1 should be image and"),
        ("val_image_id_from_imagenet.txt", "n1/n1_1.JPEG\t1\n", "image missing: 1"),
    ],
)
def test_other_formats_are_refused(release: Path, name: str, text: str, message: str) -> None:
    (release / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        imagenet10k.load("in10k", release)


def test_what_is_missing_is_named(release: Path) -> None:
    (release / "val_image_id_from_imagenet.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"val_image_id_from_imagenet.txt"):
        imagenet10k.load("in10k", release)
