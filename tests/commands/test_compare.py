"""Means, paired intervals, wins and ties against numbers worked out by hand."""

import csv
import json
import math
from pathlib import Path

import pytest

from otter_jax import config as config_lib
from otter_jax.commands import compare
from otter_jax.commands import main as commands
from otter_jax.config import default_config
from otter_jax.evaluation import comparison
from otter_jax.evaluation.finished_runs import Run, read_runs


def write_run(folder: Path, hits: dict[str, float], **changes: object) -> str:
    config = default_config()
    config.update_from_flattened_dict(changes)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config_lib.as_dict(config)))
    results = {"emoji": hits, "before": {"emoji": {"hit@1": 0.0}}, "chance": {"emoji": hits}}
    (folder / "results.json").write_text(json.dumps(results))
    return str(folder)


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    """Two methods, three seeds; OTTER is ahead by 1, 2 and 3 points at 1, and even at 5."""
    made = []
    for name, first in (("infonce", (0.10, 0.20, 0.15)), ("otter", (0.11, 0.22, 0.18))):
        for seed, hit in enumerate(first):
            made.append(
                write_run(tmp_path / f"{name}{seed}", {"hit@1": hit, "hit@5": 0.5 + 0.01 * seed},
                          seed=seed, **{"objective.name": name, "log_every_steps": 7 + seed})
            )  # fmt: skip
    return made


def test_seeds_are_grouped_and_differences_paired(runs: list[str]) -> None:
    found = comparison.compare(read_runs([Path(run) for run in runs]))
    assert found.methods == ["objective.name=infonce", "objective.name=otter"]
    row = ("all runs", "emoji  hit@1")
    cell = found.cells["objective.name=otter", *row]
    assert cell.mean == pytest.approx(0.17) and cell.deviation == pytest.approx(0.0556776)
    mean, half, pairs = found.difference("objective.name=otter", row)
    assert (mean, pairs) == (pytest.approx(0.02), 3)
    assert half == pytest.approx(4.302653 * 0.01 / math.sqrt(3), rel=1e-6)  # t(0.975, 2 df)
    assert found.difference("objective.name=infonce", row) is None
    assert found.wins() == {"objective.name=infonce": (0, 1), "objective.name=otter": (1, 1)}


def test_only_seeds_that_both_have_are_paired(runs: list[str]) -> None:
    found = comparison.compare(read_runs([Path(run) for run in runs[1:]]), "infonce")
    mean, half, pairs = found.difference("objective.name=otter", ("all runs", "emoji  hit@1"))
    assert (mean, pairs) == (pytest.approx(0.025), 2)
    assert half == pytest.approx(12.7062047 * 0.005, rel=1e-6)


def test_settings_times_metrics_are_counted(tmp_path: Path) -> None:
    paths = []
    for dim, hits in ((64, (0.1, 0.2)), (128, (0.3, 0.2))):
        for name, hit in zip(("kd", "otter"), hits, strict=True):
            paths.append(
                write_run(tmp_path / f"{name}{dim}", {"hit@1": hit, "hit@2": 0.5},
                          **{"objective.name": name, "model.embed_dim": dim})
            )  # fmt: skip
    runs = read_runs([Path(path) for path in paths])
    found = comparison.compare(runs, setting=["model.embed_dim"])
    assert len(found.complete_rows()) == 4
    assert found.wins() == {"objective.name=kd": (1, 2), "objective.name=otter": (1, 2)}
    only = comparison.compare(runs, setting=["model.embed_dim"], metrics=["*hit@1"])
    assert len(only.rows) == 2
    assert len(comparison.compare(runs).methods) == 4


def test_the_command_prints_and_writes_tables(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    output = tmp_path / "new" / "tables"
    compare.main([*runs, "--baseline=infonce", f"--output={output}"])
    text = (output / "comparison.md").read_text()
    assert text in capsys.readouterr().out
    assert "| 15.0 ± 5.0 | **17.0 ± 5.6** (+2.0 ± 2.5) |" in text
    assert "| **51.0 ± 1.0** | **51.0 ± 1.0** (+0.0 ± 0.0) |" in text
    assert "| objective.name=otter | 1 | 1 | 0, 1, 2 |" in text
    rows = list(csv.DictReader((output / "comparison.csv").open(newline="")))
    assert len(rows) == 4
    assert float(rows[1]["difference"]) == pytest.approx(0.02) and rows[1]["pairs"] == "3"
    assert rows[0]["difference"] == "" and rows[0]["method"] == "objective.name=infonce"


def test_what_is_no_finished_run_is_passed_over(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    beside = [tmp_path / name for name in ("features", "under_way", "notes.txt")]
    for folder in beside[:2]:
        folder.mkdir()
    (beside[1] / "config.json").write_text("{}")
    beside[2].touch()
    given = [str(beside[0]), *runs, *map(str, beside[1:]), f"--output={tmp_path}"]
    compare.main(given)
    assert (
        f"passed over: {beside[0]} (no run), {beside[1]} (not finished), {beside[2]} (no run)\n"
        in capsys.readouterr().out
    )
    assert "| objective.name=otter | 1 | 1 | 0, 1, 2 |" in (tmp_path / "comparison.md").read_text()
    with pytest.raises(FileNotFoundError, match=r"no finished run: .*under_way \(not finished\)"):
        compare.main([str(beside[1])])


def test_runs_without_evaluation_are_called_so(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", {})
    with pytest.raises(SystemExit, match="none of these runs was evaluated: config"):
        commands.main(["compare", run, f"--output={tmp_path}"])


def test_a_run_without_evaluation_among_others_has_no_numbers(
    runs: list[str], tmp_path: Path
) -> None:
    bare = write_run(tmp_path / "bare", {}, **{"objective.name": "kd"})
    compare.main([runs[0], bare, f"--output={tmp_path}"])
    text = (tmp_path / "comparison.md").read_text()
    assert "| emoji  hit@1 | 10.0 | - |" in text and "| objective.name=kd | 0 | 0 | - |" in text


def test_one_seed_has_no_spread(runs: list[str], tmp_path: Path) -> None:
    for given in (runs[:1], [runs[0], runs[3]]):
        compare.main([*given, f"--output={tmp_path}"])
        text = (tmp_path / "comparison.md").read_text()
        assert "| all runs | emoji  hit@1 | 10.0 |" in text
        assert "±" not in text and text.count("| seed 0 |") == len(given)


def test_methods_that_differ_in_much_are_called_as_their_runs(tmp_path: Path) -> None:
    much = {"objective.name": "otter", "batch_size": 8, "model.embed_dim": 64, "total_steps": 9}
    paths = [
        write_run(
            tmp_path / f"{name}_seed{seed}", {"hit@1": hit + 0.1 * seed}, seed=seed, **changes
        )
        for name, hit, changes in (
            ("plain", 0.5, {"objective.name": "infonce"}),
            ("big", 0.6, much),
        )
        for seed in (1, 2)
    ]
    compare.main([*paths, "--baseline=big", f"--output={tmp_path}"])
    text = (tmp_path / "comparison.md").read_text()
    assert "| setting | metric | plain | big |" in text and "| big | 1 | 0 | 1, 2 |" in text
    assert "difference to big ±" in text and "(-10.0 ± 0.0)" in text
    assert text.count("objective.name") == 1 and "| objective.name | infonce | otter |" in text
    assert "| total_steps | unset | 9 |" in text


@pytest.mark.parametrize(
    ("folders", "columns"),
    [
        ([("a=1,seed=0", 0), ("a=1,seed=10", 10)], "a=1"),
        ([("lora_r8", 8)], "lora_r8"),  # A single run's number may be anything.
        ([("first", 0), ("second", 1)], "first"),
        ([("0", 0), ("1", 1)], "0"),
    ],
)
def test_seeds_are_no_part_of_a_columns_name(folders: list, columns: str) -> None:
    runs = [Run(Path(name), {"seed": seed}, {}) for name, seed in folders]
    assert comparison.name_columns({"method": runs}) == {"method": columns}


def test_columns_of_folders_that_are_called_alike_are_their_paths() -> None:
    methods = {name: [Run(Path(name, "run"), {"seed": 0}, {})] for name in "ab"}
    assert comparison.name_columns(methods) == {"a": "a/run", "b": "b/run"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{0}", "{0}"], "is given twice"),
        (["{0}", "nowhere"], "nowhere is not a finished run"),
        (["{0}", "{3}", "--baseline=clip"], "--baseline=clip stands for 0 methods"),
        (["{0}", "--setting=data.trains"], "there is no such config key"),
        (["{0}", "--metric=x"], "there is no such metric"),
        (["{0}", "{1}", "{copy}"], r"\S+ and \S+copy are the same run twice: seed 0 of run, all"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    runs: list[str], tmp_path: Path, arguments: list[str], message: str
) -> None:
    copy = write_run(tmp_path / "copy", {"hit@1": 0.5}, **{"objective.name": "infonce"})
    paths = [argument.format(*runs, copy=copy) for argument in arguments]
    with pytest.raises(SystemExit, match=message):
        commands.main(["compare", *paths, f"--output={tmp_path}"])


def test_what_is_not_set_is_called_so() -> None:
    run = Run(Path("run"), {"seed": 0, "objective.epsilon": None}, {})
    said = comparison.describe(run, ["objective.epsilon", "seed"], "all")
    assert said == "objective.epsilon=unset, seed=0"


def test_a_baseline_is_the_plain_method_and_blanks_do_not_matter() -> None:
    methods = ["objective.name=infonce, objective.pair_weight=unset",
               "objective.name=infonce, objective.pair_weight=estimated"]  # fmt: skip
    assert comparison.choose_baseline(methods, "infonce") == methods[0]
    assert comparison.choose_baseline(methods, "estimated") == methods[1]
    assert comparison.matches("openmoji  hit@1", "openmoji hit@*")
    assert not comparison.matches("openmoji  hit@1", "open hit@*")
