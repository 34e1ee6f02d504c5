"""Losses that are not finite, or explode: found, written down, and stopped, skipped or undone."""

import json
import signal
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs.test_interruption import tell
from test_step import batch_of, build, mesh_of

from otter_jax import sharding, train
from otter_jax.data import batches
from otter_jax.runs import checkpoints
from otter_jax.runs.interruption import Interrupted
from otter_jax.training import step
from otter_jax.training.divergence import DivergedError
from otter_jax.training.state import TrainState

FROZEN = {
    "model.image.frozen": True,
    "model.text.frozen": True,
    "data.augmentation": "none",
}


def batch_of_features(state: TrainState) -> dict[str, np.ndarray]:
    width = state.variables.params["image_projection"]["kernel"].shape[0]
    batch = {name: rows for name, rows in batch_of().items() if name != "image"}
    features = np.random.default_rng(0).normal(size=(16, width)).astype(np.float32)
    return batch | {"image_features": features}


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_step_that_is_not_finite_changes_nothing_but_its_number(
    tiny_config: Callable, poison: float
) -> None:
    mesh = mesh_of(1)
    train_step, state = build(tiny_config(**FROZEN), mesh)
    batch = batch_of_features(state)
    poisoned = batch | {"image_features": np.full_like(batch["image_features"], poison)}
    state, metrics = train_step(state, sharding.put_batch(mesh, batch))
    assert bool(metrics["finite"])
    good = jax.device_get(state)
    state, metrics = train_step(state, sharding.put_batch(mesh, poisoned))
    assert not bool(metrics["finite"])
    jax.tree.map(np.testing.assert_array_equal, state, good._replace(step=good.step + 1))
    state, metrics = train_step(state, sharding.put_batch(mesh, batch))
    assert bool(metrics["finite"]) and int(state.step) == 3


def test_a_step_that_explodes_changes_nothing_but_its_number(tiny_config: Callable) -> None:
    mesh, ratio = mesh_of(1), 2.0
    train_step, state = build(tiny_config(**FROZEN, max_loss_ratio=ratio), mesh)
    batch = sharding.put_batch(mesh, batch_of_features(state))
    before = jax.device_get(state)
    after, metrics = jax.device_get(train_step(state, batch))
    loss, taken = metrics["loss"], after.mean_loss
    assert metrics["mean_loss"] == np.inf and not metrics["exploded"] and taken == loss > ratio
    for mean, explodes in ((loss / ratio * 0.999, True), (loss / ratio * 1.001, False)):
        state = before._replace(mean_loss=np.float32(mean))
        found, metrics = jax.device_get(train_step(sharding.put_state(mesh, state), batch))
        assert metrics["finite"] and bool(metrics["exploded"]) == explodes
        kept = state._replace(step=before.step + 1)
        moved = after._replace(mean_loss=found.mean_loss)
        jax.tree.map(np.testing.assert_array_equal, found, kept if explodes else moved)
    np.testing.assert_allclose(found.mean_loss, 0.99 * state.mean_loss + 0.01 * loss, rtol=1e-6)


def test_the_running_mean_starts_at_the_first_loss() -> None:
    losses = np.random.default_rng(0).uniform(1, 9, size=50)
    mean, wanted = jnp.float32(jnp.inf), losses[0]
    for loss in losses:
        mean = step.next_mean_loss(mean, jnp.float32(loss))
        wanted = 0.99 * wanted + 0.01 * loss  # The first time: of itself with itself.
        np.testing.assert_allclose(mean, wanted, rtol=1e-5)


@pytest.mark.parametrize(
    ("loss", "mean", "ratio", "explodes"),
    [
        (41.0, 4.0, 10.0, True),
        (39.0, 4.0, 10.0, False),
        (11.0, 0.1, 10.0, True),  # A mean below 1 counts as 1.
        (9.0, -2.0, 10.0, False),
        (1e30, 4.0, 0.0, False),  # Never.
        (1e30, np.inf, 10.0, False),  # The first loss of all.
        (np.nan, 4.0, 10.0, False),  # That is not finite.
    ],
)
def test_what_has_exploded(loss: float, mean: float, ratio: float, explodes: bool) -> None:
    assert bool(step.is_exploded(np.float32(loss), np.float32(mean), ratio)) == explodes


def explode_steps(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """Multiplies the losses of these steps (from 1) by 1000."""
    descend = step.descend

    def grown(learner: step.Learner, state: TrainState, *arguments: object) -> step.Proposal:
        *others, loss = arguments
        factor = jnp.where(jnp.isin(state.step + 1, jnp.array(steps)), 1000.0, 1.0)

        def larger(*outputs: object) -> tuple:
            value, metrics = loss(*outputs)
            return value * factor, metrics

        return descend(learner, state, *others, larger)

    monkeypatch.setattr(step, "descend", grown)


def poison_steps(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """Gives the batches of these steps (from 1) features that are no numbers."""
    make = batches.batches

    def make_poisoned(*arguments: object, start_step: int, **options: object) -> object:
        for number, batch in enumerate(
            make(*arguments, start_step=start_step, **options), start_step + 1
        ):
            if number in steps:
                batch["image_features"] = np.full_like(batch["image_features"], np.nan)
            yield batch

    monkeypatch.setattr(batches, "batches", make_poisoned)


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
    order = batches.record_order(48, 16, seed=0)
    assert [record["index"] for record in event["records"]] == order[3].tolist()
    numbers = [record["index"] for record in event["records"]]
    # The 48 pairs are 30 in the first shard and 18 in the second, numbered anew.
    assert all(f"{n % 30:05d}" in r["key"] for n, r in zip(numbers, event["records"], strict=True))
    with checkpoints.Checkpoints(tmp_path / "run" / "checkpoints") as saved:
        assert saved.latest_step == 2
    train.train(tiny_config(**changes, on_nan="skip"), tmp_path / "run")
    train.train(tiny_config(**changes, on_nan="skip"), tmp_path / "whole")
    assert_same_files(tmp_path / "run", tmp_path / "whole")


def test_stop_names_an_explosion_right_after_a_resume(
    tiny_config: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    explode_steps(monkeypatch, 4)
    config = tiny_config(**FROZEN, log_every_steps=1)
    stop_after(monkeypatch, 3)
    with pytest.raises(Interrupted, match="after step 3"):
        train.train(config, tmp_path)
    said = (
        r"diverged at step 4 \(loss .*, loss_contrastive .*: exploded to .* times its running mean "
        r".*; config.max_loss_ratio=10\): .* or --config.on_nan=skip here, or --config.max_loss_ra"
    )
    with pytest.raises(DivergedError, match=said) as stopped:
        train.train(config, tmp_path)
    (event,) = events(tmp_path)
    assert event["reason"] in str(stopped.value) and len(event["records"]) == 16
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    assert len(losses) == 3 and event["metrics"]["loss"] > 100 * max(losses)
    mean = 0.99 * (0.99 * losses[0] + 0.01 * losses[1]) + 0.01 * losses[2]
    ratio = event["metrics"]["loss"] / mean
    assert f"exploded to {ratio:.4g} times its running mean {mean:.4g}," in event["reason"]


def stop_after(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Has SIGTERM arrive when this step is reported, the first time."""
    report, stopped = train.Reporter.step, []

    def stop(self: train.Reporter, step: int, metrics: dict) -> None:
        report(self, step, metrics)
        if step == number and not stopped:
            stopped.append(step)
            tell(signal.SIGTERM)

    monkeypatch.setattr(train.Reporter, "step", stop)


@pytest.mark.parametrize("harm", [poison_steps, explode_steps])
@pytest.mark.parametrize("action", ["skip", "rollback"])
def test_resumed_run_repeats_what_was_done(
    tiny_config: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    action: str,
    harm: Callable,
) -> None:
    harm(monkeypatch, 2, 6)
    config = tiny_config(**FROZEN | {
        "total_steps": 9, "log_every_steps": 1, "checkpoint.every_steps": 4, "on_nan": action,
    })  # fmt: skip
    train.train(config, tmp_path / "whole")
    assert_actions(tmp_path / "whole", action, finite=harm is explode_steps)
    stop_after(monkeypatch, 7)
    with pytest.raises(Interrupted, match="after step 7"):
        train.train(config, tmp_path / "run")
    train.train(config, tmp_path / "run")
    assert_same_files(tmp_path / "run", tmp_path / "whole")


def assert_actions(workdir: Path, action: str, *, finite: bool) -> None:
    happened = events(workdir)
    assert [(e["step"], e["action"]) for e in happened] == [(2, action), (6, action)]
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
    if action == "skip":
        assert [line.get("train/skipped_steps") for line in lines[1:7]] == [0, 1, 1, 1, 1, 2]
        assert "train/loss" in lines[1] and ("train/loss" in lines[2]) == finite
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
