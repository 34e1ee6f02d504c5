"""The train step: teacher average, schedule, weight decay, and eight devices equal to one."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from otter_jax import encoder, objectives, sharding, step
from otter_jax.models import dual_encoder


def mesh_of(devices: int) -> Mesh:
    return Mesh(np.array(jax.devices()[:devices]), ("data",), axis_types=(AxisType.Auto,))


def build(config, mesh: Mesh):
    options = objectives.make_options(**config.objective)
    model, variables = dual_encoder.split(encoder.build_module(config))
    schedule = step.make_schedule(config, 20)
    optimizer = step.make_optimizer(config, schedule)
    state = step.initial_state(variables, optimizer, uses_teacher=options.uses_teacher)
    train_step = step.make_train_step(model, options, optimizer, schedule, config, mesh)
    return train_step, sharding.put_state(mesh, state)


def batch_of(rows: int = 16) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 255, size=(rows, 32, 32, 3), dtype=np.uint8),
        "tokens": rng.integers(2, 20, size=(rows, 8)).astype(np.int32),
        "token_mask": np.ones((rows, 8), bool),
    }


@pytest.mark.parametrize(
    ("name", "tile"), [*((name, None) for name in objectives.OBJECTIVES), ("otter", 3)]
)
def test_eight_devices_equal_one(tiny_config: Callable, name: str, tile: int | None) -> None:
    config = tiny_config(
        **{"objective.name": name, "objective.tile": tile, "optimizer.learning_rate": 0.1}
    )
    outcomes = []
    for devices in (1, 8):
        mesh = mesh_of(devices)
        train_step, state = build(config, mesh)
        for _ in range(3):
            state, metrics = train_step(state, sharding.put_batch(mesh, batch_of()))
        outcomes.append((float(metrics["loss"]), jax.device_get(state.variables)))
    (loss, variables), (other_loss, other_variables) = outcomes
    np.testing.assert_allclose(loss, other_loss, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
        variables,
        other_variables,
    )


def test_the_sigmoid_loss_learns_its_bias(tiny_config: Callable) -> None:
    train_step, state = build(tiny_config(**{"objective.name": "sigmoid"}), mesh_of(1))
    assert float(state.variables.params["logit_bias"]) == -10.0
    np.testing.assert_allclose(np.exp(state.variables.params["log_scale"]), 10.0, rtol=1e-6)
    state, metrics = train_step(state, sharding.put_batch(mesh_of(1), batch_of()))
    assert float(metrics["bias"]) == -10.0 < float(state.variables.params["logit_bias"])


def test_frozen_towers_stay_as_they_are(tiny_config: Callable) -> None:
    config = tiny_config(**{"model.image.frozen": True, "model.text.frozen": True})
    train_step, state = build(config, mesh_of(1))
    before = jax.device_get(state.variables)
    state, _ = train_step(state, sharding.put_batch(mesh_of(1), batch_of()))
    after = jax.device_get(state.variables)
    assert set(before.params) == {
        "image_projection", "text_projection", "log_scale", "distillation_log_scale",
    }  # fmt: skip
    jax.tree.map(np.testing.assert_array_equal, before.frozen, after.frozen)
    jax.tree.map(np.testing.assert_array_equal, before.batch_stats, after.batch_stats)
    assert (before.params["log_scale"] != after.params["log_scale"]).all()


def test_trained_towers_and_their_batch_statistics_move(tiny_config: Callable) -> None:
    train_step, state = build(tiny_config(), mesh_of(1))
    before = jax.device_get(state.variables)
    state, _ = train_step(state, sharding.put_batch(mesh_of(1), batch_of()))
    after = jax.device_get(state.variables)
    for part in ("params", "batch_stats"):
        changed = jax.tree.map(lambda a, b: (a != b).any(), getattr(before, part),
                               getattr(after, part))  # fmt: skip
        assert any(jax.tree.leaves(changed)), part


def test_teacher_follows_the_released_schedule(tiny_config: Callable) -> None:
    train_step, state = build(tiny_config(**{"optimizer.learning_rate": 0.5}), mesh_of(1))
    students = [float(state.variables.params["log_scale"])]
    for _ in range(3):
        state, _ = train_step(state, sharding.put_batch(mesh_of(1), batch_of()))
        students.append(float(state.variables.params["log_scale"]))
    # Updated before each forward pass, so the last student is not yet in it.
    wanted = students[0]
    for update, student in enumerate(students[:-1], start=1):
        decay = min(0.999, (1 + update) / (10 + update))
        wanted = decay * wanted + (1 - decay) * student
    np.testing.assert_allclose(float(state.teacher["log_scale"]), wanted, rtol=1e-6)
    assert wanted != pytest.approx(students[-1], rel=1e-6)


def test_teacher_decay_reaches_its_limit() -> None:
    decay = [float(step.teacher_decay(jnp.int32(t), 0.999, True)) for t in (0, 8988, 8990, 10**6)]
    np.testing.assert_allclose(decay[0], 2 / 11, rtol=1e-6)
    assert decay[1] < 0.999
    np.testing.assert_allclose(decay[2:], 0.999, rtol=1e-6)
    assert float(step.teacher_decay(jnp.int32(0), 0.9, False)) == pytest.approx(0.9)


def test_schedule_warms_up_and_ends_at_zero(tiny_config: Callable) -> None:
    schedule = step.make_schedule(tiny_config(**{"optimizer.warmup_steps": 5}), 20)
    assert float(schedule(0)) == 0.0
    assert float(schedule(5)) == pytest.approx(3e-3)
    assert float(schedule(20)) == pytest.approx(0.0, abs=1e-9)
    plain = step.make_schedule(tiny_config(), 20)
    assert float(plain(10)) == pytest.approx(1.5e-3)


def test_warmup_longer_than_the_run_is_refused(tiny_config: Callable) -> None:
    with pytest.raises(ValueError, match="warmup_steps=20"):
        step.make_schedule(tiny_config(**{"optimizer.warmup_steps": 20}), 20)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_weight_decay_spares_vectors_and_scales(tiny_config: Callable, name: str) -> None:
    changes = {"optimizer.name": name, "optimizer.weight_decay": 0.5}
    optimizer = step.make_optimizer(tiny_config(**changes), lambda count: 0.1)
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2), "log_scale": jnp.ones(())}
    gradients = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.05, rtol=1e-5)
    np.testing.assert_array_equal(updates["bias"], 0.0)
    np.testing.assert_array_equal(updates["log_scale"], 0.0)


def test_sgd_momentum_equals_the_recurrence(tiny_config: Callable) -> None:
    optimizer = step.make_optimizer(tiny_config(), lambda count: 0.1)
    params, velocity, wanted = jnp.float32(1.0), 0.0, 1.0
    opt_state = optimizer.init(params)
    for gradient in (1.0, -2.0, 0.5):
        updates, opt_state = optimizer.update(jnp.float32(gradient), opt_state, params)
        params = params + updates
        velocity = 0.9 * velocity + gradient
        wanted -= 0.1 * velocity
    np.testing.assert_allclose(params, wanted, rtol=1e-6)


def test_keys_differ_by_name_and_step() -> None:
    keys = [
        tuple(np.asarray(jax.random.key_data(step.named_key(*arguments))))
        for arguments in [(0, "a", 0), (0, "a", 1), (0, "b", 0), (1, "a", 0)]
    ]
    assert len(set(keys)) == 4
