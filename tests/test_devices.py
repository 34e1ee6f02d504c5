"""The same training on one device, on eight, and in two processes with four each."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from runs.test_processes import free_port
from training.test_step import batch_of, build, mesh_of, vit_config

from otter_jax import config as config_lib
from otter_jax import objectives, sharding
from otter_jax.runs.checkpoints import Checkpoints
from otter_jax.training.state import TrainState

ROOT = Path(__file__).parents[1]
PROGRAM = """
import sys
from pathlib import Path
from otter_jax import config as config_lib, train
from otter_jax.runs import processes
if sys.argv[1]:
    processes.join(sys.argv[1], 2, int(sys.argv[2]))
for folder in map(Path, sys.argv[3:]):
    train.train(config_lib.load_config(folder / "config.json"), folder / "run")
"""
MACHINES = {"1 device": (1, 1), "8 devices": (1, 8), "2 processes": (2, 4)}


def train_on(num_processes: int, devices: int, folders: Sequence[Path]) -> None:
    """Trains what the config.json of each folder asks for, in its `run`."""
    address = f"127.0.0.1:{free_port()}" if num_processes > 1 else ""
    flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, address, str(number), *map(str, folders)],
            env=os.environ | flags | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for number in range(num_processes)
    ]  # fmt: skip
    said = [each.communicate(timeout=1800)[0] for each in started]
    assert not any(each.returncode for each in started), "\n".join(said)[-3000:]


def outcome(config: ConfigDict, folder: Path) -> tuple[np.ndarray, TrainState]:
    """The losses of a finished run and its last state."""
    lines = map(json.loads, (folder / "run" / "metrics.jsonl").open())
    losses = np.array([line["train/loss"] for line in lines if "train/loss" in line])
    with Checkpoints(folder / "run" / "checkpoints") as saved:
        return losses, jax.device_get(saved.restore(build(config, mesh_of(1))[1]))


def relative_error(found, wanted) -> float:
    """||found - wanted|| / ||wanted|| of two pytrees, each taken as one vector."""
    found, wanted = (
        np.concatenate([np.ravel(x).astype(np.float64) for x in jax.tree.leaves(tree)])
        for tree in (found, wanted)
    )
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


@pytest.mark.slow
def test_twenty_steps_of_every_objective_are_the_same(
    tiny_config: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Towers that are trained, batch norm among them; prints a table of the worst errors."""
    changes = {"total_steps": 20, "log_every_steps": 1, "checkpoint.every_steps": 20}
    # So low that 20 steps do not blow rounding up: at 1e-3 it reaches 7e-3 of the InfoNCE loss, at
    # 1e-4 7e-5.
    changes |= {"optimizer.learning_rate": 1e-5, "evaluate.sets": ()}
    configs = {n: tiny_config(**changes, **{"objective.name": n}) for n in objectives.METHODS}
    # With seed 0 its losses agree to 2e-7 for five steps, then on two processes to 1.1e-5, as when
    # a ReLU is at its kink; with seeds 1 and 2, to 2e-7 for all 20.
    configs["slip"].seed = 1
    configs["infonce"].data.token_buckets = (2, 3)  # Two processes agree on one of them.
    outcomes = {}
    for machine, counts in MACHINES.items():
        folders = {name: tmp_path / machine / name for name in configs}
        for name, folder in folders.items():
            folder.mkdir(parents=True)
            (folder / "config.json").write_text(json.dumps(config_lib.as_dict(configs[name])))
        train_on(*counts, list(folders.values()))
        for name, folder in folders.items():
            outcomes[machine, name] = outcome(configs[name], folder)
    errors = {}
    for (machine, name), (losses, state) in outcomes.items():
        wanted_losses, wanted = outcomes["1 device", name]
        assert len(losses) == 20
        errors[machine, name] = (
            np.max(np.abs(losses / wanted_losses - 1)),
            relative_error(state.variables.params, wanted.variables.params),
            relative_error(state.variables.batch_stats, wanted.variables.batch_stats),
        )
    with capsys.disabled():
        print("\nmachine, objective: loss, parameters, batch statistics")
        for (machine, name), worst in errors.items():
            print(f"{machine:12} {name:16}", *(f"{error:.1e}" for error in worst))
    for key, (loss, params, stats) in errors.items():
        assert loss < 1e-5 and params < 1e-4 and stats < 1e-4, key


def test_a_run_goes_on_with_fewer_devices(tiny_config: Callable, tmp_path: Path) -> None:
    config = vit_config(tiny_config, **{"optimizer.learning_rate": 1e-3})
    batch = batch_of(config=config)

    def go_on(train_step: Callable, state: TrainState, devices: int) -> tuple[list, TrainState]:
        losses = []
        for _ in range(3):
            state, metrics = train_step(state, sharding.put_batch(mesh_of(devices), batch))
            losses.append(float(metrics["loss"]))
        return losses, state

    train_step, state = build(config, mesh_of(8))
    _, state = go_on(train_step, state, 8)
    before = jax.device_get(state)
    with Checkpoints(tmp_path, create=True) as saved:
        saved.save(state)
    wanted, after = go_on(train_step, state, 8)
    for devices in (2, 1):
        fewer_step, template = build(config, mesh_of(devices))
        with Checkpoints(tmp_path) as saved:
            restored = saved.restore(template)
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(restored), before)
        found, state = go_on(fewer_step, restored, devices)
        np.testing.assert_allclose(found, wanted, rtol=1e-5)
        assert relative_error(state.variables.params, after.variables.params) < 1e-4


def test_split_state_gets_smaller_with_every_device(
    tiny_config: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharding, "SMALLEST_SPLIT", 64)
    sizes = []
    for devices in (1, 2, 4, 8):
        _, state = build(vit_config(tiny_config, fsdp=True), mesh_of(devices))
        sizes.append([sharding.bytes_on_a_device(x) for x in (state.variables, state.opt_state)])
    for more, fewer in zip(sizes[1:], sizes, strict=False):
        assert (np.array(more) < 0.65 * np.array(fewer)).all()  # Half, and what is too small.
