"""Plans: what is read of the command line, and a compiler that aborts, without any compiler.

The slow test compiles with XLA's own for TPUs and GPUs, where they are installed.
"""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from otter_jax.commands import plan
from otter_jax.commands.command_line import Terminated, hearing_termination
from otter_jax.config import default_config
from otter_jax.preset_files import read_preset
from otter_jax.training.compiler_reports import REPORT
from otter_jax.training.topologies import Topology, parse_topology

TOPOLOGY = parse_topology("v5e:2x4")
# What a compiler leaves behind, in place of one.
LEAVES = f"""
import json, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
(folder / "state.json").write_text(json.dumps({{"parameters": 2**20, "teacher": 0}}))
program = "ENTRY %main (x: f32[512,512]) -> f32[512,512] {{\\n  %x = f32[512,512] parameter(0)\\n"
program += "  ROOT %a = f32[512,512] all-reduce(%x), channel_id=1\\n}}"
for name in ("{TOPOLOGY.program}", "{parse_topology("h100:1x8").program}"):
    (folder / f"m.jit_train_step.{{name}}").write_text(program)
report = "Memory Space: default (color=0)\\nTotal bytes: 3145728 (3MiB)"
(folder / "m.jit_train_step.{REPORT}").write_text(report)
cycles = ', backend_config={{"estimated_cycles":"3000000"}}'
(folder / "complete.txt").write_text(program.replace("channel_id=1", "channel_id=1" + cycles))
time.sleep(600 * ("--wait" in sys.argv))
"""


def stand_in(monkeypatch: pytest.MonkeyPatch, program: str, *, wait: bool = True) -> None:
    """Have a program of ours take the compiler's place."""
    monkeypatch.setattr(Topology, "refuse_missing_compiler", lambda self: None)
    monkeypatch.setattr(plan, "count_flops", lambda config: 8e12)
    arguments = ["--wait"] if wait else []
    monkeypatch.setattr(
        plan,
        "child_command",
        lambda folder, topology: [sys.executable, "-c", program, str(folder), *arguments],
    )


def test_a_plan_is_made_of_what_the_compiler_leaves(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    stand_in(monkeypatch, LEAVES)
    arguments = ["--config=otter_rn50", "--topology=v5e:2x4, v5litepod-16 ,h100:1x8"]
    arguments += [f"--out={tmp_path / 'plans'}", "--pairs=2000000"]
    plan.main([*arguments, "--config.model.image.overrides.stem_width=8"])
    said = capsys.readouterr().out
    assert "v5e:2x4: 8 chips, 64 pairs each" in said
    assert "fits: 0.00 of 15.75 GiB of a chip (MiB: parameters 1, activations and loss 2)" in said
    # A pair takes 2 MiB / 64 of its chip; 8 chips have 15.75 GiB less 1 MiB of parameters each.
    assert f"about {int((15.75 * 2**10 - 1) / (2 / 64)) * 8:,} pairs would" in said
    assert "8.00 TFLOP a step; a chip moves 0.0 GiB" in said
    assert "gets 1 MiB from others (all-reduce 1)" in said
    assert "compute 5.1, memory 0.0, exchange 0.0: limited by compute" in said
    assert "0.1 hours for 39,062 steps" in said  # 10 epochs of 2 million, 512 each.
    first, second, third = json.loads((tmp_path / "plans" / "plan.json").read_text())
    assert (first["chips"], second["chips"], third["topology"]) == (8, 16, "h100:1x8")
    assert first["memory"] == 3 * 2**20
    assert first["traffic"] == 2 * 4 * 512 * 512
    assert first["estimated_seconds"] is None
    assert (tmp_path / "plans" / "plan.png").stat().st_size > 5000


def test_a_complete_plan_has_the_compilers_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, LEAVES, wait=False)
    found = plan.plan(default_config(), TOPOLOGY, 8e12, complete=True)
    assert found.estimated_seconds == 3e6 / 1.5e9
    assert found.step_seconds == found.seconds["compute"]


def test_what_does_not_fit_is_tried_with_what_saves_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    needed = LEAVES.replace("Total bytes: 3145728", "Total bytes: {size}").replace(
        'report = "', 'size = 2**30 * (8 if config["fsdp"] else 80)\nreport = f"'
    )
    read = 'config = json.loads((folder / "config.json").read_text())\n'
    stand_in(monkeypatch, needed.replace("program =", f"{read}program =", 1))
    plan.main(["--config=otter_rn50", "--topology=v5e:2x4", f"--out={tmp_path}"])
    said = capsys.readouterr().out
    assert "does not fit: 80.00 of 15.75 GiB" in said
    assert "with --config.fsdp=True: 8.00 GiB, fits" in said
    for key in ("micro_batch=128", "model.image.remat=True", "model.dtype=bfloat16"):
        assert f"with --config.{key}: 80.00 GiB, does not fit either" in said


@pytest.mark.slow
@pytest.mark.parametrize("topology", ["v5e:2x2", "v4:2x2x1", "h100:1x4"])
def test_the_real_compilers_agree_on_what_is_exchanged(topology: str) -> None:
    devices = parse_topology(topology)
    try:
        devices.refuse_missing_compiler()
    except ModuleNotFoundError as error:
        pytest.skip(str(error))
    config = read_preset("otter_rn50")
    small = ("vocab_size=1000", "num_hidden_layers=1", "hidden_size=128", "num_attention_heads=2")
    keys = [f"model.text.overrides.{key}" for key in (*small, "intermediate_size=256")]
    keys += ["batch_size=64", "data.image_size=64", "model.image.name=resnet18", "embed_dim=128"]
    keys[-1] = f"model.{keys[-1]}"
    plan.set_keys(config, [f"--config.{key}" for key in keys])
    found = plan.plan(config, devices, plan.count_flops(config))
    assert found.fits
    # Gradients are summed once: as many bytes as there are parameters, and the batch's own sums.
    assert 1.0 < found.collectives["all-reduce"] / found.state["parameters"] < 1.05
    assert found.state["teacher"] == found.state["optimizer"] == found.state["parameters"]
    assert found.traffic > 3 * found.state["parameters"]


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
        plan.plan(default_config(), TOPOLOGY, 8e12)


@pytest.mark.parametrize(("topology", "is_told"), [("h100:1x8", True), ("v5e:2x4", False)])
def test_products_for_gpus_are_left_to_cublas(
    monkeypatch: pytest.MonkeyPatch, topology: str, is_told: bool
) -> None:
    stand_in(monkeypatch, "import os; raise SystemExit(os.environ['XLA_FLAGS'])", wait=False)
    with pytest.raises(ValueError, match="--xla_dump_to=") as refusal:
        plan.plan(read_preset("otter_rn50"), parse_topology(topology), flops=0.0)
    assert ("--xla_gpu_enable_triton_gemm=false" in str(refusal.value)) == is_told


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


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (["batch_size=100"], "does not divide over 8 devices: try 96 or 104"),
        (["micro_batch=4"], "config.micro_batch=4 does not divide over 8 devices"),
        (["fsdp=True", "mesh.fsdp=3"], "config.mesh.fsdp=3 does not divide 8 devices"),
        (["model.text.name=auto"], "config.model.text.name=auto is the checkpoint's"),
        (["objective.name=declip", "objective.queue_size=516"], "config.objective.queue_size=516"),
    ],
)
def test_shapes_are_judged_before_the_compiler_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, keys: list[str], words: str
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    arguments = ["--config=otter_rn50", "--topology=v5e:2x4", *(f"--config.{key}" for key in keys)]
    with pytest.raises(SystemExit, match=words):
        plan.main(arguments)


@pytest.mark.parametrize("topology", ["", ",", "v5e:2x4,", " "])
def test_an_empty_topology_is_refused(topology: str) -> None:
    with pytest.raises(SystemExit, match=r"topology '.*': choose a grid of chips"):
        plan.main(["--config=otter_rn50", f"--topology={topology}"])


def test_topologies_are_judged_before_the_first_is_compiled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stand_in(monkeypatch, "raise AssertionError('started')")
    arguments = ["--config=otter_rn50", "--topology=v5e:2x4,v4:2x4x4,h100:1x7"]
    with pytest.raises(SystemExit, match="does not divide over 7 devices"):
        plan.main(arguments)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_one_that_is_stopped_leaves_no_child_and_no_folder(
    tmp_path: Path, number: signal.Signals
) -> None:
    child = tmp_path / "child"
    sleeps = f"import os, time; open({str(child)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    code = (
        "import sys\nfrom otter_jax.commands import plan\n"
        "plan.refuse, plan.count_flops = lambda *_: None, lambda _: 1.0\n"
        f"plan.child_command = lambda *_: [sys.executable, '-c', {sleeps!r}]\n"
        "plan.main(['--config=icons', '--topology=v5e:2x2', '--out=plans'])\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        **{"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True},
        env=os.environ | {"TMPDIR": str(tmp_path)},
        cwd=tmp_path,
    )
    with process:
        while not (child.is_file() and child.read_text()):
            assert process.poll() is None
            time.sleep(0.05)
        if number == signal.SIGHUP:
            process.stdout.close()  # As a terminal is.
        process.send_signal(number)
        if number != signal.SIGHUP:
            assert process.stdout.read() == "\notter_jax: stopped\n"
    assert process.returncode == 128 + number
    with pytest.raises(ProcessLookupError):
        os.kill(int(child.read_text()), 0)
    assert [path.name for path in tmp_path.iterdir()] == ["child"]


def test_under_nohup_a_closed_terminal_changes_nothing() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with hearing_termination():
            os.kill(os.getpid(), signal.SIGHUP)
            with pytest.raises(Terminated):
                os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGHUP, before)
