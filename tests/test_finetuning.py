"""Fine-tuning a model of two towers on one's own pairs, as docs/finetuning.md says it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import COLOURS, SHAPES, draw_shape

from otter_jax import train
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
    preset: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    config = preset()
    results = train.train(config, tmp_path / "run")
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
