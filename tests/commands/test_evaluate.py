"""A run is evaluated with the config it has kept, unless another is named."""

from collections.abc import Callable
from pathlib import Path

import pytest

import otter_jax
from otter_jax import config as config_lib
from otter_jax import train as library
from otter_jax.commands import config_of_run, evaluate, main, train
from otter_jax.json_files import read_json, write_json


def test_the_runs_own_config_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_lib.default_config()
    config.seed = 7
    write_json(tmp_path / "config.json", config_lib.as_dict(config))
    seen: list[list[str]] = []
    monkeypatch.setattr(train, "main", lambda arguments: seen.append(list(arguments)))
    evaluate.main([str(tmp_path)])
    evaluate.main([f"--workdir={tmp_path}", "--config=quickstart"])
    own, other = seen
    assert own[0] == f"--config={tmp_path / 'config.json'}"
    assert other[:2] == [f"--workdir={tmp_path}", "--config=quickstart"]
    assert own[-1] == other[-1] == "--mode=evaluate"
    assert config_of_run.get_config(str(tmp_path / "config.json")).seed == 7


def test_models_are_measured_as_in_a_run(
    tiny_config: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """A run of no steps leaves its untrained model, which is measured like any other."""
    config = tiny_config(total_steps=0)
    run, output = tmp_path / "run", tmp_path / "tables" / "models.json"
    results = library.train(config, str(run))
    assert results["before"] == {name: results[name] for name in config.evaluate.sets}
    otter_jax.load(run).save(tmp_path / "out")
    (spec,) = config.evaluate.sets
    paths = [str(run), str(tmp_path / "out")]
    main.main(["evaluate", *paths, f"--sets={spec}", f"--output={output}"])
    found = read_json(output)
    assert list(found) == [*paths, "chance"]
    assert found["chance"] == results["chance"]
    for path in paths:
        assert found[path][spec] == pytest.approx(results[spec])
    assert f"{spec}  i2t_recall@1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model=nowhere"], "required: --sets"),
        (["--model=no/where/at/all", "--sets=openmoji"], "no pretrained weights at no/where"),
        (["--model=a", "--model=a", "--sets=openmoji"], "--model=a is given twice"),
        (["--model=a", "--sets=openmojis"], "--sets: unknown set 'openmojis'"),
        (["--model=a", "--sets=(openmoji"], r"--sets=\(openmoji: write --sets=SPEC,SPEC"),
        (["--model=quickstart", "--sets=openmoji", "--template=x"], "--template: the template 'x'"),
        (["--model=quickstart", "--sets=openmoji", "--template="], "--template: "),
    ],
)
def test_what_is_no_model_or_set_is_refused(arguments: list, message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        main.main(["evaluate", *arguments])


def test_several_sets() -> None:
    assert evaluate.split_specs("a:b,c?d=e") == ["a:b", "c?d=e"]
    assert evaluate.split_specs("webdataset:{0,1}.tar,openmoji") == [
        "webdataset:{0,1}.tar",
        "openmoji",
    ]
    assert evaluate.split_specs('("a","b")') == ["a", "b"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "which run"),
        (["nowhere"], "nowhere: there is no run to evaluate"),
        (["a", "b"], "2 models are compared on --sets=SPEC,SPEC: a, b"),
        (["a", "--workdir=b"], "one run is evaluated at a time, found a, --workdir=b"),
    ],
)
def test_no_run_is_refused(arguments: list, message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        main.main(["evaluate", *arguments])
