"""What --config may be: a preset's name, a file, or what a run has kept."""

from pathlib import Path

from otter_jax.commands import train


def test_a_runs_config_is_read_through_a_config_file() -> None:
    replaced = train.with_preset_files(["--config", "runs/a/config.json", "--workdir=config.json"])
    assert replaced == [f"--config={train.RUNS_OWN}:runs/a/config.json", "--workdir=config.json"]
    assert Path(train.RUNS_OWN).is_file()
