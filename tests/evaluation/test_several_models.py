"""Which prompts models are measured with that are named on the command line."""

from pathlib import Path

import pytest

from otter_jax import config as config_lib
from otter_jax.embedding import published
from otter_jax.evaluation.several_models import prompts_of
from otter_jax.json_files import write_json


def write_run(folder: Path) -> None:
    config = config_lib.default_config()
    config.evaluate.template, config.evaluate.names = "{}", "averaged"
    folder.mkdir()
    write_json(folder / "config.json", config_lib.as_dict(config))


def test_a_run_is_measured_with_its_own_prompts(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    assert prompts_of(str(tmp_path / "run")) == {"template": "{}", "names": "averaged"}


def test_published_models_are_runs_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path / "mine")
    (tmp_path / "mine" / published.ABOUT).touch()
    monkeypatch.setattr(published, "FOLDER", tmp_path)
    assert prompts_of("mine") == {"template": "{}", "names": "averaged"}


@pytest.mark.parametrize("path", ["openai/clip-vit-base-patch32", "no/such/folder"])
def test_models_of_no_run_have_the_default(path: str) -> None:
    assert prompts_of(path) == {"template": "a photo of {}.", "names": "joined"}
