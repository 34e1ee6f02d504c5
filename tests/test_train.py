"""Whole runs on tiny data: every objective, exact resume, what is refused, what is written."""

import collections
import gc
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import write_shard
from ml_collections import ConfigDict
from runs.test_checkpoints import damage

from otter_jax import evaluate, objectives, sharding, train
from otter_jax.commands import export
from otter_jax.embedding import encoder, training_pairs
from otter_jax.models import dual_encoder
from otter_jax.runs import checkpoints, reporting
from otter_jax.training.optimizers import make_optimizer, make_schedule
from otter_jax.training.parts import build_parts
from otter_jax.training.state import initial_state, make_memory, state_places

FROZEN = {
    "model.image.frozen": True,
    "model.text.frozen": True,
    "data.augmentation": "none",
}


def run(config: ConfigDict, workdir: Path) -> dict:
    return train.train(config, workdir)


@pytest.mark.parametrize("name", list(objectives.METHODS))
def test_every_objective_trains(
    tiny_config: Callable, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("otter_jax.models.heads.SIMCLR_HIDDEN", 64)  # Of 4096: gigabytes.
    without_masks = {"objective.mlm_weight": 0.0}  # They would teach a frozen tower nothing.
    config = tiny_config(**FROZEN, **without_masks, **{"objective.name": name, "total_steps": 4})
    config.model.image.frozen = name != "slip"  # Nor would its views.
    results = run(config, tmp_path / "run")
    (pairs,) = config.evaluate.sets
    assert set(results) == {pairs, "before", "chance"}
    assert 0 <= results[pairs]["i2t_recall@10"] <= 1
    assert results["chance"][pairs]["i2t_recall@1"] == pytest.approx(1 / 48)


def test_pictures_are_announced_where_there_are_some(
    tiny_config: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    changes = {"objective.name": "infonce", "total_steps": 1, **FROZEN}
    run(tiny_config(**changes, **{"evaluate.sets": ()}), tmp_path / "without")
    assert f"pictures in {tmp_path}/without/figures" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "without" / "figures").iterdir()} == {"loss.png"}
    run(tiny_config(**changes), tmp_path / "with")
    assert f"pictures in {tmp_path}/with/figures" in capsys.readouterr().out
    drawn = {path.name for path in (tmp_path / "with" / "figures").iterdir()}
    assert {"loss.png", "evaluation.png"} < drawn
    assert "Finished after" in (tmp_path / "with" / "report.html").read_text()
    assert (tmp_path / "with" / "machine.jsonl").is_file()


def test_bad_sets_are_found_before_the_training_data_are_opened(
    tiny_config: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("opened")

    monkeypatch.setattr(training_pairs, "open_source", refuse)
    with pytest.raises(FileNotFoundError, match=r"config\.evaluate\.sets: csv:/nowhere"):
        run(tiny_config(**{"evaluate.sets": ("csv:/nowhere",)}), tmp_path / "run")


def test_workdir_holds_what_is_promised(tiny_config: Callable, tmp_path: Path) -> None:
    config = tiny_config(**FROZEN)
    results = run(config, tmp_path)
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert json.loads((tmp_path / "config.json").read_text())["batch_size"] == 16
    data = json.loads((tmp_path / "data.json").read_text())
    assert data["train"]["pairs"] == 48
    assert data["images"]["image_size"] == 32 and data["images"]["resized_side"] == 37
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


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where the first test that needs an uninterrupted run puts it, for all of them."""
    return tmp_path_factory.mktemp("uninterrupted")


@pytest.mark.parametrize(
    ("frozen", "moment"), [(True, "step"), (False, "step"), (True, "draw"), (True, "before")]
)
def test_resumed_run_equals_uninterrupted_bit_for_bit(
    tiny_config: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    uninterrupted: Path,
    frozen: bool,
    moment: str,
) -> None:
    config = tiny_config(**(FROZEN if frozen else {}))
    whole = uninterrupted / ("frozen" if frozen else "trained")
    run(config, whole)  # Once: it is finished then.
    interrupted = tmp_path / "interrupted"
    interrupt(monkeypatch, moment)
    with pytest.raises(KeyboardInterrupt):
        run(config, interrupted)
    monkeypatch.undo()
    assert not (interrupted / "results.json").exists()
    run(config, interrupted)
    for name in ("metrics.jsonl", "results.json", "data.json"):
        assert (interrupted / name).read_bytes() == (whole / name).read_bytes()
    states = [final_state(config, workdir) for workdir in (whole, interrupted)]
    jax.tree.map(np.testing.assert_array_equal, *states)


def test_views_and_queue_resume_bit_for_bit(
    tiny_config: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    declip = {"objective.name": "declip", "objective.queue_size": 64, "objective.targets": "otter"}
    config = tiny_config(**declip)
    run(config, tmp_path / "whole")
    interrupt(monkeypatch, "step")
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "interrupted")
    monkeypatch.undo()
    run(config, tmp_path / "interrupted")
    metrics = [
        (tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "interrupted")
    ]
    assert metrics[0] == metrics[1]
    states = [final_state(config, tmp_path / name) for name in ("whole", "interrupted")]
    jax.tree.map(np.testing.assert_array_equal, *states)
    assert int(states[0].memory.filled) == 64
    line = json.loads(metrics[0].splitlines()[-2])
    parts = sum(value for name, value in line.items() if name.startswith("train/loss_"))
    assert parts == pytest.approx(line["train/loss"], rel=1e-5)
    assert line["train/loss_neighbor"] > 0 and line["train/loss_mlm"] > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.view_augmentation": "none"}, "needs 2 different views of an image"),
        ({"model.text.frozen": True}, "would teach the text tower nothing"),
        (
            {"objective.name": "slip", "model.image.frozen": True},
            "SimCLR would teach the image tower nothing; .* config.objective.simclr_weight=0",
        ),
        ({"objective.queue_size": 8}, "queue_size=8: it must be at least config.batch_size=16"),
        ({"micro_batch": 5}, "micro_batch=5 does not divide config.batch_size=16"),
    ],
)
def test_views_that_cannot_be_are_refused(
    tiny_config: Callable, tmp_path: Path, changes: dict, message: str
) -> None:
    config = tiny_config(**{"objective.name": "declip"} | changes)
    with pytest.raises(ValueError, match=message):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


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
    _, variables = dual_encoder.split(encoder.build_module(config))
    optimizer = make_optimizer(config, make_schedule(config, 6))
    options = objectives.make_method(**config.objective)
    memory = make_memory(options, config.model.embed_dim)
    template = initial_state(variables, optimizer, uses_teacher=True, memory=memory)
    with checkpoints.Checkpoints(workdir / "checkpoints") as saved:
        places = state_places(sharding.make_mesh(), template, fsdp=False)
        return saved.restore(jax.device_put(template, places))


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
    assert evaluate.evaluate(config, tmp_path) == results | {"step": 6}
    shutil.rmtree(tmp_path / "features")
    assert evaluate.evaluate(config, tmp_path) == results | {"step": 6}


def test_a_damaged_last_checkpoint_is_passed_over_by_evaluation_and_export(
    tiny_config: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    workdir = tmp_path / "run"
    config = tiny_config(**FROZEN, **{"evaluate.every_steps": 3})
    run(config, workdir)
    kept, last = (workdir / "results.json").read_bytes(), encoder.load(workdir).variables
    damage(workdir / "checkpoints" / "6", "flip")
    capsys.readouterr()
    results = evaluate.evaluate(config, workdir)
    named = "6 is damaged (variables/"
    assert named in (said := capsys.readouterr().out) and ": that of step 3 is used" in said
    (name,) = config.evaluate.sets
    lines = reporting.read_evaluation(workdir / "metrics.jsonl", 3)
    assert results["step"] == 3 and {name: results[name]} == lines
    assert json.loads((workdir / "evaluation.json").read_text()) == results
    assert (workdir / "results.json").read_bytes() == kept
    export.main([str(workdir), str(tmp_path / "out")])
    assert named in (said := capsys.readouterr().out) and ": that of step 3 is used" in said
    exported, used = (encoder.load(path).variables.params for path in (tmp_path / "out", workdir))
    for name in ("image_projection", "text_projection"):
        np.testing.assert_array_equal(exported[name]["kernel"], used[name]["kernel"])
        assert (used[name]["kernel"] != last.params[name]["kernel"]).any()
    assert {path.name for path in (workdir / "checkpoints").iterdir()} == {"3", "6", "frozen"}


def test_evaluate_needs_a_run(tiny_config: Callable, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no run to evaluate"):
        evaluate.evaluate(tiny_config(), tmp_path)


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
    config = tiny_config(**FROZEN, **{"data.train": spec, "data.max_bad_share": 0.1})
    run(config, tmp_path / "run")
    data = json.loads((tmp_path / "run" / "data.json").read_text())["train"]
    assert data["pairs"] == 20
    assert data["skipped"] == {"no image": 1}
    assert list(data["unreadable"]) == ["00020 (record 20)"]
    assert data["unreadable_by_reason"] == {"not an image": 1}


def test_a_run_that_was_refused_goes_on_with_more_bad_records(
    tiny_config: Callable, tmp_path: Path, shape_pairs: list, capsys: pytest.CaptureFixture
) -> None:
    write_shard(tmp_path / "0.tar", [*shape_pairs[:20], (b"broken", "a red bar")])
    changes = {"data.train": f"webdataset:{tmp_path / '0.tar'}", "evaluate.sets": (), **FROZEN}
    with pytest.raises(
        ValueError, match=r"to go on nevertheless: --config.data.max_bad_share=0.05"
    ):
        run(tiny_config(**changes, **{"data.max_bad_share": 0.01}), tmp_path / "run")
    capsys.readouterr()
    run(tiny_config(**changes, **{"data.max_bad_share": 0.05}), tmp_path / "run")
    said = capsys.readouterr().out
    assert said.count("images that cannot be read") == 1
    assert "chance" not in said  # Nothing was evaluated.


def test_truncated_shards_are_named_and_count_as_what_they_lost(
    tiny_config: Callable, tmp_path: Path, shape_pairs: list, capsys: pytest.CaptureFixture
) -> None:
    for number in range(3):
        write_shard(tmp_path / f"{number}.tar", shape_pairs[16 * number : 16 * (number + 1)])
    data = (tmp_path / "1.tar").read_bytes()
    (tmp_path / "1.tar").write_bytes(data[: len(data) // 2])
    changes = {"data.train": f"webdataset:{tmp_path}", "evaluate.sets": (), **FROZEN}
    with pytest.raises(ValueError, match=r"of 48 records .* allows: truncated tar: \d+\."):
        run(tiny_config(**changes), tmp_path / "run")
    assert f"truncated, download again: {tmp_path}/1.tar; about" in capsys.readouterr().out
    run(tiny_config(**changes, **{"data.max_bad_share": 0.5}), tmp_path / "run")
    note = json.loads((tmp_path / "run" / "data.json").read_text())["train"]
    assert list(note["skipped_files"]) == [f"{tmp_path}/1.tar"]
    assert note["pairs"] + note["skipped"]["truncated tar"] == 48


def test_what_a_killed_run_could_not_read_is_known(
    tiny_config: Callable, tmp_path: Path, shape_pairs: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shard(tmp_path / "0.tar", [*shape_pairs[:47], (b"broken", "a red bar")])
    config = tiny_config(**{"data.train": f"webdataset:{tmp_path / '0.tar'}"})
    saved = checkpoints.Checkpoints.save

    def save_and_die(self: checkpoints.Checkpoints, state: object) -> None:
        saved(self, state)
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints.Checkpoints, "save", save_and_die)  # At step 3, after an epoch.
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "run")
    data = json.loads((tmp_path / "run" / "data.json").read_text())["train"]
    assert data["unreadable_by_reason"] == {"not an image": 1}


@pytest.mark.parametrize("settings", [FROZEN, {}])
def test_records_that_share_a_key_are_told_apart(
    tiny_config: Callable, tmp_path: Path, shape_pairs: list, settings: dict
) -> None:
    (tmp_path / "pairs").mkdir()
    write_shard(tmp_path / "pairs" / "0.tar", [(b"broken", "a red bar"), *shape_pairs[:20]])
    write_shard(tmp_path / "pairs" / "1.tar", [*shape_pairs[20:40], (b"broken", "a blue bar")])
    specs = (f"webdataset:{tmp_path / 'pairs'}",)
    run(tiny_config(**settings, **{"data.train": specs, "total_steps": 5}), tmp_path / "run")
    data = json.loads((tmp_path / "run" / "data.json").read_text())["train"]
    names = ["0:00000 (record 0)", "0:00020 (record 41)"]
    assert data["pairs"] == 40 and list(data["unreadable"]) == names


@pytest.mark.parametrize(
    ("settings", "images", "message"),
    [
        (FROZEN, (b"broken", b"broken"), r"2 of 22 records \(9\.1%\).*not an image: 2"),
        ({}, (b"broken", b"broken"), r"2 of 22 records \(9\.1%\).*not an image: 2"),
        ({}, (b"", b""), r"2 of 22 records \(9\.1%\).*no image: 2"),
    ],
)
def test_too_much_bad_data_ends_the_run(
    tiny_config: Callable,
    tmp_path: Path,
    shape_pairs: list,
    settings: dict,
    images: tuple[bytes, bytes],
    message: str,
) -> None:
    write_shard(tmp_path / "0.tar", [*shape_pairs[:20], *((image, "a bar") for image in images)])
    config = tiny_config(**settings, **{"data.train": f"webdataset:{tmp_path / '0.tar'}"})
    with pytest.raises(ValueError, match=message):
        run(config, tmp_path / "run")
    assert (tmp_path / "run").exists() is (images[0] != b"")
    assert not (tmp_path / "run" / "results.json").exists()


@pytest.mark.parametrize("settings", [FROZEN, {}])
def test_sources_are_mixed_by_their_weights(
    tiny_config: Callable, tmp_path: Path, shape_pairs: list, settings: dict,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    write_shard(tmp_path / "a.tar", shape_pairs[:30])
    write_shard(tmp_path / "b.tar", [(b"broken", "x"), *shape_pairs[30:48]])
    seen, put = [], train.run_steps

    def note(each: train.Training, *arguments: object) -> object:
        load = each.data.load
        each.data.load = lambda step, rows: (
            seen.append(load(step, rows)["index"]) or load(step, rows)
        )
        return put(each, *arguments)

    monkeypatch.setattr(train, "run_steps", note)
    specs = tuple(f"webdataset:{tmp_path / name}.tar" for name in "ab")
    changes = {"data.train": specs, "data.weights": (1.0, 3.0), "total_steps": 4}
    run(tiny_config(**settings, **changes), tmp_path / "run")
    assert len(seen) >= 4 and all((rows >= 30).sum() == 12 for rows in seen[:4])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective.name": "clip"}, "choose from infonce"),
        ({"batch_size": 12}, "does not divide over 8 devices"),
        ({"batch_size": 64}, "more than the 48 pairs"),
        ({"data.train": "webdataset:/nowhere/{0..3}.tar"}, "nowhere"),
        ({"data.train": "clipart"}, "unknown data source 'clipart'"),
        ({"data.group": "a", "objective.known_positives": "ignore"}, "data.group='a': none of"),
        ({"evaluate.sets": ("imagenot",)}, "unknown set 'imagenot'"),
        ({"model.image.name": "resnet51"}, "there is no image tower 'resnet51'"),
        ({"model.text.pretrained": "/nowhere"}, "config.model.text.pretrained: there are no"),
        ({"on_nan": "ignore"}, "choose from stop, skip, rollback"),
        ({"max_loss_ratio": 0.5}, "config.max_loss_ratio=0.5: it must be above 1, or 0 for never"),
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
    evaluate.evaluate(config, tmp_path)
    assert (tmp_path / "evaluation.json").is_file()
    assert not (tmp_path / "results.json").exists()
    results = run(config, tmp_path)
    kept = (tmp_path / "results.json").read_bytes()
    other = tiny_config(**FROZEN, **{"evaluate.template": "{}"})
    assert evaluate.evaluate(other, tmp_path)["before"] == {} != results["before"]
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
    assert list(data["unreadable"]) == ["00017 (record 17)"] and data["pairs"] == 20
    assert (tmp_path / "run" / "figures" / "soft_targets.png").is_file()


def test_nothing_diverged_is_saved(tiny_config: Callable, tmp_path: Path) -> None:
    config = tiny_config(**FROZEN, **{
        "optimizer.learning_rate": 1e38, "log_every_steps": 6, "checkpoint.every_steps": 1,
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
    assert names == ["2", "3", "frozen"]


def test_no_device_holds_more_than_its_part_of_the_state(
    tiny_config: Callable, tmp_path: Path
) -> None:
    config = tiny_config(fsdp=True)
    config.model.text.overrides.vocab_size = 2**15  # The largest array by far.
    before = live_bytes()
    mesh, options = sharding.make_mesh(), objectives.make_method(**config.objective)
    parts = build_parts(config, tmp_path, mesh, options)
    assert live_bytes() == before  # What only restarts need is not on any device.
    optimizer = make_optimizer(config, make_schedule(config, 6))
    state = train.make_fresh_state(parts, optimizer, train.places_of_state(parts, optimizer))
    gc.collect()
    held = [after - earlier for after, earlier in zip(live_bytes(), before, strict=True)]
    assert max(held) <= 1.01 * sharding.bytes_on_a_device(state)
    assert max(held) < 0.2 * sum(leaf.nbytes for leaf in jax.tree.leaves(state))


def live_bytes() -> list[int]:
    """What the arrays that are alive take on each device."""
    gc.collect()
    held = collections.Counter()
    for array in jax.live_arrays():
        for shard in array.addressable_shards:
            held[shard.device.id] += shard.data.nbytes
    return [held[device.id] for device in jax.devices()]


def test_untrained_variables_outlast_the_training(
    tiny_config: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(train, "draw", lambda parts, *rest: seen.append(parts.encoder.variables))
    config = tiny_config(total_steps=3)
    run(config, tmp_path)
    _, fresh = dual_encoder.split(encoder.build_module(config))
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(seen[0]))
    jax.tree.map(np.testing.assert_array_equal, seen[0], fresh)


def test_diverged_loss_stops_the_run(tiny_config: Callable, tmp_path: Path) -> None:
    config = tiny_config(**FROZEN, **{"optimizer.learning_rate": 1e38, "log_every_steps": 1})
    with pytest.raises(FloatingPointError, match="has diverged at step"):
        run(config, tmp_path)


def test_a_hidden_transfer_is_an_error(
    tiny_config: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train.sharding, "put_batch", lambda mesh, batch: batch)
    with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device transfer"):
        run(tiny_config(**FROZEN), tmp_path)


def test_costs_and_profile_are_written(tiny_config: Callable, tmp_path: Path) -> None:
    changes = {"profile": (2, 3), "fsdp": True, "deterministic": True, "total_steps": 4}
    run(tiny_config(**FROZEN, **changes), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "timings.jsonl").open()]
    budget = lines[0]
    assert budget["step"] == 1
    assert budget["memory/total_gib"] > budget["memory/state_gib"] > 0
    assert lines[-1]["time/model_flops_per_second"] > 0
    assert "time/model_flops_utilization" not in lines[-1]  # A CPU's peak is not known.
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    # What a run keeps may be changed between two starts; how it computes may not.
    run(tiny_config(**FROZEN, **changes | {"profile": ()}), tmp_path)
    with pytest.raises(ValueError, match="deterministic: True -> False"):
        run(tiny_config(**FROZEN, **changes | {"deterministic": False}), tmp_path)
