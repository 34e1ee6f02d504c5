"""A run is evaluated with the config it has kept, unless another is named."""

from pathlib import Path

import pytest

from otter_jax import config as config_lib
from otter_jax.commands import config_of_run, evaluate, main, train
from otter_jax.json_files import write_json


def test_the_runs_own_config_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_lib.default_config()
    config.seed = 7
    write_json(tmp_path / "config.json", config_lib.as_dict(config))
    seen: list[list[str]] = []
    monkeypatch.setattr(train, "main", lambda arguments: seen.append(list(arguments)))
    evaluate.main([f"--workdir={tmp_path}"])
    evaluate.main([f"--workdir={tmp_path}", "--config=quickstart"])
    own, other = seen
    assert own[0] == f"--config={tmp_path / 'config.json'}"
    assert other[:2] == [f"--workdir={tmp_path}", "--config=quickstart"]
    assert own[-1] == other[-1] == "--mode=evaluate"
    assert config_of_run.get_config(str(tmp_path / "config.json")).seed == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], "which run"), (["--workdir=nowhere"], "--workdir=nowhere: there is no run to evaluate")],
)
def test_no_run_is_refused(arguments: list, message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        main.main(["evaluate", *arguments])
