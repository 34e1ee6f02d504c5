"""otter-jax report: of one run or several, and a clear answer where there is none."""

from pathlib import Path

import pytest
from commands.test_compare import write_run
from pictures.test_pages import Page
from runs.test_history import start_run

from otter_jax.commands import main, report
from otter_jax.runs.history import read_history


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    """Two methods, three seeds, as in test_compare: OTTER is ahead by 1, 2 and 3 points."""
    return [
        write_run(tmp_path / f"{name}{seed}", {"hit@1": hit}, seed=seed, **{"objective.name": name})
        for name, hits in (("infonce", (0.10, 0.20, 0.15)), ("otter", (0.11, 0.22, 0.18)))
        for seed, hit in enumerate(hits)
    ]


def test_several_runs_are_compared(runs: list[str], tmp_path: Path) -> None:
    results, differences = report.tables_of([read_history(Path(run)) for run in runs], None)
    # Student's t with two degrees of freedom, worked out by hand: 4.302653 s / sqrt(3).
    assert results.rows == [("emoji hit@1", "15.0 ± 12.4", "17.0 ± 13.8", "0.0", "16.0")]
    assert differences.rows == [("emoji hit@1", "+2.0 ± 2.5 (3 seeds)")]
    main.main(["report", *runs, f"--output={tmp_path / 'page.html'}"])
    assert "+2.0 ± 2.5 (3 seeds)" in Page(tmp_path / "page.html").texts


def test_what_much_differs_in_is_said_once(tmp_path: Path) -> None:
    much = {"objective.name": "otter", "batch_size": 8, "model.embed_dim": 64, "total_steps": 9}
    paths = [
        write_run(tmp_path / name, {"hit@1": 0.5}, **changes)
        for name, changes in (("plain", {"objective.name": "infonce"}), ("big", much))
    ]
    tables = report.tables_of([read_history(Path(path)) for path in paths], None)
    assert [table.head[1:3] for table in tables] == [("plain", "big"), ("big",), ("plain", "big")]
    assert "±" not in "".join(table.caption for table in tables)
    assert ("total_steps", "unset", "9") in tables[-1].rows


def test_one_run_has_its_page_beside_it(
    runs: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    main.main(["report", runs[0]])
    assert (Path(runs[0]) / "report.html").is_file()
    assert "infonce0: Finished" in capsys.readouterr().out


def test_runs_under_way_are_shown_and_not_compared(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    under_way = start_run(tmp_path / "new", total_steps=100)
    (under_way / "checkpoints" / "20").mkdir(parents=True)
    main.main(["report", runs[0], str(under_way), f"--output={tmp_path / 'page.html'}"])
    said = capsys.readouterr().out
    assert "new: Not finished: 20 of 100 steps" in said
    assert f"checkpoint of step 20 in {under_way} is damaged: variables/ is missing" in said
    assert not any("Paired" in text for text in Page(tmp_path / "page.html").texts)


def test_what_is_no_run_is_passed_over(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    features = tmp_path / "features"
    features.mkdir()
    main.main(["report", str(features), runs[0]])
    assert f"passed over: {features} (no run)\n" in capsys.readouterr().out
    assert (Path(runs[0]) / "report.html").is_file()


def test_bad_input_ends_in_one_line(runs: list[str], tmp_path: Path) -> None:
    for arguments, message in (
        ([str(tmp_path)], "holds no run"),
        ([runs[0], runs[0]], "given twice"),
        ([*runs, "--baseline=none"], "--baseline=none stands for 0 methods"),
        ([runs[0], "--baseline=none"], "--baseline=none goes with several runs"),
        ([*runs, f"--output={runs[0]}/config.json/page.html"], "--output=.*/config.json: it is a"),
        ([], "required: RUN"),
    ):
        with pytest.raises(SystemExit, match=message):
            main.main(["report", *arguments])
