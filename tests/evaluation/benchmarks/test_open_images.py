"""The official CSVs as they are released: headers, quoting, negative labels, missing images."""

from pathlib import Path

import numpy as np
import pytest

from otter_jax.evaluation.benchmarks import open_images

DESCRIPTIONS = "\n".join(
    [
        "LabelName,DisplayName",
        "/m/011k07,Tortoise",
        '/m/011q46kg,"Container, metal"',
        '/m/012074,"Say ""cheese"""',
        "/m/0120dh,Sea turtle",
        "",
    ]
)
LABELS = """ImageID,Source,LabelName,Confidence
000026e7ee790996,verification,/m/011k07,1
000026e7ee790996,verification,/m/0120dh,0
000026e7ee790996,crowdsource-verification,/m/011q46kg,1
000062a39995e348,verification,/m/012074,1
0000c64e1253d68f,verification,/m/0120dh,0
000132c20b84269b,verification,/m/0120dh,1
"""


@pytest.fixture
def release(tmp_path: Path) -> Path:
    (tmp_path / "oidv6-class-descriptions.csv").write_text(DESCRIPTIONS)
    (tmp_path / "test-annotations-human-imagelabels.csv").write_text(LABELS)
    (tmp_path / "test").mkdir()
    for image in ("000026e7ee790996", "000062a39995e348", "0000c64e1253d68f", "unlisted"):
        (tmp_path / "test" / f"{image}.jpg").write_bytes(b"jpeg")
    return tmp_path


def test_the_release_is_read(release: Path) -> None:
    found = open_images.load("goi", release)
    assert found.class_names == (
        ("Tortoise",), ("Container, metal",), ('Say "cheese"',), ("Sea turtle",),
    )  # fmt: skip
    assert list(found.images.keys) == ["000026e7ee790996.jpg", "000062a39995e348.jpg"]
    np.testing.assert_array_equal(found.labels, [[0, 1], [2, -1]])
    assert found.left_out == {"image without a true label": 1, "image missing": 1}


def test_descriptions_without_a_header(release: Path) -> None:
    (release / "oidv6-class-descriptions.csv").unlink()
    (release / "class-descriptions.csv").write_text(DESCRIPTIONS.split("\n", 1)[1])
    assert len(open_images.load("goi", release).class_names) == 4


def test_a_list_says_what_is_ranked(release: Path) -> None:
    (release / "classes.txt").write_text("/m/0120dh\n/m/011k07\n")
    found = open_images.load("goi", release)
    assert found.class_names == (("Sea turtle",), ("Tortoise",))
    np.testing.assert_array_equal(found.labels, [[1]])
    assert found.left_out["label that is not ranked"] == 2
    (release / "classes.txt").write_text("/m/none\n")
    with pytest.raises(ValueError, match="unknown class '/m/none'"):
        open_images.load("goi", release)


def test_the_first_unknown_label_is_named(release: Path) -> None:
    path = release / "test-annotations-human-imagelabels.csv"
    path.write_text(LABELS + "ffff,verification,/m/a,1\nffff,verification,/m/b,1\n")
    with pytest.raises(ValueError, match="image ffff has the unknown class '/m/a'"):
        open_images.load("goi", release)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("test-annotations-human-imagelabels.csv", "ImageID,LabelName\n", "Source, Confidence"),
        ("test-annotations-human-imagelabels.csv",
         "ImageID,Source,LabelName,Confidence\na,v,/m/011k07,yes\n", "line 2 has no confidence"),
        ("oidv6-class-descriptions.csv", "LabelName,DisplayName\n/m/011k07\n",
         "row 1 should be LabelName,DisplayName"),
        ("oidv6-class-descriptions.csv", "LabelName,DisplayName\n", "list of classes is empty"),
        ("oidv6-class-descriptions.csv", "/m/011k07, \n", "has a blank name"),
    ],
)  # fmt: skip
def test_other_formats_are_refused(release: Path, name: str, text: str, message: str) -> None:
    (release / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        open_images.load("goi", release)


def test_what_is_missing_is_named(release: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        open_images.load("goi", tmp_path / "nowhere")
    for file in (release / "test").iterdir():
        file.unlink()
    with pytest.raises(ValueError, match=r"no image with a label.*image missing: 3"):
        open_images.load("goi", release)
    (release / "oidv6-class-descriptions.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no \*class-descriptions.csv"):
        open_images.load("goi", release)
