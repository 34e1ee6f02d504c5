"""The field's table by one command, on few random pairs."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from otter_jax.data.sources import open_source
from otter_jax.embedding.image_collections import Features
from studies import noise, runs
from studies import standard_noise as study

SPECS = ["--train=a", "--validation=b", "--test=c"]


def random_side(rng: np.random.Generator, images: int, mixing: np.ndarray) -> study.Side:
    """Return images that are a linear function of what their two captions have in common."""
    meaning = rng.normal(size=(images, 16))
    image = (meaning @ mixing).astype(np.float32)
    image_of = np.repeat(np.arange(images), 2)
    text = (meaning[image_of] + 0.3 * rng.normal(size=(2 * images, 16))).astype(np.float32)
    words = tuple(f"image {i}, {n}" for n, i in enumerate(image_of))
    categories = tuple((str(i % 3),) for i in image_of)
    return study.Side(image, text, noise.Captions(words, image_of), categories)


@pytest.fixture(scope="module")
def pairs() -> study.Study:
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(16, 24))
    sides = [random_side(rng, images, mixing) for images in (300, 40, 40)]
    components = runs.principal_components(sides[0].image, *(side.image for side in sides))
    nouns = tuple((text.split(",")[0][-1],) for text in sides[0].captions.text)
    return study.Study(*sides, components, nouns, {}, False)


@pytest.mark.parametrize("kind", ["random", "category", "noun"])
def test_wrong_captions_have_their_share(pairs: study.Study, kind: str) -> None:
    data = study.make_data(pairs, noise.Noise(kind, 0.4), 1)
    wrong = data.caption_of != data.train
    assert wrong.mean() == pytest.approx(0.4, abs=0.02)
    again = study.make_data(pairs, noise.Noise(kind, 0.4), 1)
    np.testing.assert_array_equal(again.text, data.text)


def test_a_cell_is_tuned_tested_and_tabled(
    pairs: study.Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "Setting", lambda: study.methods.Setting(batch_size=100))
    for method in ("infonce", "oracle", "trust weights"):
        for seeds in (1, 2):  # What is on record is not run again.
            study.run_cell("random:0.6", method, pairs, tmp_path, trials=1, seeds=seeds)
    records = study.noisy_pairs.read_records(tmp_path / "records.jsonl")
    assert [(each["kind"], each["seed"]) for each in records[:3]] == [
        ("trial", 1000),
        ("test", 0),
        ("test", 1),
    ]
    assert len(records) == 9 and all(each["pairs"] == 600 for each in records)
    scores = {
        method: np.mean([study.score(each) for each in records if each["method"] == method])
        for method in ("infonce", "oracle", "trust weights")
    }
    assert scores["infonce"] < scores["trust weights"] and scores["infonce"] < scores["oracle"]
    lines = study.tables(records)
    assert any("random:0.6: 5" in line or "random:0.6: 6" in line for line in lines)
    (oracle,) = (line for line in lines if line.startswith("| oracle |"))
    assert oracle.endswith("100 [100, 100] |") and oracle.split(" | ")[2] == "2"


def test_recalls_are_customary_unless_equal_captions_count() -> None:
    captions = noise.Captions(("a cat", "A cat.", "a dog"), np.arange(3))
    image = np.eye(3, dtype=np.float32)
    text = image[[1, 0, 2]]  # The cats are taken for each other.
    customary = study.recalls(image, text, captions, False)
    assert customary["i2t_recall@1"] == customary["t2i_recall@1"] == pytest.approx(1 / 3)
    equal = study.recalls(image, text, captions, True)
    assert set(study.METRICS) <= set(equal) and equal["i2t_recall@1"] == 1.0


def test_karpathy_splits_become_tables(tmp_path: Path) -> None:
    listed = [
        {"split": split, "filename": f"{n}.png", "sentences": [{"raw": f"{n}a"}, {"raw": f"{n}b"}]}
        | ({"filepath": "val2014"} if n == 1 else {})
        for n, split in enumerate(["train", "restval", "val", "test"])
    ]
    (tmp_path / "dataset.json").write_text(json.dumps({"images": listed}))
    for name in ("0.png", "2.png", "3.png", "val2014/1.png"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"P5 1 1 255\n0")
    specs = study.write_karpathy(tmp_path / "dataset.json", tmp_path / "images", tmp_path)
    source = open_source(specs["train"])
    assert [source[n].captions for n in range(2)] == [("0a", "0b"), ("1a", "1b")]
    assert len(open_source(specs["validation"])) == len(open_source(specs["test"])) == 1
    (tmp_path / "dataset.json").write_text("[]")
    with pytest.raises(ValueError, match=r"is no dataset_coco\.json"):
        study.write_karpathy(tmp_path / "dataset.json", tmp_path, tmp_path)


def test_a_side_has_a_row_a_caption(monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source("icons", "style_test")
    few = study.restrict(source, np.arange(len(source)) < 4, "not drawn")
    features = np.arange(8, dtype=np.float32).reshape(4, 2)
    monkeypatch.setattr(study, "compute_features", lambda *_: Features(features, np.arange(4), {}))
    lengths = lambda _, texts, __: np.array([[len(each)] for each in texts])  # noqa: E731
    parts = SimpleNamespace(encoder=None, store=SimpleNamespace(text_features=lengths))
    side = study.load_side(few, parts, "test", None)
    assert side.text[:, 0].tolist() == [len(each) for each in side.captions.text]
    assert side.captions.text == tuple(few.first_caption(n) for n in range(4))
    assert side.categories == tuple((few.key(n).split(":")[0],) for n in range(4))
    monkeypatch.setattr(
        study, "compute_features", lambda *_: Features(features[:3], np.arange(3), {"x": "cut"})
    )
    with pytest.raises(ValueError, match=r"1 images cannot be read \(x: cut\)"):
        study.load_side(few, parts, "test", None)


def test_sides_are_arranged_by_a_file(pairs: study.Study, tmp_path: Path) -> None:
    side, order = pairs.test, np.random.default_rng(1).permutation(40)
    lines = [side.captions.text[2 * image + n] for image in order for n in (1, 0)]
    (tmp_path / "caps.txt").write_text("".join(f"{line}\n" for line in lines))
    found = study.arrange(side, tmp_path / "caps.txt")
    assert found.captions.text == tuple(lines)
    assert found.captions.image_of.tolist() == [image for image in range(40) for _ in range(2)]
    np.testing.assert_array_equal(found.image, side.image[order])
    np.testing.assert_array_equal(found.text[0], side.text[2 * order[0] + 1])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([*SPECS], "give --noise"),
        (["--train=a", "--noise=random:0.4"], "give --train, --validation and --test"),
        ([*SPECS, "--noise=random"], "unknown noise 'random'"),
        (["--karpathy=x.json", "--noise=random:0.4"], "or --karpathy and --images"),
    ],
)
def test_a_command_that_lacks_something_is_refused(
    given: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit):
        study.parse_arguments(["--workdir=w", *given])
    assert message in capsys.readouterr().err


def test_a_workdir_of_other_data_is_refused(tmp_path: Path) -> None:
    given = [f"--workdir={tmp_path}", *SPECS, "--noise=random:0.4"]
    for _ in range(2):
        study.refuse_other_data(study.parse_arguments(given))
    with pytest.raises(ValueError, match="has records of --pairs=None, and not of 100"):
        study.refuse_other_data(study.parse_arguments([*given, "--pairs=100"]))
