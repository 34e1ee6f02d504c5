"""Class lists of one's own, and labels by id."""

from pathlib import Path

import numpy as np
import pytest

from otter_jax.evaluation import class_lists, specs


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_ids_and_several_names(tmp_path: Path) -> None:
    found = class_lists.read_class_list(write(tmp_path / "c", "n01\tcat|house cat\nred panda\n"))
    assert found.ids == ("n01", "red panda")
    assert found.names == (("cat", "house cat"), ("red panda",))
    labels = found.numbers([["red panda", "n01"], [], ["n01"]], "here")
    np.testing.assert_array_equal(labels, [[1, 0], [-1, -1], [0, -1]])


def test_the_first_name_is_the_id_unless_classes_share_it(tmp_path: Path) -> None:
    text = "cat|kitty\ncrane|bird\ncrane|machine\nn04\tdog|hound\n"
    found = class_lists.read_class_list(write(tmp_path / "c", text))
    assert found.ids == ("cat", "crane|bird", "crane|machine", "n04")
    assert found.names[0] == ("cat", "kitty") and found.names[3] == ("dog", "hound")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the list of classes is empty"),
        ("cat\n\ndog\n", "line 2 is blank"),
        ("n01\t \n", r"class 0 \('n01'\) has a blank name"),
        ("cat|\n", "has a blank name"),
        ("cat\ndog\ncat\n", "class 'cat' is listed twice"),
    ],
)
def test_bad_lists_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        class_lists.read_class_list(write(tmp_path / "c", text))


def test_the_first_unknown_label_is_named(tmp_path: Path) -> None:
    found = class_lists.read_class_list(write(tmp_path / "c", "cat\ndog\n"))
    with pytest.raises(ValueError, match=r"here: image 2 has the unknown class 'cow'.*2 classes"):
        found.numbers([["cat"], ["dog", "cow"], ["pig"]], "here")


def test_a_missing_list_is_named() -> None:
    with pytest.raises(FileNotFoundError, match="no class list at /nowhere"):
        class_lists.read_class_list(Path("/nowhere"))


@pytest.mark.parametrize(
    ("text", "kind", "path", "options"),
    [
        ("openmoji", "openmoji", "", {}),
        ("folder:/a b/c", "folder", "/a b/c", {}),
        ("folder:/a?classes=/x/y.txt", "folder", "/a", {"classes": "/x/y.txt"}),
        ("webdataset:/a/0?.tar", "webdataset", "/a/0?.tar", {}),
        ("webdataset:/a/0?.tar?classes=c", "webdataset", "/a/0?.tar", {"classes": "c"}),
        ("csv:C:/a.csv", "csv", "C:/a.csv", {}),
    ],
)
def test_specs_are_taken_apart(text: str, kind: str, path: str, options: dict) -> None:
    found = specs.EvaluationSpec.parse(text)
    assert (found.kind, found.path, found.options) == (kind, path, options)
    assert found.source == (f"{kind}:{path}" if path else kind)
