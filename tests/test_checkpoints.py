"""What is saved comes back bit for bit, on another mesh too, and misfits are named."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh

from otter_jax import sharding, step
from otter_jax.checkpoints import Checkpoints
from otter_jax.models.dual_encoder import Variables


def make_state(width: int = 3, updates: int = 0) -> step.TrainState:
    params = {"image": {"blocks": {0: {"kernel": jnp.arange(2.0 * width).reshape(2, width)}}}}
    variables = Variables(params, {"text": jnp.ones(2)}, {"image": {"mean": jnp.zeros(2)}})
    state = step.initial_state(variables, optax.adamw(1e-3), uses_teacher=True)
    return state._replace(step=jnp.int32(updates))


def assert_equal(found: step.TrainState, wanted: step.TrainState) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


def zeros_like(state: step.TrainState) -> step.TrainState:
    return jax.tree.map(jnp.zeros_like, state)


def test_round_trip_on_another_number_of_devices(tmp_path: Path) -> None:
    state = make_state(updates=7)
    with Checkpoints(tmp_path) as saved:
        saved.save(state)
    mesh = Mesh(np.array(jax.devices()[:4]), ("data",), axis_types=(AxisType.Auto,))
    with Checkpoints(tmp_path) as saved:
        assert saved.latest_step == 7
        restored = saved.restore(sharding.put_state(mesh, zeros_like(state)))
        variables = saved.restore_variables(zeros_like(state).variables)
    assert_equal(restored, state)
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


def test_nothing_saved(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no finished checkpoint"):
        Checkpoints(tmp_path / "none")
    assert not (tmp_path / "none").exists()
    with Checkpoints(tmp_path) as saved:
        assert saved.latest_step is None
        with pytest.raises(FileNotFoundError, match="no finished checkpoint"):
            saved.restore(make_state())
