"""Pairs of any SPEC as frozen towers see them."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from otter_jax.data.sources import open_source
from otter_jax.embedding.image_collections import Features
from studies import frozen_pairs, noise


def random_side(rng: np.random.Generator, images: int, mixing: np.ndarray) -> frozen_pairs.Side:
    """Return images that are a linear function of what their two captions have in common."""
    meaning = rng.normal(size=(images, 16))
    image = (meaning @ mixing).astype(np.float32)
    image_of = np.repeat(np.arange(images), 2)
    text = (meaning[image_of] + 0.3 * rng.normal(size=(2 * images, 16))).astype(np.float32)
    words = tuple(f"image {i}, {n}" for n, i in enumerate(image_of))
    categories = tuple((str(i % 3),) for i in image_of)
    return frozen_pairs.Side(image, text, noise.Captions(words, image_of), categories)


@pytest.fixture
def specs(tmp_path: Path) -> dict[str, str]:
    """Return Karpathy's splits of four images, of which one is in a folder."""
    listed = [
        {"split": split, "filename": f"{n}.png", "sentences": [{"raw": f"{n}a"}, {"raw": f"{n}bc"}]}
        | ({"filepath": "val2014"} if n == 1 else {})
        for n, split in enumerate(["train", "restval", "val", "test"])
    ]
    (tmp_path / "dataset.json").write_text(json.dumps({"images": listed}))
    for name in ("0.png", "2.png", "3.png", "val2014/1.png"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"P5 1 1 255\n0")
    return frozen_pairs.write_karpathy(tmp_path / "dataset.json", tmp_path / "images", tmp_path)


def test_karpathy_splits_become_tables(specs: dict[str, str], tmp_path: Path) -> None:
    source = open_source(specs["train"])
    assert [source[n].captions for n in range(2)] == [("0a", "0bc"), ("1a", "1bc")]
    assert len(open_source(specs["validation"])) == len(open_source(specs["test"])) == 1
    (tmp_path / "dataset.json").write_text("[]")
    with pytest.raises(ValueError, match=r"is no dataset_coco\.json"):
        frozen_pairs.write_karpathy(tmp_path / "dataset.json", tmp_path, tmp_path)


def test_a_side_has_a_row_a_caption(specs: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    source, features = open_source(specs["train"]), np.eye(2, dtype=np.float32)
    found = [
        Features(features, np.arange(2), {}),
        Features(features[:1], np.arange(1), {"x": "cut"}),
    ]
    monkeypatch.setattr(frozen_pairs, "compute_features", lambda *_: found.pop(0))

    def lengths(_: object, texts: list[str], __: str) -> np.ndarray:
        return np.array([[len(each)] for each in texts])

    parts = SimpleNamespace(encoder=None, store=SimpleNamespace(text_features=lengths))
    side = frozen_pairs.load_side(source, parts, "train", None)
    assert side.text[:, 0].tolist() == [2, 3, 2, 3]
    assert side.captions.text == ("0a", "0bc", "1a", "1bc")
    assert side.captions.image_of.tolist() == [0, 0, 1, 1]
    folders = [Path(each[0]).name for each in side.categories]
    assert folders == ["images", "images", "val2014", "val2014"]
    with pytest.raises(ValueError, match=r"1 images cannot be read \(x: cut\)"):
        frozen_pairs.load_side(source, parts, "train", None)


def test_sides_are_arranged_by_a_file(tmp_path: Path) -> None:
    mixing = np.ones((16, 24))
    side = random_side(np.random.default_rng(0), 40, mixing)
    order = np.random.default_rng(1).permutation(40)
    lines = [side.captions.text[2 * image + n] for image in order for n in (1, 0)]
    (tmp_path / "caps.txt").write_text("".join(f"{line}\n" for line in lines))
    found = frozen_pairs.arrange(side, tmp_path / "caps.txt")
    assert found.captions.text == tuple(lines)
    assert found.captions.image_of.tolist() == [image for image in range(40) for _ in range(2)]
    np.testing.assert_array_equal(found.image, side.image[order])
    np.testing.assert_array_equal(found.text[0], side.text[2 * order[0] + 1])
