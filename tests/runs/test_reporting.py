"""Files of one JSON object a line, tables and durations."""

import json
import sys
import types
from pathlib import Path

import pytest

from otter_jax.json_files import JsonLines, write_json
from otter_jax.runs import reporting
from otter_jax.training.costs import StepCosts


def test_closing_does_not_hide_what_went_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: JsonLines) -> None:
        raise OSError("closing")

    monkeypatch.setattr(JsonLines, "close", fail)
    arguments = {"total_steps": 4, "resume_step": -1, "batch_size": 8}
    with pytest.raises(ValueError, match="first"), reporting.Reporter(tmp_path, **arguments):
        raise ValueError("first")
    with pytest.raises(OSError, match="closing"), reporting.Reporter(tmp_path, **arguments):
        pass


def test_what_is_not_finite_is_not_written(tmp_path: Path) -> None:
    with reporting.Reporter(tmp_path, total_steps=4, resume_step=-1, batch_size=8) as report:
        report.step(2, {"loss": float("nan"), "temperature": 0.02, "skipped_steps": 1})
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line) == {"step": 2, "train/temperature": 0.02, "train/skipped_steps": 1.0}


def test_reporter_writes_every_place(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with reporting.Reporter(tmp_path, total_steps=4, resume_step=-1, batch_size=8) as report:
        report.evaluation(0, {"webdataset:/a/b": {"hit@1": 0.25}})
        assert list(zip(range(2), report.waiting(iter("xyz")), strict=False))
        report.step(2, {"loss": 1.5, "loss_contrastive": 1.0, "temperature": 0.02})
    metrics = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    assert metrics[0] == {"step": 0, "eval/webdataset:/a/b/hit@1": 0.25}
    assert metrics[1]["train/loss"] == 1.5
    timings = json.loads((tmp_path / "timings.jsonl").read_text())
    assert timings["time/images_per_second"] > 0 and 0 <= timings["time/data_wait"] <= 1
    assert list((tmp_path / "tensorboard").iterdir())
    shown = capsys.readouterr().out
    assert "1.5000 loss" in shown and "left" in shown
    read = reporting.read_evaluation(tmp_path / "metrics.jsonl", step=0)
    assert read == {"webdataset:/a/b": {"hit@1": 0.25}}


def report_steps(workdir: Path, resume_step: int, *steps: int) -> None:
    """Go on after a checkpoint, and report these steps."""
    with reporting.Reporter(
        workdir, total_steps=40, resume_step=resume_step, batch_size=8
    ) as report:
        if not resume_step:
            report.evaluation(0, {"set": {"hit@1": 0.25}})
        for step in steps:
            report.step(step, {"loss": 1.5, "temperature": 0.02})


def remarks(capsys: pytest.CaptureFixture) -> list[str]:
    """Return what was said of metrics.jsonl since the last call."""
    return [line for line in capsys.readouterr().out.splitlines() if "lines" in line]


def test_lines_that_went_missing_are_noticed_at_resume(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "metrics.jsonl"
    report_steps(tmp_path, 0, 10, 20, 30)
    whole = path.read_text()
    for kept, last in ((3, 20), (1, 0), (0, 0)):
        path.write_text("".join(whole.splitlines(keepends=True)[:kept]))
        report_steps(tmp_path, 30)
        said = f"metrics.jsonl ends at step {last}, though the checkpoint is of step 30: lines are"
        assert remarks(capsys) == [f"{said} missing"]
    path.unlink()
    report_steps(tmp_path, 30, 40)
    assert remarks(capsys) == ["metrics.jsonl is missing: the lines up to step 30 are lost"]
    report_steps(tmp_path, 40)  # It has been said.
    assert remarks(capsys) == []


def test_a_run_that_begins_anew_says_so(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    report_steps(tmp_path, 0)  # Killed before its first line of a step.
    report_steps(tmp_path, 0, 10, 20)
    assert remarks(capsys) == []
    report_steps(tmp_path, 0, 10)
    (said,) = remarks(capsys)
    assert said.endswith("training begins anew, and the lines up to step 20 come again")


def test_ordinary_resumes_are_passed_over_in_silence(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    report_steps(tmp_path, 0)
    report_steps(tmp_path, 7, 10, 20)  # Stopped before its first line.
    report_steps(tmp_path, 19, 20, 30)  # The last checkpoint was damaged.
    report_steps(tmp_path, 35)  # Stopped before the next line.
    report_steps(tmp_path, 39, 40)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 41, "tr')  # Killed while it wrote.
    (tmp_path / "timings.jsonl").unlink()
    report_steps(tmp_path, 40)
    assert remarks(capsys) == []


def test_results_table_has_a_row_a_metric() -> None:
    results = {
        "set": {"hit@1": 0.5, "hit@5": 0.75},
        "before": {"set": {"hit@1": 0.1, "hit@5": 0.2}},
        "chance": {"set": {"hit@1": 0.01, "hit@5": 0.05}},
    }
    lines = reporting.results_table(results).splitlines()
    assert len(lines) == 3
    assert lines[1].split() == ["set", "hit@1", "50.0", "%", "10.0", "%", "1.0", "%", "+40.0"]


def test_utilization_is_the_share_of_the_peak(tmp_path: Path) -> None:
    step = StepCosts(flops=5e6, peak=1e12, state=2**30, temporaries=0, total=2**30, device=2**32)
    with reporting.Reporter(tmp_path, total_steps=4, resume_step=-1, batch_size=8) as report:
        report.costs(1, step)
        for _ in range(3):
            report.took(step)
        report.step(2, {"loss": 1.0, "temperature": 0.02})
    budget, timings = map(json.loads, (tmp_path / "timings.jsonl").open())
    assert budget["memory/device_gib"] == 4 and budget["memory/total_gib"] == 1
    flops = timings["time/model_flops_per_second"]
    assert flops == pytest.approx(5e6 * timings["time/steps_per_second"])
    assert timings["time/model_flops_utilization"] == pytest.approx(flops / 1e12)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1


def test_wandb_gets_the_same_metrics_in_one_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, logged = [], []
    run = types.SimpleNamespace(
        log=lambda values, step: logged.append((step, values)),
        finish=lambda exit_code: logged.append(exit_code),
    )
    wandb = types.SimpleNamespace(init=lambda **settings: started.append(settings) or run)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    write_json(tmp_path / "config.json", {"seed": 3})
    arguments = {"total_steps": 4, "resume_step": -1, "batch_size": 8, "wandb_project": "owls"}
    for _ in range(2):
        with reporting.Reporter(tmp_path, **arguments) as report:
            report.evaluation(0, {"set": {"hit@1": 0.25}})
    assert logged == [(0, {"eval/set/hit@1": 0.25}), 0] * 2
    assert started[0] == started[1]
    assert started[0]["project"] == "owls" and started[0]["config"] == {"seed": 3}
