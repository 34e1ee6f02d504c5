"""What the demo answers, and what it refuses, without its page."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from otter_jax.commands import demo, main


class Model:
    """Stands for a model: it remembers what it was asked."""

    def classify(self, image: np.ndarray, labels: list[str], template: str) -> np.ndarray:
        self.asked = image.shape, labels, template
        return np.full((1, len(labels)), 1 / len(labels), np.float32)


@pytest.fixture
def picture(tmp_path: Path) -> str:
    path = tmp_path / "picture.png"
    Image.new("RGB", (40, 30), "red").save(path)
    return str(path)


def test_classes_are_read_as_they_are_typed(picture: str) -> None:
    model = Model()
    found = demo.classify(model, picture, " a cat,a dog\na cat ,, <b>", "")
    assert found == {name: pytest.approx(1 / 3) for name in ("a cat", "a dog", "<b>")}
    assert model.asked == ((30, 40, 3), ["a cat", "a dog", "<b>"], "{}")


@pytest.mark.parametrize(
    ("labels", "message"),
    [(" ,\n", "at least one class"), (",".join(map(str, range(1001))), "1,001 classes")],
)
def test_wrong_classes_are_refused(picture: str, labels: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        demo.classify(Model(), picture, labels, "{}")


def test_wrong_pictures_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.png").write_text("no picture")
    Image.new("L", (110, 100)).save(tmp_path / "large.png")
    monkeypatch.setattr(demo, "MOST_PIXELS", 10_000)
    for path, message in (
        (None, "drop or paste"),
        ("text.png", "no picture that can be read"),
        ("large.png", "too large"),
    ):
        with pytest.raises(ValueError, match=message):
            demo.read_picture(path and str(tmp_path / path))


def test_bad_command_lines_end_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert demo.parse(["run"]).host == "127.0.0.1"
    for arguments, message in (
        (["a", "b", "c"], "one run or two, found 3"),
        (["a", "--pairs=0"], "--pairs=0: it must be at least 1"),
        (["a", "--port=70000"], "--port=70000: it must be 1 to 65535"),
    ):
        with pytest.raises(SystemExit, match=message):
            main.main(["demo", *arguments])
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(SystemExit, match="pip install --no-deps gradio"):
        main.main(["demo", "nowhere"])  # Before any model is read.
