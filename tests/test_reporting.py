"""Files of one JSON object a line, tables and durations."""

import json
from pathlib import Path

import pytest

from otter_jax import reporting


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59, "59 s"), (59.7, "1 min 00 s"), (185, "3 min 05 s"), (7620, "2 h 07 min")],
)
def test_duration(seconds: float, text: str) -> None:
    assert reporting.duration(seconds) == text


def test_resumed_lines_have_no_twin_and_no_half(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = reporting.JsonLines(path, resume_step=-1)
    for step in (0, 2, 4, 6):
        lines.write(step, {"train/loss": step / 2})
    lines.close()
    with path.open("a") as file:
        file.write('{"step": 8, "train/')  # A run that was killed while it wrote.
    lines = reporting.JsonLines(path, resume_step=4)
    lines.write(6, {"train/loss": 3.0})
    lines.close()
    steps = [json.loads(line)["step"] for line in path.read_text().splitlines()]
    assert steps == [0, 2, 4, 6]


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


def test_progress_passes_items_on(capsys: pytest.CaptureFixture) -> None:
    assert list(reporting.progress("abc", 3, "letters")) == ["a", "b", "c"]
    assert "letters: 3 in" in capsys.readouterr().out


def test_results_table_has_a_row_a_metric() -> None:
    results = {
        "set": {"hit@1": 0.5, "hit@5": 0.75},
        "before": {"set": {"hit@1": 0.1, "hit@5": 0.2}},
        "chance": {"set": {"hit@1": 0.01, "hit@5": 0.05}},
    }
    lines = reporting.results_table(results).splitlines()
    assert len(lines) == 3
    assert lines[1].split() == ["set", "hit@1", "50.0", "%", "10.0", "%", "1.0", "%"]


def test_json_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    reporting.write_json(path, {"a": 1})
    reporting.write_json(path, {"a": 2})
    assert reporting.read_json(path) == {"a": 2}
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]
