"""Evaluation inside a run, and of its workdir on other sets afterwards."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import draw_shape
from ml_collections import ConfigDict

from otter_jax import evaluate, sharding, train
from otter_jax.embedding import encoder
from otter_jax.models import dual_encoder
from otter_jax.runs import checkpoints
from otter_jax.training.optimizers import make_optimizer, make_schedule
from otter_jax.training.state import initial_state


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split in ("train", "test"):
        for colour in ("red", "green"):
            for shape in ("circle", "square", "ring"):
                path = tmp_path / "shapes" / split / colour / f"{shape}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(draw_shape(colour, shape))
    return tmp_path / "shapes"


def final_state(config: ConfigDict, workdir: Path) -> object:
    _, variables = dual_encoder.split(encoder.build_module(config))
    optimizer = make_optimizer(config, make_schedule(config, 3))
    template = initial_state(variables, optimizer, uses_teacher=True)
    with checkpoints.Checkpoints(workdir / "checkpoints") as saved:
        return saved.restore(sharding.put_state(sharding.make_mesh(), template))


def losses(workdir: Path) -> list[dict]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
    return [line for line in lines if "train/loss" in line]


def test_evaluating_leaves_the_training_state_untouched(
    tiny_config: Callable, tmp_path: Path, folder: Path
) -> None:
    changes = {"data.augmentation": "none", "log_every_steps": 1, "total_steps": 3}
    spec = f"folder:{folder / 'test'}"
    for name, period in (("often", 1), ("never", 0)):
        config = tiny_config(
            **changes, **{"evaluate.sets": (spec,), "evaluate.every_steps": period}
        )
        train.train(config, tmp_path / name)
    assert losses(tmp_path / "often") == losses(tmp_path / "never")
    states = [final_state(config, tmp_path / name) for name in ("often", "never")]
    jax.tree.map(np.testing.assert_array_equal, *states)
    evaluated = [line for line in (tmp_path / "often" / "metrics.jsonl").open() if "eval/" in line]
    assert len(evaluated) == 4  # Before the first step, and after each of three.


def test_a_workdir_is_evaluated_on_other_sets(
    tiny_config: Callable,
    tmp_path: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    config = tiny_config(**{"total_steps": 2})
    train.train(config, tmp_path / "run")
    said = capsys.readouterr().out
    assert f"also trained on: {config.data.train}; what is measured there" in said
    assert f"step      0 of 2  evaluated on {config.data.train}  i2t_recall@1 " in said
    assert f'otter_jax.load("{tmp_path / "run"}")' in said
    assert (tmp_path / "run" / "figures" / "loss.png").is_file()
    kept = (tmp_path / "run" / "results.json").read_bytes()
    rows = list(csv.DictReader((tmp_path / "run" / "results.csv").open()))
    assert [row["metric"] for row in rows][:1] == ["i2t_recall@1"]
    specs = (f"folder:{folder / 'test'}", f"probe:folder:{folder}", f"csv:{folder / 'set.csv'}")
    (folder / "set.csv").write_text("image,labels\ntest/red/ring.png,red|a ring\n")
    (tmp_path / "prompts.txt").write_text("{}\na photo of a {}\n")
    changes = {"evaluate.sets": specs, "evaluate.template": str(tmp_path / "prompts.txt")}
    other = tiny_config(**changes, total_steps=2)
    results = evaluate.evaluate(other, tmp_path / "run")
    said = capsys.readouterr().out
    assert f"written to {tmp_path / 'run' / 'evaluation.json'}" in said
    assert "its results.json stays as it is" in said
    assert set(results) == {*specs, "before", "chance", "step"} and results["step"] == 2
    assert set(results[specs[0]]) == {"hit@1"}  # Of two classes.
    assert set(results[specs[1]]) == {"probe_accuracy", "knn_accuracy"}
    assert set(results[specs[2]]) == {"hit@1"}
    assert (tmp_path / "run" / "results.json").read_bytes() == kept
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text()) == results
    assert len(list(csv.reader((tmp_path / "run" / "evaluation.csv").open()))) == 1 + 1 + 2 + 1
    assert len(list((tmp_path / "run" / "figures").glob("predictions_*"))) == 4

    def refuse(*arguments: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(encoder.Encoder, "image_features", refuse)
    assert evaluate.evaluate(other, tmp_path / "run") == results


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"evaluate.template": "photo"}, r"config.evaluate.template: .* needs a \{\}"),
        ({"evaluate.template": "nowhere.txt"}, "no file of templates at nowhere.txt"),
        ({"evaluate.names": "first"}, "choose from joined, averaged"),
        (
            {"evaluate.sets": ("folder:/nowhere",)},
            "evaluate.sets: folder:/nowhere: there is no /nowhere",
        ),
        ({"evaluate.sets": ("open_images:/nowhere",)}, "there is no /nowhere"),
        ({"evaluate.sets": ("csv:/nowhere.csv",)}, "there is no /nowhere.csv"),
    ],
)
def test_bad_sets_are_refused_before_anything_is_written(
    tiny_config: Callable, tmp_path: Path, changes: dict, message: str
) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        train.train(tiny_config(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()
