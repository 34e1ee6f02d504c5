"""Whole runs on tiny data: every objective, exact resume, what is refused, what is written."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import write_shard
from ml_collections import ConfigDict

from otter_jax import checkpoints, objectives, train

FROZEN = {
    "model.image.frozen": True,
    "model.text.frozen": True,
    "data.augmentation": "none",
}


def run(config: ConfigDict, workdir: Path) -> dict:
    return train.train(config, workdir)


@pytest.mark.parametrize("name", list(objectives.OBJECTIVES))
def test_every_objective_trains(tiny_config: Callable, tmp_path: Path, name: str) -> None:
    config = tiny_config(**FROZEN, **{"objective.name": name, "total_steps": 4})
    results = run(config, tmp_path / "run")
    (pairs,) = config.evaluate.sets
    assert set(results) == {pairs, "before", "chance"}
    assert 0 <= results[pairs]["i2t_recall@10"] <= 1
    assert results["chance"][pairs]["i2t_recall@1"] == pytest.approx(1 / 48)


def test_workdir_holds_what_is_promised(tiny_config: Callable, tmp_path: Path) -> None:
    config = tiny_config(**FROZEN)
    results = run(config, tmp_path)
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert json.loads((tmp_path / "config.json").read_text())["batch_size"] == 16
    data = json.loads((tmp_path / "data.json").read_text())
    assert data["train"]["pairs"] == 48
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    assert [line["step"] for line in lines] == [0, 2, 4, 6, 6]
    assert {"train/loss", "train/loss_distillation", "train/temperature", "train/learning_rate",
            "train/target_entropy", "train/target_diagonal"} <= set(lines[1])  # fmt: skip
    assert (tmp_path / "timings.jsonl").stat().st_size and (tmp_path / "tensorboard").is_dir()
    assert (tmp_path / "checkpoints" / "6").is_dir()
    assert (tmp_path / "figures" / "soft_targets.png").is_file()


def test_the_picture_of_a_large_batch_takes_some_of_its_pairs(
    tiny_config: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = []
    monkeypatch.setattr(train, "PICTURED_PAIRS", 9)  # Of 16; eight divide over the devices.
    monkeypatch.setattr(
        train.gallery, "draw_batch_targets", lambda *arguments: shapes.append(arguments[3].shape)
    )
    run(tiny_config(**FROZEN, **{"total_steps": 1}), tmp_path)
    assert shapes == [(8, 8)]


def test_training_lowers_the_loss(tiny_config: Callable, tmp_path: Path) -> None:
    config = tiny_config(**FROZEN, **{
        "objective.name": "infonce", "total_steps": 150, "optimizer.name": "adamw",
        "optimizer.learning_rate": 0.02, "log_every_steps": 150,
    })  # fmt: skip
    (pairs,) = config.evaluate.sets
    results = run(config, tmp_path)
    # The captions name colour and shape; even random towers tell the colours apart.
    assert results[pairs]["i2t_recall@10"] > 2 * results["chance"][pairs]["i2t_recall@10"]


def test_same_seed_same_files_and_other_seed_others(tiny_config: Callable, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(tiny_config(**FROZEN, seed=seed), tmp_path / name)
    first, second, other = ((tmp_path / x / "metrics.jsonl").read_bytes() for x in "abc")
    assert first == second != other


@pytest.mark.parametrize(
    ("frozen", "moment"), [(True, "step"), (False, "step"), (True, "draw"), (True, "before")]
)
def test_resumed_run_equals_uninterrupted_bit_for_bit(
    tiny_config: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    frozen: bool,
    moment: str,
) -> None:
    config = tiny_config(**(FROZEN if frozen else {}))
    run(config, tmp_path / "whole")
    interrupted = tmp_path / "interrupted"
    interrupt(monkeypatch, moment)
    with pytest.raises(KeyboardInterrupt):
        run(config, interrupted)
    monkeypatch.undo()
    assert not (interrupted / "results.json").exists()
    run(config, interrupted)
    for name in ("metrics.jsonl", "results.json", "data.json"):
        assert (interrupted / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    states = [final_state(config, tmp_path / name) for name in ("whole", "interrupted")]
    jax.tree.map(np.testing.assert_array_equal, *states)


def interrupt(monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    """Stops the next run after step 4 of 6, before its first step, or while it draws."""
    report = train.Reporter.step

    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    def stop_after_four(self: train.Reporter, step: int, metrics: dict) -> None:
        report(self, step, metrics)
        if step == 4:
            raise KeyboardInterrupt

    if moment == "step":
        monkeypatch.setattr(train.Reporter, "step", stop_after_four)
    else:
        monkeypatch.setattr(train, "draw" if moment == "draw" else "run_steps", stop)


def final_state(config: ConfigDict, workdir: Path) -> object:
    from otter_jax import encoder, sharding, step
    from otter_jax.models import dual_encoder

    _, variables = dual_encoder.split(encoder.build_module(config))
    optimizer = step.make_optimizer(config, step.make_schedule(config, 6))
    template = step.initial_state(variables, optimizer, uses_teacher=True)
    with checkpoints.Checkpoints(workdir / "checkpoints") as saved:
        return saved.restore(sharding.put_state(sharding.make_mesh(), template))


def test_finished_run_shows_its_results_again(
    tiny_config: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    config = tiny_config(**FROZEN)
    results = run(config, tmp_path)
    written = (tmp_path / "metrics.jsonl").stat().st_mtime_ns
    capsys.readouterr()
    assert run(config, tmp_path) == results
    assert "is finished (6 steps)" in capsys.readouterr().out
    assert (tmp_path / "metrics.jsonl").stat().st_mtime_ns == written


def test_evaluate_repeats_the_results(tiny_config: Callable, tmp_path: Path) -> None:
    config = tiny_config(**FROZEN)
    results = run(config, tmp_path)
    (tmp_path / "results.json").unlink()
    assert train.evaluate(config, tmp_path) == results
    shutil.rmtree(tmp_path / "features")
    assert train.evaluate(config, tmp_path) == results


def test_evaluate_needs_a_run(tiny_config: Callable, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no run to evaluate"):
        train.evaluate(tiny_config(), tmp_path)


def test_workdir_of_another_config_is_refused(tiny_config: Callable, tmp_path: Path) -> None:
    run(tiny_config(**FROZEN), tmp_path)
    kept = (tmp_path / "results.json").read_bytes()
    other = tiny_config(**FROZEN, **{"objective.alpha": 0.25, "checkpoint.every_steps": 2})
    with pytest.raises(ValueError, match=r"another config \(objective.alpha: 0.5 -> 0.25\)"):
        run(other, tmp_path)
    assert (tmp_path / "results.json").read_bytes() == kept


def test_unreadable_images_are_left_out_and_listed(
    tiny_config: Callable, tmp_path: Path, shape_pairs: list
) -> None:
    (tmp_path / "pairs").mkdir()
    write_shard(
        tmp_path / "pairs" / "0.tar", [*shape_pairs[:20], (b"broken", "a red bar"), (b"", "x")]
    )
    spec = f"webdataset:{tmp_path / 'pairs'}"
    run(tiny_config(**FROZEN, **{"data.train": spec}), tmp_path / "run")
    data = json.loads((tmp_path / "run" / "data.json").read_text())["train"]
    assert data["pairs"] == 20
    assert len(data["unreadable"]) + sum(data["skipped"].values()) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective.name": "clip"}, "choose from infonce"),
        ({"batch_size": 12}, "does not divide over 8 devices"),
        ({"batch_size": 64}, "more than the 48 pairs"),
        ({"data.train": "webdataset:/nowhere/{0..3}.tar"}, "nowhere"),
        ({"data.train": "clipart"}, "unknown data source 'clipart'"),
        ({"evaluate.sets": ("imagenot",)}, "unknown set 'imagenot'"),
        ({"model.image.name": "resnet51"}, "there is no image tower 'resnet51'"),
        ({"model.text.pretrained": "/nowhere"}, "no pretrained weights at /nowhere"),
        ({"optimizer.warmup_steps": 99}, "warmup_steps=99"),
        ({"on_nan": "ignore"}, "choose from stop, skip, rollback"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    tiny_config: Callable, tmp_path: Path, changes: dict, message: str
) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run(tiny_config(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_unfinished_run_is_not_finished_by_evaluating_it(
    tiny_config: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(**FROZEN)
    interrupt(monkeypatch, "step")
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path)
    monkeypatch.undo()
    train.evaluate(config, tmp_path)
    assert (tmp_path / "evaluation.json").is_file()
    assert not (tmp_path / "results.json").exists()
    results = run(config, tmp_path)
    kept = (tmp_path / "results.json").read_bytes()
    other = tiny_config(**FROZEN, **{"evaluate.template": "{}"})
    assert train.evaluate(other, tmp_path)["before"] == {} != results["before"]
    assert (tmp_path / "results.json").read_bytes() == kept


def test_other_pairs_than_a_run_began_with_are_refused(
    tiny_config: Callable, tmp_path: Path, shape_pairs: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = tmp_path / "0.tar"
    write_shard(shard, shape_pairs[:30])
    config = tiny_config(**FROZEN, **{"data.train": f"webdataset:{shard}"})
    interrupt(monkeypatch, "step")
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "run")
    monkeypatch.undo()
    write_shard(shard, shape_pairs[:38])
    with pytest.raises(ValueError, match="have changed since"):
        run(config, tmp_path / "run")
    write_shard(shard, shape_pairs[:30])
    assert run(config, tmp_path / "run")


def test_unreadable_images_among_those_read_at_every_step(
    tiny_config: Callable, tmp_path: Path, shape_pairs: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = tmp_path / "0.tar"
    write_shard(shard, [*shape_pairs[:17], (b"broken", "a red bar"), *shape_pairs[17:20]])
    config = tiny_config(**{"data.train": f"webdataset:{shard}"})
    run(config, tmp_path / "whole")
    interrupt(monkeypatch, "draw")
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "run")
    monkeypatch.undo()
    run(config, tmp_path / "run")
    for name in ("data.json", "metrics.jsonl", "results.json"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    data = json.loads((tmp_path / "run" / "data.json").read_text())["train"]
    assert list(data["unreadable"]) == ["00017"] and data["pairs"] == 20
    assert (tmp_path / "run" / "figures" / "soft_targets.png").is_file()


def test_nothing_diverged_is_saved(tiny_config: Callable, tmp_path: Path) -> None:
    config = tiny_config(**FROZEN, **{
        "optimizer.learning_rate": float("inf"), "log_every_steps": 6, "checkpoint.every_steps": 1,
    })  # fmt: skip
    with pytest.raises(FloatingPointError, match="training has diverged at step 1"):
        run(config, tmp_path)
    with checkpoints.Checkpoints(tmp_path / "checkpoints") as saved:
        assert saved.latest_step is None


def test_removed_workdir_ends_the_run(
    tiny_config: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = train.Reporter.step

    def remove_at_two(self: train.Reporter, step: int, metrics: dict) -> None:
        report(self, step, metrics)
        if step == 2:
            shutil.rmtree(tmp_path / "run")

    monkeypatch.setattr(train.Reporter, "step", remove_at_two)
    config = tiny_config(**FROZEN, **{"checkpoint.every_steps": 100})
    with pytest.raises(FileNotFoundError, match="run was removed, or replaced, while in use"):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_minutes_ask_for_a_checkpoint(tiny_config: Callable, tmp_path: Path) -> None:
    changes = {"checkpoint.every_steps": 100, "checkpoint.every_minutes": 1e-9}
    run(tiny_config(**FROZEN, **changes, total_steps=3), tmp_path)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["2", "3"]


def test_diverged_loss_stops_the_run(tiny_config: Callable, tmp_path: Path) -> None:
    config = tiny_config(
        **FROZEN, **{"optimizer.learning_rate": float("inf"), "log_every_steps": 1}
    )
    with pytest.raises(FloatingPointError, match="has diverged at step"):
        run(config, tmp_path)
