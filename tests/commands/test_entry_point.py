"""One entry point: what it lists, and that every refusal is one line."""

import importlib
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import otter_jax
from otter_jax.commands import main
from otter_jax.commands.command_line import make_folder, stopping_at_once, unknown_flags


def test_usage_lists_every_command(capsys: pytest.CaptureFixture) -> None:
    main.main([])
    shown = capsys.readouterr().out
    assert "usage: otter-jax COMMAND" in shown and all(name in shown for name in main.COMMANDS)


def test_the_version_is_said(capsys: pytest.CaptureFixture) -> None:
    main.main(["--version"])
    assert capsys.readouterr().out == f"otter_jax {otter_jax.__version__}\n"


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
        (["trian"], "unknown command 'trian': did you mean train\\? There are train, evaluate"),
        (["fly"], "unknown command 'fly': choose from train, evaluate, inspect"),
        (["evaluate", "--wrkdir=x"], "unknown flag --wrkdir: did you mean --workdir"),
        (["export"], r"required: workdir, folder; otter-jax export --help lists the options"),
        # Before anything is read.
        (["export", "nowhere", "/dev/null"], "FOLDER=/dev/null: /dev/null is a file"),
        (["export", "nowhere", "/"], "/ should be a new or an empty folder"),
        (["export", "nowhere", "new", "--interpolate=2"], r"interpolation at 2.0: .* in \[0, 1\]"),
        (
            ["plan", "--config=icons", "--topology=v5e:1", "--out=/dev/null"],
            "--out=/dev/null: /dev",
        ),
        (["sweep", "--config=icons", "--workdir=/dev/null"], "--workdir=/dev/null: /dev/null is a"),
        (["compare", "nowhere"], "nowhere is not a finished run: there is no such folder"),
        (["inspect"], "required: --data"),
        (["inspect", "--data=nothing"], "otter_jax: .*nothing"),
        (["prepare", "--from=x"], "required: --to"),
    ],
)
def test_refusals_are_one_line(arguments: list, message: str) -> None:
    with pytest.raises(SystemExit, match=message) as end:
        main.main(arguments)
    assert str(end.value).startswith("otter_jax: ") and "\n" not in str(end.value)


def test_folders_that_cannot_be_made_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder, reason in (("file", "it is a file"), ("file/x", "no folder can be made")):
        with pytest.raises(ValueError, match=f"^--out=.*{folder}: {reason}"):
            make_folder("--out", tmp_path / folder)
    assert make_folder("--out", tmp_path / "a" / "b").is_dir()


def test_flags_are_told_from_keys_and_numbers() -> None:
    known = ["config", "workdir", "distributed"]
    right = ["--config=x", "-workdir", "y", "--nodistributed", "--config.seed", "-1", "--", "z=--a"]
    assert unknown_flags(right, known) is None
    assert unknown_flags([*right, "--far=1"], known) == "unknown flag --far: --help lists the flags"


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    code = (
        "from otter_jax.commands.command_line import ending_in_one_line\n"
        "with ending_in_one_line():\n    print('x' * 10**6, flush=True)"
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as program:
        program.stdout.close()
        assert program.stderr.read() == b""
    assert program.returncode == 141  # As of a program that SIGPIPE ends.


def test_ctrl_c_while_modules_are_imported_is_not_lost() -> None:
    code = (
        "import contextlib, importlib, os, signal, time\n"
        "from otter_jax.commands import main\n"
        "def load(name):\n"  # As a module that does without what cannot be imported.
        "    with contextlib.suppress(BaseException):\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "        time.sleep(10)\n"
        "importlib.import_module = load\n"
        "main.main(['compare'])\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (130, "\notter_jax: stopped\n")
    assert found.stderr == ""


def test_only_pythons_own_way_with_ctrl_c_is_replaced() -> None:
    before = signal.getsignal(signal.SIGINT)
    for handler in (signal.default_int_handler, signal.SIG_IGN):
        signal.signal(signal.SIGINT, handler)
        with stopping_at_once():
            is_own = signal.getsignal(signal.SIGINT) is handler
        found = signal.getsignal(signal.SIGINT)
        signal.signal(signal.SIGINT, before)
        assert found is handler and is_own == (handler is signal.SIG_IGN)
