"""Probing a tiny tower on drawings of its own."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import draw_shape

from otter_jax import sharding
from otter_jax.embedding import encoder, features
from otter_jax.evaluation import linear_probe, probe_set
from otter_jax.models import dual_encoder
from otter_jax.pictures import gallery

COLOURS = ("red", "green", "blue")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split, sizes in (("train", (40, 44, 48, 52)), ("test", (42, 50))):
        for colour in COLOURS:
            for shape in ("circle", "square"):
                for size in sizes:
                    path = tmp_path / "set" / split / colour / f"{shape}{size}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(draw_shape(colour, shape, size))
    return tmp_path / "set"


@pytest.fixture
def parts(tiny_config: Callable, tmp_path: Path) -> tuple[encoder.Encoder, features.FeatureStore]:
    config = tiny_config()
    model, variables = dual_encoder.split(encoder.build_module(config))
    made = encoder.make_encoder(config, model, variables, sharding.make_mesh())
    return made, features.FeatureStore(tmp_path / "f", made, freeze_image=True, freeze_text=True)


def test_colours_are_told_apart(
    parts: tuple, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = probe_set.ProbeSet.open(f"probe:folder:{folder}")
    found = opened.evaluate(*parts)
    assert found["probe_accuracy"] == 1.0 and found["knn_accuracy"] == 1.0
    assert opened.chance() == {"probe_accuracy": 1 / 3, "knn_accuracy": 1 / 3}
    assert opened.contents() == {
        "train images": 24, "test images": 12, "classes": 3, "unreadable": {},
    }  # fmt: skip

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("fitted again")

    monkeypatch.setattr(linear_probe, "search_and_fit", refuse)
    answers = opened.answers(*parts, count=4)
    assert [answers.names[best] for best in answers.ranked[:, 0]] == answers.truth
    np.testing.assert_allclose(answers.scores.sum(axis=1), 1.0, rtol=1e-4)
    gallery.draw_set(tmp_path, opened, *parts)
    assert list(tmp_path.glob("predictions_probe*.png"))


def test_options(parts: tuple, folder: Path) -> None:
    (folder / "test" / "red" / "broken.png").write_bytes(b"broken")
    opened = probe_set.ProbeSet.open(
        f"probe:folder:{folder}?metric=mean_per_class&features=embedding"
    )
    found = opened.evaluate(*parts)
    assert set(found) == {"probe_mean_per_class", "knn_mean_per_class"}
    assert list(opened.contents()["unreadable"]) == ["red/broken.png"]
    assert opened._known(*parts)[0].shape == (24, 8)


def test_a_validation_split_of_ones_own(
    parts: tuple, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for split, shape in (("val", "circle"), ("test", "square")):  # Each half of what was tested.
        for path in sorted((folder / "test").rglob(f"{shape}*.png")):
            moved = folder / split / path.parent.name / path.name
            moved.parent.mkdir(parents=True, exist_ok=True)
            path.rename(moved)
    seen = {}
    search = linear_probe.search_and_fit

    def look(features: np.ndarray, labels: np.ndarray, validates: np.ndarray, *rest, **more):
        seen["labels"] = labels[validates].tolist()
        return search(features, labels, validates, *rest, **more)

    monkeypatch.setattr(linear_probe, "search_and_fit", look)
    opened = probe_set.ProbeSet.open(f"probe:folder:{folder}")
    assert opened.evaluate(*parts)["probe_accuracy"] == 1.0
    assert seen["labels"] == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("probe:webdataset:/x", ValueError, "written probe:folder:PATH"),
        ("probe:folder", ValueError, "written probe:folder:PATH"),
        ("probe:folder:/x?metric=f1", ValueError, "metric should be accuracy or mean_per_class"),
        ("probe:folder:/x?k=3", ValueError, "unknown option 'k'"),
        ("probe:folder:/nowhere", FileNotFoundError, "no folder /nowhere/train"),
    ],
)
def test_bad_probes_are_refused(spec: str, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        probe_set.ProbeSet.open(spec)


def test_test_classes_need_training_images(folder: Path) -> None:
    (folder / "test" / "red").rename(folder / "test" / "pink")
    with pytest.raises(ValueError, match="class 'pink' has no training images"):
        probe_set.ProbeSet.open(f"probe:folder:{folder}")
