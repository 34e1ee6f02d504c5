"""One entry point: what it lists, and that every refusal is one line."""

import importlib

import pytest

from otter_jax.commands import main


def test_usage_lists_every_command(capsys: pytest.CaptureFixture) -> None:
    main.main([])
    shown = capsys.readouterr().out
    assert "usage: otter-jax COMMAND" in shown and all(name in shown for name in main.COMMANDS)


@pytest.mark.parametrize("name", main.COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture) -> None:
    try:
        main.main([name, "--help"])
    except SystemExit as end:
        assert end.code == 0
    shown = capsys.readouterr().out
    assert f"otter-jax {name}" in shown and "usage: otter-jax" in shown
    assert importlib.import_module(f"otter_jax.commands.{name}").__doc__


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "unknown command 'trian': choose from train, evaluate, inspect"),
        (["export"], r"required: workdir, folder; otter-jax export --help lists the options"),
        (["compare", "nowhere"], "nowhere is not a finished run: it has no results.json"),
        (["inspect"], "required: --data"),
        (["inspect", "--data=nothing"], "otter_jax: .*nothing"),
        (["prepare", "--from=x"], "required: --to"),
    ],
)
def test_refusals_are_one_line(arguments: list, message: str) -> None:
    with pytest.raises(SystemExit, match=message) as end:
        main.main(arguments)
    assert str(end.value).startswith("otter_jax: ") and "\n" not in str(end.value)
