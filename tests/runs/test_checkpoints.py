"""What is saved comes back bit for bit, on another mesh too, and misfits are named."""

import resource
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh

from otter_jax import sharding
from otter_jax.models.dual_encoder import Variables
from otter_jax.runs import checkpoints
from otter_jax.runs.checkpoints import Checkpoints, find_damage
from otter_jax.training.state import TrainState, initial_state


def make_state(width: int = 3, updates: int = 0) -> TrainState:
    params = {"image": {"blocks": {0: {"kernel": jnp.arange(2.0 * width).reshape(2, width)}}}}
    variables = Variables(params, {"text": jnp.ones(2)}, {"image": {"mean": jnp.zeros(2)}})
    state = initial_state(variables, optax.adamw(1e-3), uses_teacher=True)
    return state._replace(step=jnp.int32(updates))


def assert_equal(found: TrainState, wanted: TrainState) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


def zeros_like(state: TrainState) -> TrainState:
    return jax.tree.map(jnp.zeros_like, state)


def test_round_trip_on_another_number_of_devices(tmp_path: Path) -> None:
    state = make_state(updates=7)
    with Checkpoints(tmp_path) as saved:
        saved.save(state)
    mesh = Mesh(np.array(jax.devices()[:4]), ("data",), axis_types=(AxisType.Auto,))
    with Checkpoints(tmp_path) as saved:
        assert saved.latest_step == 7
        restored = saved.restore(sharding.put_state(mesh, zeros_like(state)))
        found, variables = saved.restore_variables(zeros_like(state).variables)
    assert_equal(restored, state)
    assert found == 7
    assert restored.step.sharding.mesh.devices.size == 4
    jax.tree.map(np.testing.assert_array_equal, variables, state.variables)


def test_latest_are_kept(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, keep=2) as saved:
        for updates in (1, 2, 3):
            saved.save(make_state(updates=updates))
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.isdigit()) == ["2", "3"]


def test_a_step_is_saved_once(tmp_path: Path) -> None:
    with Checkpoints(tmp_path) as saved:
        saved.save(make_state(updates=1))
        saved.save(zeros_like(make_state())._replace(step=jnp.int32(1)))
        assert_equal(saved.restore(make_state()), make_state(updates=1))


def test_saved_arrays_survive_donation(tmp_path: Path) -> None:
    update = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    state = make_state(updates=1)
    wanted = jax.device_get(state)
    with Checkpoints(tmp_path) as saved:
        saved.save(state)
        for _ in range(20):
            state = update(state)
    with Checkpoints(tmp_path) as saved:
        assert_equal(saved.restore(make_state()), wanted)


def test_other_shapes_are_named(tmp_path: Path) -> None:
    with Checkpoints(tmp_path) as saved:
        saved.save(make_state(width=3))
        with pytest.raises(ValueError, match="does not fit this config"):
            saved.restore(make_state(width=4))


@pytest.mark.parametrize("harm", ["flip", "truncate", "remove", "empty"])
def test_damage_is_named_and_set_aside(
    tmp_path: Path, capsys: pytest.CaptureFixture, harm: str
) -> None:
    with Checkpoints(tmp_path) as saved:
        for updates in (1, 2):
            saved.save(make_state(updates=updates))
    damage(tmp_path / "2", harm)
    with Checkpoints(tmp_path) as saved:
        found, variables = saved.restore_variables(zeros_like(make_state()).variables)
        assert found == 1 and "that of step 1 is used" in capsys.readouterr().out
        jax.tree.map(np.testing.assert_array_equal, variables, make_state().variables)
        assert (tmp_path / "2").is_dir()  # Whoever only reads changes nothing.
        assert_equal(saved.restore(zeros_like(make_state())), make_state(updates=1))
        assert saved.latest_step == 1
        saved.save(make_state(updates=2))
    assert "2.damaged" in capsys.readouterr().out
    damage(tmp_path / "2", harm)
    with Checkpoints(tmp_path) as saved:
        assert_equal(saved.restore(zeros_like(make_state())), make_state(updates=1))
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"1", "2.damaged", "2.damaged-2", "frozen"}


def damage(checkpoint: Path, harm: str, item: str = "variables") -> None:
    """Do to the largest file of the variables what disks and people do."""
    if harm == "empty":
        shutil.rmtree(checkpoint)
        checkpoint.mkdir()
        return
    files = [path for path in (checkpoint / item).rglob("*") if path.is_file()]
    path = max(files, key=lambda each: each.stat().st_size)
    contents = bytearray(path.read_bytes())
    contents[len(contents) // 2] ^= 1
    if harm == "remove":
        path.unlink()
    else:
        path.write_bytes(contents if harm == "flip" else contents[: len(contents) // 2])


def test_where_none_is_whole_nothing_is_touched(tmp_path: Path) -> None:
    with Checkpoints(tmp_path) as saved:
        saved.save(make_state(updates=2))
    damage(tmp_path / "2", "flip")
    with (
        Checkpoints(tmp_path) as saved,
        pytest.raises(ValueError, match=r"no checkpoint is whole: .* has changed since"),
    ):
        saved.restore(make_state())
    with Checkpoints(tmp_path) as saved, pytest.raises(ValueError, match="no checkpoint is whole"):
        saved.restore_variables(make_state().variables)
    assert {path.name for path in tmp_path.iterdir()} == {"2", "frozen"}


def test_checkpoints_without_checksums_are_taken_as_they_are(tmp_path: Path) -> None:
    state = make_state(updates=2)
    state = state._replace(variables=state.variables._replace(frozen={}))
    with Checkpoints(tmp_path) as saved:
        saved.save(state)
    assert find_damage(tmp_path / "2") is None
    (tmp_path / "2" / "sha256.json").unlink()
    with Checkpoints(tmp_path) as saved:
        assert_equal(saved.restore(zeros_like(state)), state)


def test_what_an_earlier_version_did_not_save_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = make_state(updates=7)._replace(mean_loss=jnp.float32(3.5))
    keep = checkpoints._without_variables

    def forget(state: TrainState) -> dict:
        return {name: value for name, value in keep(state).items() if name != "mean_loss"}

    with monkeypatch.context() as patch, Checkpoints(tmp_path) as saved:
        patch.setattr(checkpoints, "_without_variables", forget)
        saved.save(state)
    with Checkpoints(tmp_path) as saved:
        assert_equal(saved.restore(make_state()), state._replace(mean_loss=jnp.float32(jnp.inf)))
        saved.save(state._replace(step=jnp.int32(8)))
        assert_equal(saved.restore(make_state()), state._replace(step=jnp.int32(8)))


def test_half_written_is_not_there(tmp_path: Path) -> None:
    with Checkpoints(tmp_path) as saved:
        saved.save(make_state(updates=1))
        saved.save(make_state(updates=2))
    (tmp_path / "2").rename(tmp_path / "2.orbax-checkpoint-tmp")
    with Checkpoints(tmp_path) as saved:
        assert_equal(saved.restore(zeros_like(make_state())), make_state(updates=1))
        saved.save(make_state(updates=2))
        assert saved.finished_step() == 2


def test_full_disk_is_said_in_a_line_and_the_one_before_is_whole(tmp_path: Path) -> None:
    wide = make_state(width=100_000, updates=2)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    said = r"step 2 could not be written to .*: File too large; that of step 1 is whole"
    with pytest.raises(OSError, match=said), Checkpoints(tmp_path) as saved:
        saved.save(make_state(updates=1))
        assert saved.finished_step() == 1
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        try:
            saved.save(wide)
            saved.finished_step()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with Checkpoints(tmp_path) as saved:
        assert_equal(saved.restore(zeros_like(make_state())), make_state(updates=1))
        saved.save(make_state(updates=2))
        assert saved.finished_step() == 2


def test_restored_on_fewer_and_fewer_devices(tmp_path: Path) -> None:
    state = make_state(updates=1)
    for devices in (8, 2, 1):
        mesh = Mesh(np.array(jax.devices()[:devices]), ("data",), axis_types=(AxisType.Auto,))
        with Checkpoints(tmp_path) as saved:
            if devices < 8:
                state = saved.restore(sharding.put_state(mesh, zeros_like(state)))
            assert_equal(state._replace(step=jnp.int32(1)), make_state(updates=1))
            state = sharding.put_state(mesh, state._replace(step=jnp.int32(10 - devices)))
            saved.save(state)


def test_overdue_asks_the_time_since_the_last_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: now)
    with Checkpoints(tmp_path) as saved:
        now += 90
        assert saved.overdue(1.5) and not saved.overdue(1.6) and not saved.overdue(0)
        saved.save(make_state(updates=1))
        assert not saved.overdue(1.5)


def test_nothing_saved(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no finished checkpoint"):
        Checkpoints(tmp_path / "none")
    assert not (tmp_path / "none").exists()
    with Checkpoints(tmp_path) as saved:
        assert saved.latest_step is None
        with pytest.raises(FileNotFoundError, match="no finished checkpoint"):
            saved.restore(make_state())


def test_what_is_never_trained_is_kept_once(tmp_path: Path) -> None:
    state = make_state(updates=1)
    frozen = {"text": jnp.arange(50_000.0)}
    state = state._replace(variables=state.variables._replace(frozen=frozen))
    with Checkpoints(tmp_path) as saved:
        for updates in (1, 2):
            saved.save(state._replace(step=jnp.int32(updates)))
    with Checkpoints(tmp_path) as saved:  # As a resumed run does, which writes it not again.
        before = written_at(tmp_path / "frozen")
        assert_equal(saved.restore(zeros_like(state)), state._replace(step=jnp.int32(2)))
        saved.save(state._replace(step=jnp.int32(3)))
        saved.finished_step()
        assert written_at(tmp_path / "frozen") == before
        _, variables = saved.restore_variables(zeros_like(state).variables)
        np.testing.assert_array_equal(variables.frozen["text"], frozen["text"])
    sizes = {each.name: size_of(each) for each in tmp_path.iterdir()}
    assert sizes["3"] < 100_000 < sizes["frozen"]
    damage(tmp_path, "flip", "frozen")
    with (
        Checkpoints(tmp_path) as saved,
        pytest.raises(ValueError, match=r"no checkpoint is whole: .*\.\./frozen/.* has changed"),
    ):
        saved.restore_variables(state.variables)


def test_checkpoints_of_an_earlier_version_hold_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = make_state(updates=1)
    with monkeypatch.context() as context:
        context.setattr(checkpoints, "_split_frozen", lambda variables: ({}, variables))
        with Checkpoints(tmp_path) as saved:
            saved.save(state)
    assert not (tmp_path / "frozen").exists()
    with Checkpoints(tmp_path) as saved:
        restored = saved.restore(zeros_like(state))
        assert_equal(restored, state)
        saved.save(restored._replace(step=jnp.int32(2)))
    assert (tmp_path / "frozen").is_dir()
    with Checkpoints(tmp_path) as saved:
        assert_equal(saved.restore(zeros_like(state)), state._replace(step=jnp.int32(2)))


def written_at(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
