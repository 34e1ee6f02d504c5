"""SPECs taken apart."""

from pathlib import Path

import pytest

from otter_jax.data.specs import Spec, spec_of_path


@pytest.mark.parametrize(
    ("text", "kind", "path", "options"),
    [
        ("open_clipart", "open_clipart", "", {}),
        ("csv:/a/b.csv", "csv", "/a/b.csv", {}),
        ("csv:/a/b.csv?image=x", "csv", "/a/b.csv", {"image": "x"}),
        ("csv:b?image=x y&caption=a,b", "csv", "b", {"image": "x y", "caption": "a,b"}),
        ("webdataset:/a/0?.tar", "webdataset", "/a/0?.tar", {}),
        ("tfds:coco:train[:10%]?caption=captions/text", "tfds", "coco:train[:10%]",
         {"caption": "captions/text"}),
        ("webdataset:gs://bucket/a.tar", "webdataset", "gs://bucket/a.tar", {}),
    ],
)  # fmt: skip
def test_specs_are_taken_apart(text: str, kind: str, path: str, options: dict) -> None:
    assert Spec.parse(text) == Spec(text, kind, path, options)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("csv:a.csv?image=x&image=y", "an option is given twice"),
        ("csv:a.csv?image=x&image=x", "an option is given twice"),
        ("folder:/a\0b", "holds a NUL"),
    ],
)
def test_what_means_nothing_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Spec.parse(text)


def test_a_bare_path_is_told_by_what_lies_there(tmp_path: Path) -> None:
    made = {"pairs.csv": "csv", "0.tar": "webdataset", "shards/0.tar": "webdataset",
            "prepared/dataset_info.json": "tfds", "images/cat/0.png": "folder"}  # fmt: skip
    for name, kind in made.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
        path = tmp_path / (name.partition("/")[0] if "/" in name else name)
        assert spec_of_path(str(path)) == f"{kind}:{path}"
    (tmp_path / "photo.jpg").write_text("")
    for name in ("nothing", "photo.jpg"):
        assert spec_of_path(str(tmp_path / name)) is None
    assert spec_of_path("") is None
