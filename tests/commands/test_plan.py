"""Plans: what is read of the command line, and a compiler that aborts, without any compiler."""

import json
import sys
from pathlib import Path

import pytest

from otter_jax.commands import plan
from otter_jax.config import default_config
from otter_jax.training.compiler_reports import REPORT
from otter_jax.training.topologies import parse_topology

TOPOLOGY = parse_topology("v5e:2x4")
# What a compiler leaves behind, in place of one.
LEAVES = f"""
import json, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
facts = {{"state": {{"parameters": 2**20, "teacher": 0}}, "flops": 8e12}}
(folder / "facts.json").write_text(json.dumps(facts))
program = "  %a = f32[512,512] all-reduce(%x), channel_id=1"
(folder / "m.jit_train_step.{plan.PROGRAM}").write_text(program)
report = "Memory Space: default (color=0)\\nTotal bytes: 3145728 (3MiB)"
(folder / "m.jit_train_step.{REPORT}").write_text(report)
time.sleep(600)
"""


def stand_in(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """Have a program of ours take the compiler's place."""
    monkeypatch.setattr(type(TOPOLOGY), "refuse_missing_compiler", lambda self: None)
    monkeypatch.setattr(
        plan, "child_command", lambda folder, topology: [sys.executable, "-c", program, str(folder)]
    )


def test_a_plan_is_made_of_what_the_compiler_leaves(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    stand_in(monkeypatch, LEAVES)
    out = tmp_path / "plan.json"
    arguments = ["--config=otter_rn50", "--topology=v5e:2x4,v5litepod-16", f"--out={out}"]
    plan.main([*arguments, "--config.model.image.overrides.stem_width=8"])
    said = capsys.readouterr().out
    assert "v5e:2x4: 8 chips, 64 pairs each" in said
    assert "fits: 0.00 of 15.75 GiB of a chip (MiB: parameters 1, activations and loss 2)" in said
    assert "8.00 TFLOP a step, 5.1 ms at the chips' peak" in said
    assert "1 MiB exchanged a step (all-reduce 1)" in said
    first, second = json.loads(out.read_text())
    assert (first["chips"], second["chips"]) == (8, 16)
    assert first["memory"] == 3 * 2**20


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("import os; os.abort()", "signal 6; its last words: nothing"),
        ("raise SystemExit('no memory')", "status 1; its last words: no memory"),
    ],
)
def test_a_compiler_that_gives_up_is_one_line(
    monkeypatch: pytest.MonkeyPatch, program: str, words: str
) -> None:
    stand_in(monkeypatch, program)
    with pytest.raises(ValueError, match=f"v5e:2x4: the compiler ended with {words}"):
        plan.plan(default_config(), TOPOLOGY)


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--config.fsdp=maybe", "--config.fsdp=maybe"),
        ("--config.fdsp=True", "unknown config key fdsp: did you mean fsdp"),
        ("--fsdp=True", "unknown argument '--fsdp=True'"),
    ],
)
def test_bad_keys_are_one_line(argument: str, words: str) -> None:
    with pytest.raises(SystemExit, match=words):
        plan.main(["--config=otter_rn50", "--topology=v5e:2x4", argument])


def test_a_batch_that_does_not_divide_is_refused_before_compiling(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stand_in(monkeypatch, "raise AssertionError('started')")
    arguments = ["--config=otter_rn50", "--topology=v5e:2x4", "--config.batch_size=100"]
    with pytest.raises(SystemExit, match="does not divide over 8 devices: try 96 or 104"):
        plan.main(arguments)
