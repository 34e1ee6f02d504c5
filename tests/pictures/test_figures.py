"""Pictures are written and not blank, whatever the captions hold."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from otter_jax.pictures import figures

ODD = ["$x_1$ and $", "back\\slash", "two\nlines", "😀 emoji 漢字", "long " * 80, "", "100 % {}"]


def images(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, size=(count, 16, 16, 3), dtype=np.uint8)


def assert_drawn(path: Path) -> None:
    pixels = np.asarray(Image.open(path).convert("L"))
    assert min(pixels.shape) > 200 and pixels.std() > 5


def test_targets_with_odd_captions(tmp_path: Path) -> None:
    count = len(ODD)
    path = tmp_path / "new folder" / "targets.png"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures.draw_targets(path, images(count), ODD, np.full((count, count), 1 / count), ODD[0])
    assert_drawn(path)


def test_predictions_with_odd_names(tmp_path: Path) -> None:
    path = tmp_path / "predictions.png"
    ranked = [[(name, 0.5) for name in ODD[:5]] for _ in ODD]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures.draw_predictions(path, images(len(ODD)), ODD, ranked, "title")
    assert_drawn(path)


def test_right_names_are_marked(tmp_path: Path) -> None:
    def draw(name: str) -> np.ndarray:
        path = tmp_path / f"{name}.png"
        figures.draw_predictions(path, images(1), ["cat"], [[(name, 0.5)]], "title")
        return np.asarray(Image.open(path).convert("RGB")).astype(int)

    def green(pixels: np.ndarray) -> int:
        return int((pixels[..., 1] - pixels[..., 0] > 60)[:, 140:].sum())

    assert green(draw("cat")) > 20 > green(draw("dog"))


def test_sizes_that_differ_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"3 images need 3 captions and a \[3, 3\] target"):
        figures.draw_targets(tmp_path / "a.png", images(3), ["a"], np.eye(3), "t")
    with pytest.raises(ValueError, match="2 images, 1 true names"):
        figures.draw_predictions(tmp_path / "a.png", images(2), ["a"], [[]], "t")


@pytest.mark.parametrize("text", ODD)
def test_plain_is_one_short_line(text: str) -> None:
    line = figures.plain(text, 20)
    assert line and "\n" not in line and len(line) <= 20


def test_plain_keeps_words_and_cuts_unbroken_ones() -> None:
    assert figures.plain("a red circle on white", 14) == "a red circle…"
    assert figures.plain("貓" * 60, 10) == "貓" * 9 + "…"
