"""Which feature of a TFDS data set is the caption: published sets, and what is not plain."""

from pathlib import Path
from typing import Any

import pytest

tfds = pytest.importorskip("tensorflow_datasets")

from tensorflow_datasets.proto import tf_example_pb2  # noqa: E402
from tfds_schemas import PNG, SETS, build, example, letters, text_of  # noqa: E402

from otter_jax.data.sources import open_source  # noqa: E402
from otter_jax.data.tfds_captions import (  # noqa: E402
    CaptionFeature,
    caption_features,
    choose_caption,
)


def sample(feature: CaptionFeature) -> list[str]:
    if feature.class_names is not None:
        return list(feature.class_names[:2])
    return [text_of(feature.name, number) for number in range(3)]


@pytest.mark.parametrize("name", SETS)
def test_published_sets(name: str) -> None:
    features = caption_features(build(SETS[name]["features"]))
    if expected := SETS[name]["caption"]:
        assert choose_caption(features, "", name, sample).name == expected
    else:
        with pytest.raises(ValueError, match=rf"^{name}: caption column not found: .* There are "):
            choose_caption(features, "", name, sample)
    for each in features:
        assert choose_caption(features, each.name, name, sample) == each


def test_what_the_stored_sets_are() -> None:
    captions = [each["caption"] for each in SETS.values()]
    assert len(captions) > 100 and captions.count(None) > 20 and captions.count("label") > 60


class Made(tfds.core.GeneratorBasedBuilder):
    """A data set of some features, with records made up for them."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, kinds: dict[str, Any], **options: Any) -> None:
        """Take the features as they are described."""
        self.kinds = kinds
        super().__init__(**options)

    def _info(self) -> Any:
        return tfds.core.DatasetInfo(builder=self, features=build(self.kinds))

    def _split_generators(self, manager: Any) -> Any:
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Any:
        yield from ((n, example(self.kinds, n)) for n in range(4))


def prepare(folder: Path, features: dict[str, Any]) -> str:
    """Write a data set of these features; its SPEC."""
    kinds = {"image": "Image", **features}
    Made(kinds, data_dir=folder, file_format="array_record").download_and_prepare()
    return f"tfds:{folder}/made/1.0.0"


def captions(spec: str) -> set[tuple[str, ...]]:
    source = open_source(spec)
    return {source[i].captions for i in range(len(source))}


@pytest.mark.parametrize("name", ["coco_captions", "imagenet2012", "stanford_dogs"])
def test_records_of_published_sets(tmp_path: Path, name: str) -> None:
    found = captions(prepare(tmp_path, SETS[name]["features"]))
    sentences = {(text_of("raw", n), text_of("raw", n + 1)) for n in range(4)}
    classes = {(f"class {letters(n)}",) for n in range(4)}
    expected = {"coco_captions": sentences, "imagenet2012": classes, "stanford_dogs": classes}
    if name in expected:
        assert found == expected[name]
    else:  # Lists of lists: every record has its three texts, each once.
        assert {len(each) for each in found} == {3} and len(found) == 4


def test_a_name_with_a_slash_is_a_feature_like_any_other(tmp_path: Path) -> None:
    spec = prepare(tmp_path, {"image/filename": "Text", "label": "ClassLabel:3", "a": {"b": "str"}})
    assert captions(f"{spec}?caption=image/filename") == {(f"filename_{n:05d}",) for n in range(4)}
    assert captions(f"{spec}?caption=a/b") == {(f"b_{n:05d}",) for n in range(4)}


def stored_example(features: dict[str, list[Any]]) -> bytes:
    """A record as TFDS stores it; its own writer needs TensorFlow for lists of unequal lists."""
    example = tf_example_pb2.Example()
    for key, values in features.items():
        kind = {bytes: "bytes_list", float: "float_list", int: "int64_list"}[type(values[0])]
        getattr(example.features.feature[key], kind).value.extend(values)
    return example.SerializeToString()


def test_captions_of_every_object_in_an_image() -> None:
    """As in ref_coco, where objects have unequal numbers of expressions."""
    described = {"image": "Image", "objects": [{"area": "int64", "refexp": [{"raw": "Text"}]}]}
    features = build(described)
    raw = "objects/refexp/raw/ragged"
    record = stored_example(
        {
            "image": [PNG],
            "objects/area": [3, 4, 5],
            f"{raw}_flat_values": [b"the left cat", b"a cat", b"the dog"],
            f"{raw}_row_lengths_0": [2, 0, 1],
        }
    )
    stored = features.deserialize_example_np(record, decoders={"image": tfds.decode.SkipDecoding()})
    [caption] = caption_features(features)
    assert caption.is_list and caption.name == SETS["ref_coco"]["caption"]
    assert caption.texts(stored) == ["the left cat", "a cat", "the dog"]


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ({"words": "Text"}, None),  # The only text, but it reads like names of files.
        ({"raw": "Text"}, "raw"),
        ({"raw": "Text", "file_name": "Text"}, "raw"),
        ({"raw": "Text", "label": "ClassLabel:3"}, None),
        ({"raw": "Text", "answer": "Text"}, None),
        ({"title": "Text", "label": "ClassLabel:3"}, "title"),
        ({"shape": "ClassLabel:3", "words": "Text"}, "shape"),
        ({"shape": "ClassLabel:3", "colour": "ClassLabel:3"}, None),
        ({"shape": "ClassLabel:3", "colours": ["ClassLabel:3"]}, None),
        ({"label": "Text", "file": "Text"}, "label"),
        ({"caption": {"en": "Text", "de": "Text"}}, None),
        ({"captions": [{"text": "str", "language": "str"}]}, "captions/text"),
        ({"captions": ["str"]}, "captions"),
    ],
)
def test_what_is_plain(features: dict[str, Any], expected: str | None) -> None:
    found = caption_features(build(features))
    if expected:
        assert choose_caption(found, "", "x", sample).name == expected
    else:
        with pytest.raises(ValueError, match="it is not plain which feature"):
            choose_caption(found, "", "x", sample)


def test_the_features_are_listed_with_an_example_each(tmp_path: Path) -> None:
    spec = prepare(tmp_path, {"raw": "Text", "label": "ClassLabel:3", "file_name": "Text"})
    with pytest.raises(
        ValueError,
        match=r"\?caption=FEATURE to the SPEC\. There are 'file_name' \('file_name_0000\d'\), "
        r"'label' \('class_[abc]'\), 'raw' \('\D+'\)$",
    ):
        open_source(spec)
