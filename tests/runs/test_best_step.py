"""The best step of a run by its metrics, kept beside the latest; a run that gets no better ends."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import otter_jax
from otter_jax import config as config_lib
from otter_jax import evaluate, train
from otter_jax.models.dual_encoder import Variables
from otter_jax.runs.best_step import best_step, evaluations, is_over, refuse_unmeasured
from otter_jax.runs.checkpoints import Checkpoints

METRIC = "eval/mine/hit@1"


def write_metrics(workdir: Path, values: list[float | None]) -> None:
    """A line a step, from 0; None is a step that was not evaluated."""
    lines = [
        json.dumps({"step": step, **({} if value is None else {METRIC: value})})
        for step, value in enumerate(values)
    ]
    (workdir / "metrics.jsonl").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("values", "best", "since"),
    [
        ([0.9, 0.2, 0.5, None, 0.4], 2, 1),  # The untrained model has no checkpoint.
        ([0.0, 0.3, 0.3, 0.3], 1, 2),  # Of equal ones the first.
        ([0.0, float("nan"), 0.1, float("nan")], 2, 1),
        ([0.0, float("nan"), float("nan")], None, 2),
        ([0.0], None, 0),
    ],
)
def test_the_first_highest_finite_value_is_the_best(
    tiny_config: Callable, tmp_path: Path, values: list, best: int | None, since: int
) -> None:
    write_metrics(tmp_path, values)
    config = tiny_config(**{"checkpoint.best": METRIC, "evaluate.every_steps": 1})
    assert best_step(config, tmp_path) == best
    assert len(evaluations(tmp_path, METRIC)) == sum(v is not None for v in values[1:])
    for stop_after in (1, 2, 3):
        config.checkpoint.stop_after = stop_after
        assert is_over(config, tmp_path) == (since >= stop_after)


class State(NamedTuple):
    step: jax.Array
    variables: Variables


def test_the_best_checkpoint_is_kept_beside_the_latest(tmp_path: Path) -> None:
    best = None

    def saved_steps() -> set[int]:
        return {int(path.name) for path in tmp_path.glob("[0-9]*") if path.name.isdigit()}

    with Checkpoints(tmp_path, keep=1, create=True, best_step=lambda: best) as saved:
        for step in range(1, 6):
            array = jnp.full(2, float(step))
            saved.save(State(jnp.int32(step), Variables({"x": array}, {}, {})))
            saved.finished_step()
            best = 2 if step >= 2 else 1
        found = saved.restore_variables(Variables({"x": jnp.zeros(2)}, {}, {}), 2)
    assert saved_steps() == {2, 5}
    np.testing.assert_array_equal(found[1].params["x"], [2.0, 2.0])


def test_a_metric_that_is_never_measured_is_refused() -> None:
    refuse_unmeasured(None, [])
    refuse_unmeasured(METRIC, [METRIC])
    with pytest.raises(ValueError, match=r"'eval/mine/hit@2' is never measured; .*: eval/mine/hit"):
        refuse_unmeasured("eval/mine/hit@2", [METRIC])


def test_a_search_that_cannot_be_is_refused(tiny_config: Callable) -> None:
    with pytest.raises(ValueError, match=r"stop_after=2: set config.checkpoint.best"):
        config_lib.check(tiny_config(**{"checkpoint.stop_after": 2}))
    with pytest.raises(ValueError, match=r"set config.evaluate.every_steps"):
        config_lib.check(tiny_config(**{"checkpoint.best": METRIC}))


def test_a_run_ends_early_and_speaks_of_its_best_step(
    tiny_config: Callable, tmp_path: Path
) -> None:
    """The rate is 0: nothing gets better, so the first evaluation is the best."""
    (name,) = tiny_config().evaluate.sets
    changes = {
        "objective.name": "infonce",
        "model.image.frozen": True,
        "model.text.frozen": True,
        "data.augmentation": "none",
        "total_steps": 9,
        "optimizer.learning_rate": 0.0,
        "evaluate.every_steps": 2,
        "checkpoint.keep": 1,
        "checkpoint.best": f"eval/{name}/i2t_recall@1",
    }
    with pytest.raises(ValueError, match="is never measured"):
        wrong = {"checkpoint.best": "eval/other/hit@1"}
        train.train(tiny_config(**changes | wrong), tmp_path / "wrong")
    config = tiny_config(**changes, **{"checkpoint.stop_after": 2})
    results = train.train(config, tmp_path / "run")
    assert (results["step"], results["last_step"]) == (2, 6)
    assert {path.name for path in (tmp_path / "run/checkpoints").glob("[0-9]*")} == {"2", "6"}
    assert train.train(config, tmp_path / "run") == results  # It is finished.
    again = evaluate.evaluate(config, tmp_path / "run")
    assert again == results == json.loads((tmp_path / "run/results.json").read_text())
    otter_jax.load(tmp_path / "run")
