"""The command line: what is wrong ends in one line, without a traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run_main(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "main.py", *arguments],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.batchsize=3"], "unknown config key batchsize. Did you mean"),
        (["--config.batch_size=many"], "many"),
        (["--confg.batch_size=3"], "confg"),
        (["--workdir="], "--workdir is empty"),
        (["surplus"], "unknown argument 'surplus'"),
        (["--mode=fly"], "mode"),
        (["--config.objective.name=clip"], "config.objective.name='clip': choose from infonce"),
        (["--config=configs/none.py"], "--config=configs/none.py: there is no such file"),
        (["--config.model.image.pretrained=package:no_such_package"], "pip install no_such"),
    ],
)
def test_mistakes_end_in_one_line(tmp_path: Path, arguments: list, message: str) -> None:
    config = ["--config=configs/quickstart.py", f"--workdir={tmp_path / 'run'}"]
    result = run_main(*config, *arguments)
    assert result.returncode != 0
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("otter_jax: ") and message in lines[0], lines
    assert not (tmp_path / "run").exists()


def test_no_arguments_show_what_is_needed() -> None:
    result = run_main()
    assert result.returncode != 0
    assert "python main.py --config=configs/NAME.py --workdir=DIR" in result.stderr


def test_workdir_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = run_main("--config=configs/quickstart.py", f"--workdir={tmp_path / 'file' / 'run'}")
    assert result.returncode != 0
    assert "cannot be written" in result.stderr and "Traceback" not in result.stderr


def test_nobody_to_join_ends_in_one_line(tmp_path: Path) -> None:
    workdir = f"--workdir={tmp_path / 'run'}"
    result = run_main("--config=configs/quickstart.py", workdir, "--distributed", "--process_id=1")
    (line,) = result.stderr.splitlines()
    assert result.returncode != 0
    assert line.startswith("otter_jax: --distributed: the other processes cannot be found")


def test_a_slurm_job_is_queued_again_where_its_time_is_up(tmp_path: Path) -> None:
    fakes = {
        "sbatch": 'for last; do :; done; exec bash -c "${last#--wrap=}"',
        "srun": "trap 'exit 143' TERM; echo $$ >pid; kill -USR1 $PPID; while :; do sleep .1; done",
        "scancel": 'echo "scancel $*" >>said; kill -TERM "$(cat pid)"',
        "scontrol": 'echo "scontrol $*" >>said',
    }
    for name, body in fakes.items():
        path = tmp_path / name
        path.write_text(f"#!/usr/bin/env bash\ncd {tmp_path}\n{body}\n")
        path.chmod(0o755)
    result = subprocess.run(
        [ROOT / "launch" / "slurm.sh", "--", "--config=x.py", "--workdir=y"],
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"},
        timeout=60,
    )
    assert result.returncode == 143
    said = (tmp_path / "said").read_text()
    assert said == "scancel --signal=TERM 7\nscontrol requeue 7\n"


@pytest.mark.parametrize("script", ["gpu.sh", "slurm.sh", "tpu_pod.sh"])
def test_launch_scripts_show_what_they_would_run(script: str) -> None:
    environment = os.environ | {"TPU": "pod", "ZONE": "here"}
    flags = ["--config=configs/quickstart.py", "--workdir=runs/x y"]
    between = ["--nodes=2", "--"] if script == "slurm.sh" else []
    result = subprocess.run(
        [ROOT / "launch" / script, "--dry-run", *between, *flags],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "main.py" in result.stdout and "--config=configs/quickstart.py" in result.stdout
    quoted = "runs/x y" if script == "gpu.sh" else "runs/x\\ y"
    assert quoted in result.stdout
    if script == "slurm.sh":
        assert "--requeue" in result.stdout
        assert "--ntasks-per-node=1 --gpus-per-node=1 --nodes=2" in result.stdout
    usage = subprocess.run([ROOT / "launch" / script], capture_output=True, text=True)
    assert "--dry-run" in usage.stdout
