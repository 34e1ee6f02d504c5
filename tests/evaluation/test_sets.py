"""Evaluation sets of any size, and what is refused."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import write_shard

from otter_jax import encoder, features, sharding
from otter_jax.evaluation import benchmarks, sets
from otter_jax.models import dual_encoder


@pytest.fixture
def parts(tiny_config: Callable, tmp_path: Path) -> tuple[encoder.Encoder, features.FeatureStore]:
    config = tiny_config()
    model, variables = dual_encoder.split(encoder.build_module(config))
    made = encoder.make_encoder(config, model, variables, sharding.make_mesh())
    store = features.FeatureStore(tmp_path / "f", made, freeze_image=True, freeze_text=False)
    return made, store


def open_one(spec: str) -> sets.EvaluationSet:
    (opened,) = sets.open_sets([spec], image_size=32, fit="crop", template="a photo of {}.")
    return opened


@pytest.mark.parametrize("count", [1, 3, 20])
def test_pairs(parts: tuple, tmp_path: Path, shape_pairs: list, count: int) -> None:
    broken = [(b"broken", "a red bar")]
    write_shard(tmp_path / "pairs.tar", shape_pairs[:count] + broken)
    opened = open_one(f"webdataset:{tmp_path / 'pairs.tar'}")
    found = opened.evaluate(*parts)
    assert found.keys() == opened.chance().keys()
    assert all(0 <= value <= 1 for value in found.values())
    if count == 1:
        assert set(found.values()) == {1.0}
    assert opened.contents()["pairs"] == count and len(opened.contents()["unreadable"]) == 1
    answers = opened.answers(*parts, count=24)
    assert answers.images.shape == (count, 32, 32, 3)
    assert answers.ranked.shape == (count, min(5, count))


def test_labelled(parts: tuple) -> None:
    rng = np.random.default_rng(0)
    labelled = benchmarks.ZeroShotSet(
        "colours",
        images=rng.integers(0, 255, size=(4, 32, 32, 3), dtype=np.uint8),
        labels=np.array([[0, -1], [1, 0], [1, -1], [-1, -1]]),
        class_names=("red", "blue"),
        left_out={"too dark": 2},
    )
    opened = sets.LabelledSet(labelled, "a photo of {}.")
    found = opened.evaluate(*parts)
    assert found["hit@5"] == 1.0 and found.keys() == opened.chance().keys()
    assert opened.answers(*parts, count=24).truth == ["red", "blue | red", "blue", ""]
    assert opened.contents() == {"images": 4, "classes": 2, "left_out": {"too dark": 2}}


def test_other_images_have_other_features(parts: tuple) -> None:
    rng = np.random.default_rng(0)
    ranked = []
    for _ in range(2):  # The same name and shape.
        images = rng.integers(0, 255, size=(3, 32, 32, 3), dtype=np.uint8)
        labelled = benchmarks.ZeroShotSet("x", images, np.zeros((3, 1), int), ("red", "blue"), {})
        ranked.append(sets.LabelledSet(labelled, "{}").answers(*parts, count=3).scores)
    assert (ranked[0] != ranked[1]).any()


def test_unknown_set_is_named() -> None:
    with pytest.raises(ValueError, match="unknown set 'imagenot'; choose from open_clipart"):
        open_one("imagenot")


def test_only_unreadable_images(parts: tuple, tmp_path: Path) -> None:
    write_shard(tmp_path / "pairs.tar", [(b"broken", "a"), (b"too", "b")])
    with pytest.raises(ValueError, match="not one of 2 images can be read"):
        open_one(f"webdataset:{tmp_path / 'pairs.tar'}").evaluate(*parts)
