"""Losses that are not finite: found at their step, written down, and stopped, skipped or undone."""

import json
import signal
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from test_interruption import tell
from test_step import batch_of, build, mesh_of

from otter_jax import checkpoints, sharding, train
from otter_jax.divergence import DivergedError
from otter_jax.interruption import Interrupted

FROZEN = {
    "model.image.frozen": True,
    "model.text.frozen": True,
    "data.augmentation": "none",
}


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_step_that_is_not_finite_changes_nothing_but_its_number(
    tiny_config: Callable, poison: float
) -> None:
    mesh = mesh_of(1)
    train_step, state = build(tiny_config(**FROZEN), mesh)
    width = state.variables.params["image_projection"]["kernel"].shape[0]
    batch = {name: rows for name, rows in batch_of().items() if name != "image"}
    batch["image_features"] = np.random.default_rng(0).normal(size=(16, width)).astype(np.float32)
    poisoned = batch | {"image_features": np.full((16, width), poison, np.float32)}
    state, metrics = train_step(state, sharding.put_batch(mesh, batch))
    assert bool(metrics["finite"])
    good = jax.device_get(state)
    state, metrics = train_step(state, sharding.put_batch(mesh, poisoned))
    assert not bool(metrics["finite"])
    jax.tree.map(np.testing.assert_array_equal, state, good._replace(step=good.step + 1))
    state, metrics = train_step(state, sharding.put_batch(mesh, batch))
    assert bool(metrics["finite"]) and int(state.step) == 3


def poison_steps(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """Gives the batches of these steps (from 1) features that are no numbers."""
    make = train.batches.batches

    def make_poisoned(*arguments: object, start_step: int, **options: object) -> object:
        for number, batch in enumerate(
            make(*arguments, start_step=start_step, **options), start_step + 1
        ):
            if number in steps:
                batch["image_features"] = np.full_like(batch["image_features"], np.nan)
            yield batch

    monkeypatch.setattr(train.batches, "batches", make_poisoned)


def events(workdir: Path) -> list[dict]:
    return json.loads((workdir / "divergence.json").read_text())


def test_stop_names_step_and_batch_and_can_go_on_by_skipping(
    tiny_config: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison_steps(monkeypatch, 4)
    changes = FROZEN | {"log_every_steps": 100, "checkpoint.every_steps": 2}
    with pytest.raises(DivergedError, match=r"diverged at step 4 \(loss nan, loss_contrastive nan"):
        train.train(tiny_config(**changes), tmp_path / "run")
    (event,) = events(tmp_path / "run")
    assert event["step"] == 4 and event["action"] == "stop" and event["metrics"]["loss"] == "nan"
    order = train.batches.record_order(48, 16, seed=0)
    assert [record["index"] for record in event["records"]] == order[3].tolist()
    numbers = [record["index"] for record in event["records"]]
    # The 48 pairs are 30 in the first shard and 18 in the second, numbered anew.
    assert all(f"{n % 30:05d}" in r["key"] for n, r in zip(numbers, event["records"], strict=True))
    with checkpoints.Checkpoints(tmp_path / "run" / "checkpoints") as saved:
        assert saved.latest_step == 2
    train.train(tiny_config(**changes, on_nan="skip"), tmp_path / "run")
    train.train(tiny_config(**changes, on_nan="skip"), tmp_path / "whole")
    assert_same_files(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("action", ["skip", "rollback"])
def test_resumed_run_repeats_what_was_done(
    tiny_config: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    poison_steps(monkeypatch, 2, 6)
    config = tiny_config(**FROZEN | {
        "total_steps": 9, "log_every_steps": 1, "checkpoint.every_steps": 4, "on_nan": action,
    })  # fmt: skip
    train.train(config, tmp_path / "whole")
    assert_actions(tmp_path / "whole", action)
    report = train.Reporter.step

    def stop(self: train.Reporter, step: int, metrics: dict) -> None:
        report(self, step, metrics)
        if step == 7:
            tell(signal.SIGTERM)

    monkeypatch.setattr(train.Reporter, "step", stop)
    with pytest.raises(Interrupted, match="after step 7"):
        train.train(config, tmp_path / "run")
    monkeypatch.setattr(train.Reporter, "step", report)
    train.train(config, tmp_path / "run")
    assert_same_files(tmp_path / "run", tmp_path / "whole")


def assert_actions(workdir: Path, action: str) -> None:
    happened = events(workdir)
    assert [(e["step"], e["action"]) for e in happened] == [(2, action), (6, action)]
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
    if action == "skip":
        assert [line.get("train/skipped_steps") for line in lines[1:7]] == [0, 1, 1, 1, 1, 2]
        assert "train/loss" in lines[1] and "train/loss" not in lines[2]
    else:  # Step 2 goes back to the beginning, step 6 to the checkpoint of step 4.
        assert [e["from"] for e in happened] == [0, 4]
        assert [line["step"] for line in lines] == [0, 3, 4, 7, 8, 9, 9]


def assert_same_files(one: Path, other: Path) -> None:
    for name in ("metrics.jsonl", "results.json", "divergence.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


@pytest.mark.parametrize("action", ["skip", "rollback"])
def test_more_than_the_maximum_stop_the_run(
    tiny_config: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    poison_steps(monkeypatch, 2, 3, 5)
    config = tiny_config(**FROZEN | {"on_nan": action, "max_nan_steps": 2})
    with pytest.raises(DivergedError, match=r"at step 5 .* once more than config.max_nan_steps=2"):
        train.train(config, tmp_path)
    assert [event["action"] for event in events(tmp_path)] == [action, action, "stop"]
