"""Evaluation sets of any kind and size on a tiny encoder, and what is refused."""

import dataclasses
import json
import re
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import draw_shape, write_shard

from otter_jax import sharding
from otter_jax.data.records import Record, RecordError
from otter_jax.embedding import encoder, features, image_collections
from otter_jax.evaluation import benchmarks, labelled_set, pair_set, sets
from otter_jax.evaluation.class_lists import ClassList
from otter_jax.models import dual_encoder
from otter_jax.pictures import gallery


@pytest.fixture
def parts(tiny_config: Callable, tmp_path: Path) -> tuple[encoder.Encoder, features.FeatureStore]:
    config = tiny_config()
    model, variables = dual_encoder.split(encoder.build_module(config))
    made = encoder.make_encoder(config, model, variables, sharding.make_mesh())
    store = features.FeatureStore(tmp_path / "f", made, freeze_image=True, freeze_text=False)
    return made, store


def open_one(spec: str, **options: str) -> sets.EvaluationSet:
    (opened,) = sets.open_sets([spec], image_size=32, **options)
    return opened


def fill_folder(folder: Path, colours: tuple[str, ...] = ("red", "dark_blue")) -> Path:
    for colour in colours:
        (folder / colour).mkdir(parents=True)
        for shape in ("circle", "bar", "ring"):
            drawn = draw_shape(colour.replace("_", ""), shape)
            (folder / colour / f"{shape}.png").write_bytes(drawn)
    return folder


def colours(**changes: object) -> benchmarks.ZeroShotSet:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, size=(4, 32, 32, 3), dtype=np.uint8)
    made = benchmarks.ZeroShotSet(
        "colours",
        images=image_collections.from_arrays(pixels),
        labels=np.array([[0, -1], [1, 0], [1, -1], [-1, -1]]),
        class_names=(("red",), ("blue", "navy")),
        left_out={"too dark": 2},
    )
    return dataclasses.replace(made, **changes)


@pytest.mark.parametrize("count", [1, 3, 20])
def test_pairs(parts: tuple, tmp_path: Path, shape_pairs: list, count: int) -> None:
    broken = [(b"broken", "a red bar")]
    write_shard(tmp_path / "pairs.tar", broken + shape_pairs[:count])
    opened = open_one(f"webdataset:{tmp_path / 'pairs.tar'}")
    found = opened.evaluate(*parts)
    assert found.keys() == opened.chance().keys()
    assert all(0 <= value <= 1 for value in found.values())
    if count == 1:
        assert set(found.values()) == {1.0}
    assert opened.contents()["pairs"] == count and len(opened.contents()["unreadable"]) == 1
    answers = opened.answers(*parts, count=24)
    assert answers.images.shape == (count, 32, 32, 3)
    assert answers.ranked.shape == (count, min(5, count + 1))


def test_a_folder_of_images_with_texts_is_retrieval(
    parts: tuple, tmp_path: Path, shape_pairs: list
) -> None:
    for number, (image, caption) in enumerate(shape_pairs[:4]):
        (tmp_path / f"{number}.png").write_bytes(image)
        (tmp_path / f"{number}.txt").write_text(f"{caption}\na drawing")
    opened = open_one(f"folder:{tmp_path}")
    assert isinstance(opened, pair_set.PairSet)
    assert opened.contents()["pairs"] == 4 and opened.contents()["captions"] == 8
    found = opened.evaluate(*parts)
    assert found["equal_i2t_recall@5"] >= found["i2t_recall@5"] > 0


def test_unreadable_images_do_not_shift_the_others(
    parts: tuple, tmp_path: Path, shape_pairs: list
) -> None:
    write_shard(tmp_path / "good.tar", shape_pairs[:12])
    write_shard(tmp_path / "bad.tar", [*shape_pairs[:5], (b"broken", "x"), *shape_pairs[5:12]])
    good, bad = (open_one(f"webdataset:{tmp_path / name}.tar") for name in ("good", "bad"))
    assert good.evaluate(*parts) == bad.evaluate(*parts)


class Torn:
    """Four pairs of one key, of which the second turns out unusable, and the third is broken."""

    name, skipped, fingerprint = "torn", {"no image": 1}, "f00d"

    def __len__(self) -> int:
        """Four."""
        return 4

    def __getitem__(self, number: int) -> Record:
        """One of them."""
        if number == 1:
            raise RecordError("missing image")
        image = b"broken" if number == 2 else draw_shape("red", "bar")
        captions = ("a red bar", "a bar")[: 1 + (number == 3)]
        return Record("same", image, captions[0], {}, captions)


UNREADABLE = {"record 1": "missing image", "same (record 2)": "not an image"}


def test_pairs_that_turn_out_unusable_are_left_out(parts: tuple) -> None:
    opened = pair_set.pairs_of_source("torn", Torn())
    # Both images are the same, so that whatever is found is right.
    assert opened.evaluate(*parts)["equal_i2t_recall@1"] == 1.0
    assert opened.captions == ["a red bar"] * 3 + ["a bar"]
    contents = opened.contents()
    assert contents["pairs"] == 2 and contents["skipped"] == {"no image": 1}
    assert {key: why.split(":")[0] for key, why in contents["unreadable"].items()} == UNREADABLE
    assert opened.answers(*parts, count=4).images.shape[0] == 2


def test_labelled_pairs_that_turn_out_unusable_are_left_out(parts: tuple) -> None:
    classes = ClassList(("a red bar", "ring"), (("bar",), ("ring",)), "two classes")
    labelled = benchmarks.own.from_pairs("torn", Torn(), classes)
    assert labelled.labels.tolist() == [[0], [-1], [0], [0]]
    opened = labelled_set.LabelledSet(labelled, ("{}",), "joined")
    opened.evaluate(*parts)
    assert list(opened.contents()["unreadable"]) == list(UNREADABLE)


def test_several_captions_in_a_tar(parts: tuple, tmp_path: Path, shape_pairs: list) -> None:
    write_shard(tmp_path / "0.tar", shape_pairs[:4])
    with tarfile.open(tmp_path / "0.tar") as old, tarfile.open(tmp_path / "1.tar", "w") as new:
        for member in old:
            data = old.extractfile(member).read()
            if member.name.endswith("json"):
                data = json.dumps({"captions": ["a red bar", " a ring ", ""]}).encode()
            member.size = len(data)
            new.addfile(member, __import__("io").BytesIO(data))
    opened = open_one(f"webdataset:{tmp_path / '1.tar'}")
    assert opened.captions == ["a red bar", "a ring"] * 4
    assert opened.image_of_text.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    found = opened.evaluate(*parts)  # All images have the same captions.
    assert found["equal_i2t_recall@1"] == found["equal_t2i_recall@1"] == 1.0
    assert found["i2t_recall@1"] == 0.25  # Of equal ones the first comes first.
    answers = opened.answers(*parts, count=4)
    assert answers.ranked[:, 0].max() < 2 and set(answers.truth) == {"a red bar | a ring"}


def test_equal_images_have_each_other_s_captions(
    parts: tuple, tmp_path: Path, shape_pairs: list
) -> None:
    (one, caption), (other, another) = shape_pairs[:2]
    write_shard(tmp_path / "0.tar", [(one, caption), (other, another), (one, "the same again")])
    opened = open_one(f"webdataset:{tmp_path / '0.tar'}")
    assert opened.first_image.tolist() == [0, 1, 0]
    found = opened.evaluate(*parts)
    assert found["equal_t2i_recall@1"] >= found["t2i_recall@1"]
    assert found.keys() == opened.chance().keys()
    answers = opened.answers(*parts, count=3)
    both = f"{caption} | the same again"
    assert sorted(answers.truth) == sorted([both, both, another])


def test_pairs_of_a_csv(parts: tuple, tmp_path: Path) -> None:
    fill_folder(tmp_path / "images")
    (tmp_path / "captions.csv").write_text(
        "caption,image\n"
        '"a circle, red",images/red/circle.png\n'
        "a blue ring,images/dark_blue/ring.png\n"
        "a red circle,images/red/circle.png\n"
        ",images/red/ring.png\n"
        "gone,images/gone.png\n"
    )
    opened = open_one(f"csv:{tmp_path / 'captions.csv'}")
    assert opened.captions == ["a circle, red", "a red circle", "a blue ring"]
    assert opened.image_of_text.tolist() == [0, 0, 1]
    assert opened.contents()["skipped"] == {"empty caption": 1, "missing image": 1}
    assert opened.contents()["captions"] == 3
    assert set(opened.evaluate(*parts)) == {"i2t_recall@1", "t2i_recall@1"}


def test_labelled(parts: tuple) -> None:
    opened = labelled_set.LabelledSet(colours())
    found = opened.evaluate(*parts)
    assert set(found) == {"hit@1"} == set(opened.chance())  # Of two, the best two are all.
    answers = opened.answers(*parts, count=24)
    assert sorted(answers.truth) == ["blue, navy", "blue, navy | red", "red"]
    assert opened.contents() == {
        "images": 4, "classes": 2, "images without a label": 1, "left_out": {"too dark": 2},
        "unreadable": {},
    }  # fmt: skip


def test_hits_are_those_of_embeddings_and_prompts(parts: tuple) -> None:
    made, store = parts
    labelled = colours()
    images = made.encode_image(np.stack([labelled.images.decode(n) for n in range(3)]))
    for names, prompts in (
        ("joined", [["a photo of red."], ["a photo of blue,or navy."]]),
        ("averaged", [["a photo of red."], ["a photo of blue.", "a photo of navy."]]),
    ):
        bank = np.stack([made.encode_text(each).mean(axis=0) for each in prompts])
        bank /= np.linalg.norm(bank, axis=1, keepdims=True)
        best = (images @ bank.T).argmax(axis=1)
        wanted = np.mean([best[0] == 0, True, best[2] == 1])
        found = labelled_set.LabelledSet(labelled, names=names).evaluate(made, store)
        assert found["hit@1"] == pytest.approx(wanted)


def test_names_that_repeat_are_counted_both_ways(parts: tuple) -> None:
    twins = colours(labels=np.array([[0], [1], [2], [3]]), class_names=(("red",), ("blue",)) * 2)
    opened = labelled_set.LabelledSet(twins)
    first, second = opened.countings[""], opened.countings["merged_"]
    assert first.labels.tolist() == [[0], [1], [2], [3]]
    assert second.labels.tolist() == [[0], [1], [0], [1]] and second.classes.tolist() == [0, 1]
    found = opened.evaluate(*parts)
    assert set(found) == {"hit@1", "hit@2", "merged_hit@1"} == set(opened.chance())
    assert found["merged_hit@1"] >= found["hit@1"]
    assert found["hit@1"] <= 0.5  # The twins of 0 and 1 never come first.
    assert opened.contents()["classes of another's name"] == 2


def test_other_images_have_other_features(parts: tuple) -> None:
    rng = np.random.default_rng(0)
    ranked = []
    for _ in range(2):  # The same name and shape.
        pixels = rng.integers(0, 255, size=(4, 32, 32, 3), dtype=np.uint8)
        labelled = colours(images=image_collections.from_arrays(pixels))
        ranked.append(labelled_set.LabelledSet(labelled).answers(*parts, count=3).scores)
    assert (np.sort(ranked[0]) != np.sort(ranked[1])).any()


def test_folder_of_a_few_images(parts: tuple, tmp_path: Path) -> None:
    folder = fill_folder(tmp_path / "shapes")
    (folder / "red" / "broken.png").write_bytes(b"broken")
    opened = open_one(f"folder:{folder}")
    assert set(opened.evaluate(*parts)) == {"hit@1"}
    assert list(opened.contents()["unreadable"]) == ["red/broken.png"]
    gallery.draw_set(tmp_path, opened, *parts)
    assert len(list(tmp_path.glob("predictions_folder*.png"))) == 1


def test_features_are_computed_once_for_all_sets_that_share_them(
    parts: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fill_folder(tmp_path / "shapes")
    opened = sets.open_sets(
        [f"folder:{folder}", f"folder:{folder}?classes={tmp_path / 'names.txt'}"], image_size=32
    )
    (tmp_path / "names.txt").write_text("red\tscarlet\ndark_blue\tnavy|dark blue\n")
    plain, named = opened
    plain.evaluate(*parts)

    def refuse(*arguments: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(encoder.Encoder, "image_features", refuse)
    assert named.evaluate(*parts).keys() == plain.chance().keys()
    assert named.labelled.class_names == (("scarlet",), ("navy", "dark blue"))


def test_pairs_with_a_class_list(parts: tuple, tmp_path: Path) -> None:
    write_shard(tmp_path / "0.tar", [(draw_shape("red", "bar"), "red|bar"),
                                     (draw_shape("blue", "ring"), "ring")])  # fmt: skip
    (tmp_path / "names.txt").write_text("red\nbar\nring\n")
    spec = f"webdataset:{tmp_path / '0.tar'}?classes={tmp_path / 'names.txt'}"
    opened = open_one(spec)
    assert opened.labelled.labels.tolist() == [[0, 1], [2, -1]]
    assert opened.name == spec and set(opened.evaluate(*parts)) == {"hit@1", "hit@2"}
    (tmp_path / "names.txt").write_text("red\nbar\n")
    with pytest.raises(ValueError, match=r"image 2 has the unknown class 'ring'.*2 classes"):
        open_one(spec)


PARENT = str(Path(__file__).parent)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("imagenot", "unknown set 'imagenot'; choose from open_clipart"),
        ("folder", "unknown set 'folder'.* folder:PATH"),
        (PARENT, f"unknown set {PARENT!r}; write folder:{PARENT}"),
        ("folder:/x?class=/y", "unknown option 'class'; there are: classes"),
        ("laion:/x", "unknown set 'laion:/x'.* webdataset:PATH, tfds"),
        ("probe:csv:/x", "a probe is written probe:folder:PATH"),
    ],
)
def test_what_means_nothing_is_refused(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_one(spec)
    if not spec.startswith("probe:csv"):  # Early, only the path is looked at.
        with pytest.raises(ValueError, match=message):
            sets.refuse_unknown_sets(["open_clipart", 3, spec])


@pytest.mark.parametrize("form", ["folder:{}", "csv:{}", "imagenet1k:{}?classes=x", "webdataset:{}",
                                  "webdataset:{}/{{0..3}}.tar", "probe:folder:{}"])  # fmt: skip
def test_missing_paths_are_refused_before_anything_is_opened(tmp_path: Path, form: str) -> None:
    missing = form.format(tmp_path / "missing")
    with pytest.raises(FileNotFoundError, match=r"config\.evaluate\.sets: .*missing"):
        sets.refuse_unknown_sets([missing])
    for number in range(4):
        (tmp_path / f"{number}.tar").touch()
    sets.refuse_unknown_sets([form.format(tmp_path), "tfds:mnist:test", "webdataset:gs://a/b.tar"])


@pytest.mark.parametrize("spec", ["openmoji", "webdataset:gs://a/b.tar?captions=lines"])
def test_one_set_twice_is_refused(spec: str) -> None:
    with pytest.raises(ValueError, match=rf"names '{re.escape(spec)}' twice"):
        list(sets.open_sets([spec, spec], image_size=32))
    with pytest.raises(ValueError, match=rf"names '{re.escape(spec)}' twice"):  # Opening nothing.
        sets.refuse_unknown_sets([spec, "open_clipart", spec])


def test_only_unreadable_images(parts: tuple, tmp_path: Path) -> None:
    write_shard(tmp_path / "pairs.tar", [(b"broken", "a"), (b"too", "b")])
    with pytest.raises(ValueError, match="not one of 2 images can be read"):
        open_one(f"webdataset:{tmp_path / 'pairs.tar'}").evaluate(*parts)
