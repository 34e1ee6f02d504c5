"""Curves are drawn where there is something to draw, and of what the files say."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from otter_jax.embedding.trust import Trust
from otter_jax.pictures import curves


def assert_drawn(path: Path) -> None:
    pixels = np.asarray(Image.open(path).convert("L"))
    assert min(pixels.shape) > 200 and pixels.std() > 5


def test_losses_are_those_of_the_lines() -> None:
    lines = [
        {"step": 0, "eval/set/hit@1": 0.5},
        {"step": 2, "train/loss_kd": 3.0, "train/loss": 5.0, "train/learning_rate": 0.1},
        {"step": 4, "train/loss_kd": 2.0},  # A loss that was not finite is not written.
        {"step": 6, "train/loss": 4.0, "train/loss_kd": float("inf")},
    ]
    found = curves.loss_curves(lines)
    assert found == {"loss": {2: 5.0, 6: 4.0}, "kd": {2: 3.0, 4: 2.0}}
    assert list(found) == ["loss", "kd"] and curves.loss_curves(lines[:1]) == {}


@pytest.mark.parametrize("steps", [1, 50])
def test_loss_of_few_and_of_many_steps(tmp_path: Path, steps: int) -> None:
    curves.draw_loss(
        tmp_path / "new" / "loss.png", {"loss": {n: 1 / (n + 1) for n in range(steps)}}
    )
    assert_drawn(tmp_path / "new" / "loss.png")


def test_evaluations_are_the_first_metrics_of_each_set(tmp_path: Path) -> None:
    lines = [
        {"step": step, "train/loss": 1.0, "eval/webdataset:/a/$b$/r@1": step / 10}
        | {f"eval/emoji/hit@{k}": 0.5 for k in (1, 2, 5, 10)}
        for step in (0, 5)
    ]
    found = curves.evaluation_curves(lines)
    assert list(found) == ["webdataset:/a/$b$ r@1", *(f"emoji hit@{k}" for k in (1, 2, 5))]
    assert found["webdataset:/a/$b$ r@1"] == {0: 0.0, 5: 0.5}
    curves.draw_evaluation(tmp_path / "evaluation.png", found)
    assert_drawn(tmp_path / "evaluation.png")
    assert curves.evaluation_curves([{"step": 2, "train/loss": 1.0}]) == {}


@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_trust_also_where_all_pairs_are_alike(tmp_path: Path, spread: float) -> None:
    statistic = spread * np.random.default_rng(0).normal(2, 1, size=200).astype(np.float32)
    null = spread * np.random.default_rng(1).normal(0, 1, size=900).astype(np.float32)
    found = Trust(np.full(200, 0.5, np.float32), 0.25, statistic, null)
    curves.draw_trust(tmp_path / "trust.png", found)
    assert_drawn(tmp_path / "trust.png")


@pytest.mark.parametrize("sets", [1, 2, 3])
def test_models_between_two_are_drawn(tmp_path: Path, sets: int) -> None:
    curve = {
        share: {f"set {n}": {"hit@1": share / (n + 1), "hit@5": 1.0} for n in range(sets)}
        for share in (0.0, 0.5, 1.0)
    }
    curves.draw_interpolation(tmp_path / "between.png", curve)
    assert_drawn(tmp_path / "between.png")
