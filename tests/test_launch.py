"""The launch scripts with two machines, processes here that JAX takes for two where root is.

What a machine has is faked, SLURM's commands and its identity; the training is real. A run is
stopped on two and goes on with one, and loses one of two and goes on with both.
"""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from runs.test_processes import free_port, outputs, read_text, write_config
from test_sharding import can_have_a_namespace
from training.test_step import vit_config

ROOT = Path(__file__).parents[1]
STEPS = 100
# In place of Python on a machine, where `MACHINE` or SLURM says which. Its boot id is its own.
PYTHON = """#!/usr/bin/env bash
export JAX_PLATFORMS=cpu PYTHONPATH={root}
machine="${{SLURM_PROCID:-${{MACHINE:-0}}}}"
echo $$ >"{folder}/pid.$machine"
if {namespace}; then
  printf '01234567-89ab-cdef-0123-45678901234%s\\n' "$machine" >"{folder}/boot_id.$machine"
  exec unshare -m sh -c 'mount --bind "$0" /proc/sys/kernel/random/boot_id && exec "$@"' \\
    "{folder}/boot_id.$machine" {python} "$@"
fi
exec {python} "$@"
"""
SLURM = {
    "sbatch": 'for last; do :; done; echo $$ >"$FOLDER/pid.job"; exec bash -c "${last#--wrap=}"',
    # It ends when its tasks have, with their status.
    "srun": """export SLURM_NTASKS=2 SLURM_STEP_NODELIST=127.0.0.1,second SLURM_LOCALID=0
for SLURM_PROCID in 0 1; do
  SLURM_PROCID=$SLURM_PROCID "$@" >"$FOLDER/said.$SLURM_PROCID" 2>&1 &
done
for job in $(jobs -p); do wait "$job" || status=$?; done
exit "${status:-0}\"""",
    "scancel": 'kill -TERM "$(cat "$FOLDER/pid.0")" "$(cat "$FOLDER/pid.1")"',
    "scontrol": 'echo "$*" >"$FOLDER/scontrol"',
}


@pytest.fixture
def machines(tmp_path: Path) -> dict[str, str]:
    """What the scripts find around them."""
    folder = tmp_path / "machines"
    folder.mkdir()
    python = PYTHON.format(
        root=ROOT,
        folder=folder,
        namespace=str(can_have_a_namespace()).lower(),
        python=shutil.which("python"),
    )
    scripts = {name: f"#!/usr/bin/env bash\n{body}\n" for name, body in SLURM.items()}
    for name, text in (scripts | {"python_of_machine": python}).items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    # Of the number of a job JAX makes the port where the processes meet.
    job = next(n for n in iter(free_port, None) if n % 4096 < 4000)
    return os.environ | {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "FOLDER": str(folder),
        "PYTHON": str(folder / "python_of_machine"),
        "SLURM_JOB_ID": str(job),
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
    }


def launch(script: str, arguments: Sequence[str], around: dict[str, str]) -> subprocess.Popen:
    """Start a script, which says what it says into a pipe."""
    return subprocess.Popen(
        [ROOT / "launch" / script, *arguments],
        env=around, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def launch_two(arguments: Sequence[str], around: dict[str, str]) -> list[subprocess.Popen]:
    """Start gpu.sh on two machines without a scheduler."""
    address = f"--coordinator_address=127.0.0.1:{free_port()}"
    return [
        launch(
            "gpu.sh",
            ["--distributed", address, "--num_processes=2", f"--process_id={number}", *arguments],
            around | {"MACHINE": str(number)},
        )
        for number in range(2)
    ]


def wait_for_losses(workdir: Path, started: Sequence[subprocess.Popen], lines: int = 1) -> None:
    """Wait until a run has written down so many losses."""
    while read_text(workdir / "metrics.jsonl").count('"train/loss"') < lines:
        assert all(each.poll() is None for each in started), [e.communicate() for e in started]
        time.sleep(0.02)


def losses(workdir: Path) -> dict[int, float]:
    """Losses of a run by step."""
    lines = map(json.loads, (workdir / "metrics.jsonl").open())
    return {line["step"]: line["train/loss"] for line in lines if "train/loss" in line}


def stop_slurm_s_job(command: Sequence[str], workdir: Path, around: dict[str, str]) -> None:
    """Two nodes, until the job's time is up; then it is queued again."""
    job = launch("slurm.sh", ["--nodes=2", "--", *command], around)
    wait_for_losses(workdir, [job])
    folder = Path(around["FOLDER"])
    os.kill(int(read_text(folder / "pid.job")), signal.SIGUSR1)
    outputs([job], status=143)
    assert read_text(folder / "scontrol") == f"requeue {around['SLURM_JOB_ID']}\n"
    for number in range(2):
        last = read_text(folder / f"said.{number}").splitlines()[-1]
        assert "stopped by SIGTERM after step" in last
    assert max(losses(workdir)) < STEPS


def lose_one_of_two(command: Sequence[str], workdir: Path, around: dict[str, str]) -> None:
    """A machine that is gone ends the other, in the minute or two until JAX gives it up."""
    both = launch_two(command, around)
    wait_for_losses(workdir, both, lines=5)
    os.kill(int(read_text(Path(around["FOLDER"], "pid.1"))), signal.SIGKILL)
    both[0].communicate(timeout=300)
    assert both[0].returncode


@pytest.mark.slow
def test_runs_go_on_with_fewer_and_more_machines(
    tiny_config: Callable, tmp_path: Path, machines: dict[str, str]
) -> None:
    changes = {"total_steps": STEPS, "log_every_steps": 10, "checkpoint.every_steps": 20}
    changes |= {"data.augmentation": "none", "evaluate.sets": (), "optimizer.learning_rate": 1e-5}
    config = f"--config={write_config(vit_config(tiny_config, **changes), tmp_path)}"
    whole, stopped, lost = workdirs = [tmp_path / name for name in ("whole", "stopped", "lost")]
    commands = {workdir: [config, f"--workdir={workdir}"] for workdir in workdirs}
    outputs([launch("gpu.sh", commands[whole], machines)])

    stop_slurm_s_job(commands[stopped], stopped, machines)
    outputs([launch("gpu.sh", commands[stopped], machines)])

    one = launch("gpu.sh", commands[lost], machines)
    wait_for_losses(lost, [one])
    one.send_signal(signal.SIGTERM)
    outputs([one], status=143)
    lose_one_of_two(commands[lost], lost, machines)
    outputs(launch_two(commands[lost], machines))

    wanted = losses(whole)
    assert len(wanted) == STEPS // 10
    for workdir in (stopped, lost):
        found = losses(workdir)
        assert found.keys() == wanted.keys()
        np.testing.assert_allclose(list(found.values()), list(wanted.values()), rtol=1e-6)
