"""What a workdir says is read at whatever point its run is, or refused by the file's name."""

import json
from pathlib import Path

import pytest

from otter_jax import config as config_lib
from otter_jax.runs import history


def start_run(folder: Path, **changes: object) -> Path:
    config = config_lib.default_config()
    config.update_from_flattened_dict({"batch_size": 10, "total_epochs": 5.0} | changes)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config_lib.as_dict(config)))
    return folder


def write_lines(path: Path, *lines: object) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_run_that_has_just_begun(tmp_path: Path) -> None:
    found = history.read_history(start_run(tmp_path))
    assert (found.step, found.total_steps, found.finished) == (0, None, False)
    assert history.damage_of_last_checkpoint(found) is None


def test_a_run_under_way(tmp_path: Path) -> None:
    start_run(tmp_path)
    train = {"pairs": 38, "unreadable": {"a": "empty", "b": "empty"}}
    (tmp_path / "data.json").write_text(json.dumps({"train": train}))
    write_lines(tmp_path / "metrics.jsonl", {"step": 0, "eval/x/hit@1": 0.5}, {"step": 4, "a": 2})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "a"')  # Just being written.
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    (tmp_path / "checkpoints" / "7.damaged").mkdir()
    found = history.read_history(tmp_path)
    assert found.total_steps == 20  # 5 epochs of 40 pairs, of which 38 can be read.
    assert (found.step, found.checkpoints) == (4, [3])
    assert found.metrics == {"eval/x/hit@1": {0: 0.5}, "a": {4: 2.0}}
    assert history.damage_of_last_checkpoint(found) == "variables/ is missing"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metrics.jsonl", b'{"step": 1}\nnothing\n', "metrics.jsonl is damaged: line 2"),
        ("metrics.jsonl", b'{"loss": 1}\n', "metrics.jsonl is damaged: line 1"),
        ("timings.jsonl", b"\xff\n", "timings.jsonl is damaged, no text"),
        ("results.json", b"[1]", "results.json is damaged"),
        ("data.json", b"{", "data.json is damaged"),
    ],
)
def test_damage_is_refused_by_name(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (start_run(tmp_path) / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        history.read_history(tmp_path)


def test_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no run"):
        history.read_history(tmp_path)
