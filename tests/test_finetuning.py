"""Fine-tuning a model of two towers on one's own pairs, as docs/finetuning.md says it."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import COLOURS, SHAPES, draw_shape

import otter_jax
from otter_jax import train
from otter_jax.data import held_out
from otter_jax.data.held_out import families_of
from otter_jax.preset_files import read_preset

SMALL = {
    "batch_size": 16,
    "total_steps": 4,
    "log_every_steps": 2,
    "data.held_out": 0.25,
    "evaluate.batch_size": 16,
}


@pytest.fixture(scope="module")
def class_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawings in a folder a shape, six of each."""
    folder = tmp_path_factory.mktemp("mine")
    for shape in SHAPES:
        (folder / shape).mkdir()
        for colour in COLOURS[:6]:
            (folder / shape / f"{colour}.png").write_bytes(draw_shape(colour, shape))
    return folder


@pytest.fixture
def preset(two_towers: Path, class_folder: Path, pairs_folder: Path) -> Callable:
    def make(**changes: object):
        config = read_preset("finetune_clip")
        config.update_from_flattened_dict(
            {
                "model.pretrained": str(two_towers),
                "data.train": f"folder:{class_folder}",
                "evaluate.sets": (f"webdataset:{pairs_folder}",),
            }
            | SMALL
            | changes
        )
        return config

    return make


def test_own_classes_and_what_is_forgotten_stand_side_by_side(
    preset: Callable,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, readings = preset(), []
    monkeypatch.setattr(
        held_out, "families_of", lambda *given: readings.append(1) or families_of(*given)
    )
    results = train.train(config, tmp_path / "run")
    assert len(readings) == 1  # Of all images, to divide them.
    forgetting = config.evaluate.sets[0]
    for each in (results, results["before"], results["chance"]):
        assert 0 <= each["held_out"]["hit@1"] <= 1
        assert 0 <= each[forgetting]["i2t_recall@1"] <= 1
    said = capsys.readouterr().out
    assert "to be evaluated on held_out: 9 images" in said
    assert "objective infonce on 27 pairs" in said
    assert "held_out  hit@1" in said
    data = json.loads((tmp_path / "run" / "data.json").read_text())
    assert data["train"]["pairs"] == 27
    again = train.train(preset(), tmp_path / "run")  # The same command: nothing is left to do.
    assert again == results


def documented_commands() -> list[list[str]]:
    """The six commands of docs/finetuning.md, one after the other."""
    text = (Path(__file__).parents[1] / "docs" / "finetuning.md").read_text()
    section = text.partition("## In six commands")[2].partition("\n## ")[0]
    return [shlex.split(line) for line in section.splitlines() if line.startswith("    otter-jax")]


@pytest.mark.slow
def test_the_documented_commands_run(
    two_towers: Path, class_folder: Path, pairs_folder: Path, tmp_path: Path
) -> None:
    commands = documented_commands()
    assert [command[1] for command in commands] == [
        "inspect", "train", "train", "compare", "evaluate", "export",
    ]  # fmt: skip
    small = [f"--config.{key}={value}" for key, value in SMALL.items()]
    small.append(f"--config.evaluate.sets=('webdataset:{pairs_folder}',)")
    own = {"FOLDER": str(class_folder), "openai/clip-vit-base-patch32": str(two_towers)}
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    for command in commands:
        arguments = [*command[1:], *(small if command[1] == "train" else [])]
        for name, value in own.items():
            arguments = [each.replace(name, value) for each in arguments]
        done = subprocess.run(
            [sys.executable, "-m", "otter_jax", *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, (command, done.stdout[-2000:], done.stderr[-2000:])
    curve = json.loads((tmp_path / "runs/full/interpolation.json").read_text())["interpolate"]
    assert list(curve) == ["0", "0.25", "0.5", "0.75", "1"]
    results = json.loads((tmp_path / "runs/full/results.json").read_text())
    assert curve["0"] == results["before"]
    assert curve["1"] == {name: results[name] for name in curve["1"]}
    assert (tmp_path / "runs/full/figures/interpolation.png").is_file()
    module = otter_jax.load(tmp_path / "exported")
    assert module.encode_text(["a red circle"]).shape == (1, 8)
