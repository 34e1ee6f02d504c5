"""The command line: what is wrong ends in one line, without a traceback."""

import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from otter_jax import config as config_lib
from otter_jax.commands import main

ROOT = Path(__file__).parents[1]
# Forks a process for each command line, once it has imported what all of them need: that lasts two
# seconds, the commands themselves a few hundredths.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["otter_jax.train", "otter_jax.commands.train", "pytest"])


def run_as_main(arguments: list[str], outputs: Path) -> None:
    """Do what main.py does in its process, whose outputs go into files of this folder."""
    for descriptor, name in enumerate(("stdout", "stderr"), start=1):
        os.dup2(os.open(outputs / name, os.O_WRONLY | os.O_CREAT), descriptor)
    os.chdir(ROOT)
    main.main(["train", *arguments])


def run_main(*arguments: str) -> subprocess.CompletedProcess:
    with tempfile.TemporaryDirectory() as folder:
        outputs = Path(folder)
        process = FORKS.Process(target=run_as_main, args=(list(arguments), outputs))
        process.start()
        process.join(timeout=120)
        said = [(outputs / name).read_text() for name in ("stdout", "stderr")]
    return subprocess.CompletedProcess(arguments, process.exitcode, *said)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.batchsize=3"], "key batchsize: did you mean batch_size? All keys are listed"),
        (["--config.optimizer.lr=3"], "key optimizer.lr: did you mean optimizer.learning_rate?"),
        (
            ["--config.objective.name=infonce", "--config.objective.epsilon=0.1"],
            "config.objective.epsilon=0.1: infonce has no epsilon; otter, declip and slip have",
        ),
        (
            ["--config=otter_rn5"],
            "--config=otter_rn5: there is no preset otter_rn5; there are clip",
        ),
        (
            ["--config.nonsense=1"],
            "unknown config key nonsense: all keys are listed by otter-jax train --help",
        ),
        (["--config.model.image.overrides.foo=1"], "EfficientNetLite0 has no setting foo; it has"),
        (
            ["--config.model.text.pretrained=None", "--config.model.text.overrides.pack_heads=3"],
            "an override of Bert says pack_heads=3; it",
        ),
        (["--config.batch_size=many"], "--config.batch_size=many: it must be a whole number"),
        (["--config.total_epochs=a:b"], "--config.total_epochs=a:b: it must be a number"),
        (["--config.fsdp=maybe"], "--config.fsdp=maybe: it must be true or false"),
        (["--confg.batch_size=3"], "confg"),
        (["--config.=3"], "--config.=3: it names no key; write --config.KEY=VALUE"),
        (["--config.data=3"], "--config.data=3: it is a section; set one of its keys"),
        (["--config.data.weights=(1,"], "--config.data.weights=(1,: it must be a tuple, such as"),
        (["--wrkdir=x"], "unknown flag --wrkdir: did you mean --workdir?"),
        (["--workdir="], "--workdir is empty"),
        (["surplus"], "unknown argument 'surplus'"),
        (["--mode=fly"], "mode"),
        (["--config.objective.name=clip"], "config.objective.name='clip': choose from infonce"),
        (["--config=configs/none.py"], "--config is given 2 times: configs/quickstart.py, configs"),
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


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("config.batchsize = 3", "unknown config key batchsize: did you mean batch_size?"),
        (
            "config.data.trian = ''",
            "unknown config key trian: all keys are listed by otter-jax train",
        ),
        ("config.data.seed = 3", 'Key "seed" does not exist'),
    ],
)
def test_mistakes_of_a_config_file_end_in_one_short_line(
    tmp_path: Path, line: str, message: str
) -> None:
    (tmp_path / "x.py").write_text(
        "from otter_jax.config import default_config\n"
        f"def get_config():\n    config = default_config()\n    {line}\n    return config\n"
    )
    result = run_main(f"--config={tmp_path / 'x.py'}", f"--workdir={tmp_path / 'run'}")
    assert result.returncode != 0 and message in result.stderr
    assert len(result.stderr) < 200 and result.stderr.count("\n") == 1


def test_a_config_file_that_is_not_there_is_named() -> None:
    command = [sys.executable, "main.py", "--config=configs/none.py"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 1
    assert result.stderr == "otter_jax: --config=configs/none.py: there is no such file\n"


def test_a_config_file_without_its_function_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text("config = 3\n")
    flag = f"--config={tmp_path / 'x.py'}"
    assert run_main(flag).stderr == f"otter_jax: {flag}: it has no function get_config()\n"


def test_no_arguments_show_what_is_needed() -> None:
    result = run_main()
    assert result.returncode != 0
    assert "otter-jax train --config=NAME" in result.stderr and "otter_rn50" in result.stderr


def test_a_preset_without_its_pairs_says_what_it_needs_and_how_to_do_without() -> None:
    result = run_main("--config=configs/otter_rn50.py")
    assert result.returncode == 1 and "Traceback" not in result.stderr
    for part in (
        "timm/resnet50.tv_in1k",
        "img2dataset --url_list",
        "small, on pairs and towers that come with packages",
    ):
        assert part in result.stderr
    # The command line it gives is complete: only that it would train is not tried here.
    given = result.stderr.strip().splitlines()[-1].split()
    assert given[:3] == ["otter-jax", "train", "--config=otter_rn50_small"]
    assert "--config.objective.name=otter" in given
    trained = run_main(*given[2:], "--config.total_steps=-1", "--workdir=/dev/null/none")
    assert "config.total_steps=-1: it must not be negative" in trained.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["--config=quickstart", "--help"]])
def test_help_lists_every_key_with_its_default_and_meaning(arguments: list) -> None:
    shown = run_main(*arguments).stdout
    listed = list(config_lib.describe_keys())
    for name, default, meaning in listed:
        head = f"--config.{name} [{default}]" if default else f"--config.{name}"
        assert f"  {head}\n      {meaning.split()[0]}" in shown
    known = config_lib.flatten(config_lib.default_config().to_dict())
    assert {name for name, *_ in listed if not name.endswith("KEY")} == set(known)


def test_workdir_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = run_main("--config=configs/quickstart.py", f"--workdir={tmp_path / 'file' / 'run'}")
    assert result.returncode != 0
    assert "is a file; name another folder" in result.stderr and "Traceback" not in result.stderr


def test_nobody_to_join_ends_in_one_line(tmp_path: Path) -> None:
    workdir = f"--workdir={tmp_path / 'run'}"
    result = run_main("--config=configs/quickstart.py", workdir, "--process_id=1")
    (line,) = result.stderr.splitlines()
    assert result.returncode != 0
    assert line.startswith("otter_jax: the other processes cannot be found")
    assert "found: --process_id=1" in line
    assert "all of --coordinator_address, --num_processes, --process_id (or JAX_COORD" in line


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


FLAGS = ["--config=configs/x.py", "--workdir=runs/x y", "--config.data.weights=(1.0, 2.0)"]
RUN_BY = {"gpu.sh": "python", "slurm.sh": "sbatch", "tpu_pod.sh": "gcloud"}


@pytest.mark.parametrize("place", [0, 1, -1])
@pytest.mark.parametrize("script", RUN_BY)
def test_a_dry_run_prints_what_can_be_pasted(tmp_path: Path, script: str, place: int) -> None:
    fake = tmp_path / RUN_BY[script]
    fake.write_text('#!/usr/bin/env bash\nprintf "[%s]\\n" "$PWD" "$@" >"$SAID"\n')
    fake.chmod(0o755)
    said = tmp_path / "said"
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SAID": str(said),
                                "TPU": "pod", "ZONE": "here"}  # fmt: skip

    def run(*command: str | Path) -> str:
        said.unlink(missing_ok=True)
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        ).stdout

    arguments = [*(["--nodes=2", "--"] if script == "slurm.sh" else []), *FLAGS]
    run(ROOT / "launch" / script, *arguments)
    wanted = said.read_text()
    assert "main.py" in wanted and "configs/x.py" in wanted
    arguments.insert(place % (len(arguments) + 1), "--dry-run")
    printed = run(ROOT / "launch" / script, *arguments)
    assert not said.exists()
    run("bash", "-c", printed)
    assert said.read_text() == wanted
    if script == "slurm.sh":
        assert "--requeue" in wanted
        assert "[--ntasks-per-node=1]\n[--gpus-per-node=1]\n[--nodes=2]" in wanted


@pytest.mark.parametrize("script", RUN_BY)
def test_launch_scripts_show_their_usage(script: str) -> None:
    usage = subprocess.run([ROOT / "launch" / script], capture_output=True, text=True, check=True)
    assert "--dry-run" in usage.stdout and "--workdir" in usage.stdout
    assert "workdir must be" in usage.stdout
    assert "set -euo" not in usage.stdout
