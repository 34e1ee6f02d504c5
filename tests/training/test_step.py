"""The train step: teacher average, schedule, weight decay, and eight devices equal to one."""

import dataclasses
import math
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, PartitionSpec
from ml_collections import ConfigDict

from otter_jax import objectives, sharding
from otter_jax.data import pair_loader
from otter_jax.embedding import encoder
from otter_jax.models import dual_encoder, layers
from otter_jax.random_keys import named_key
from otter_jax.training import step
from otter_jax.training.data import views_of
from otter_jax.training.optimizers import make_optimizer, make_schedule
from otter_jax.training.state import TrainState, initial_state, make_memory, state_places


def mesh_of(devices: int) -> Mesh:
    return Mesh(np.array(jax.devices()[:devices]), ("data",), axis_types=(AxisType.Auto,))


def build(config, mesh: Mesh):
    method = objectives.make_method(**config.objective)
    model, variables = dual_encoder.split(encoder.build_module(config))
    schedule = make_schedule(config, 20)
    optimizer = make_optimizer(config, schedule)
    memory = make_memory(method, config.model.embed_dim)
    state = initial_state(variables, optimizer, uses_teacher=method.uses_teacher, memory=memory)
    settings = step.StepSettings.of(config)
    learner = step.Learner(model, method, optimizer, schedule, settings, mesh)
    places = state_places(mesh, state, fsdp=config.fsdp)
    return step.make_train_step(learner, places), jax.device_put(state, places)


def batch_of(rows: int = 16, config=None) -> dict[str, np.ndarray]:
    """Random pairs, in as many views as the objective of a config asks for."""
    rng = np.random.default_rng(0)
    views, batch = pair_loader.Views(), {}
    if config is not None:
        options = objectives.make_method(**config.objective)
        views = views_of(config, options)
        if options.uses_trust:
            batch["trust"] = np.full(rows, 0.25, np.float32)
        if options.known_positives is not None:
            batch["group"] = np.stack([np.arange(rows) // 3, np.zeros(rows)], 1).astype(np.int32)
    for key in pair_loader.IMAGE_KEYS[: views.images]:
        batch[key] = rng.integers(0, 255, size=(rows, 32, 32, 3), dtype=np.uint8)
    for number in ("", "2") if views.second_text else ("",):
        batch[f"tokens{number}"] = rng.integers(2, 20, size=(rows, 8)).astype(np.int32)
        batch[f"token_mask{number}"] = np.ones((rows, 8), bool)
    if views.masked_text:
        tokens = batch["tokens"]
        batch["masked_tokens"] = np.where(np.arange(8) < 2, 21, tokens)
        batch["masked_positions"] = np.tile(np.int32([0, 1, 0]), (rows, 1))
        batch["masked_labels"] = np.stack([*tokens.T[:2], np.full(rows, -100)], 1)
    return batch


WITHOUT_BATCH_NORM = {"model.image.name": "vit_b32", "objective.queue_size": 48}
SMALL_VIT = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "hidden_dropout_prob": 0.3,
    "attention_probs_dropout_prob": 0.3,
    "stochastic_depth_rate": 0.3,
}


def vit_config(tiny_config: Callable, **changes):
    config = tiny_config(**(WITHOUT_BATCH_NORM | changes))
    with config.unlocked():
        config.model.image.overrides = ConfigDict(SMALL_VIT)
        config.model.text.overrides.hidden_dropout_prob = 0.3
    return config


def trained(config, devices: int, steps: int = 3):
    """The last metrics and the state after some steps."""
    mesh = mesh_of(devices)
    train_step, state = build(config, mesh)
    batch = batch_of(config=config)
    for _ in range(steps):
        state, metrics = train_step(state, sharding.put_batch(mesh, batch))
    return jax.device_get(metrics), state


def assert_close(found, wanted, rtol: float, atol: float) -> None:
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol),
        jax.device_get(found),
        jax.device_get(wanted),
    )


@pytest.mark.parametrize(
    ("name", "tile"),
    [
        *((name, None) for name in ("infonce", "otter", "declip")),
        *(
            # Their losses alone are tried on eight devices in tests/objectives.
            pytest.param(name, None, marks=pytest.mark.slow)
            for name in ("label_smoothing", "kd", "sigmoid", "slip")
        ),
        ("otter", 3),
    ],
)
def test_eight_devices_equal_one(tiny_config: Callable, name: str, tile: int | None) -> None:
    changes = {"objective.name": name, "objective.tile": tile, "optimizer.learning_rate": 3e-3}
    # Batch norm in the image tower is tried once; it takes long to compile.
    config = tiny_config(**changes) if tile else vit_config(tiny_config, **changes)
    outcomes = [trained(config, devices) for devices in (1, 8)]
    (metrics, state), (other_metrics, other_state) = outcomes
    np.testing.assert_allclose(metrics["loss"], other_metrics["loss"], rtol=1e-5)
    assert_close(state.variables, other_state.variables, rtol=1e-3, atol=1e-4)


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


def test_a_pretrained_teacher_stays_what_the_student_was(tiny_config: Callable) -> None:
    config = vit_config(tiny_config, **{"teacher.kind": "pretrained", "optimizer.name": "adamw"})
    _, wanted = build(config, mesh_of(1))
    before = jax.device_get(wanted.variables.params)
    metrics, state = trained(config, 1)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.teacher), before)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), state.variables.params, before)
    assert sum(jax.tree.leaves(moved)) > 10
    assert np.isfinite(metrics["loss"])


def test_teacher_decay_reaches_its_limit() -> None:
    decay = [float(step.teacher_decay(jnp.int32(t), 0.999, True)) for t in (0, 8988, 8990, 10**6)]
    np.testing.assert_allclose(decay[0], 2 / 11, rtol=1e-6)
    assert decay[1] < 0.999
    np.testing.assert_allclose(decay[2:], 0.999, rtol=1e-6)
    assert float(step.teacher_decay(jnp.int32(0), 0.9, False)) == pytest.approx(0.9)


def test_schedule_warms_up_and_ends_at_zero(tiny_config: Callable) -> None:
    schedule = make_schedule(tiny_config(**{"optimizer.warmup_steps": 5}), 20)
    assert float(schedule(0)) == 0.0
    assert float(schedule(5)) == pytest.approx(3e-3)
    assert float(schedule(20)) == pytest.approx(0.0, abs=1e-9)
    plain = make_schedule(tiny_config(), 20)
    assert float(plain(10)) == pytest.approx(1.5e-3)


def test_warmup_longer_than_the_run_is_cut(
    tiny_config: Callable, capsys: pytest.CaptureFixture
) -> None:
    config = tiny_config(**{"optimizer.warmup_steps": 30})
    shorter = make_schedule(tiny_config(**{"optimizer.warmup_steps": 2}), 20)
    assert not capsys.readouterr().out
    cut = make_schedule(config, 20)
    assert "warmup_steps=30 is no less than the 20 steps of the run: 2" in capsys.readouterr().out
    assert [float(cut(step)) for step in range(20)] == [float(shorter(s)) for s in range(20)]
    assert float(make_schedule(config, 5)(0)) == pytest.approx(config.optimizer.learning_rate)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_weight_decay_spares_vectors_and_scales(tiny_config: Callable, name: str) -> None:
    changes = {"optimizer.name": name, "optimizer.weight_decay": 0.5}
    optimizer = make_optimizer(tiny_config(**changes), lambda count: 0.1)
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2), "log_scale": jnp.ones(())}
    gradients = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.05, rtol=1e-5)
    np.testing.assert_array_equal(updates["bias"], 0.0)
    np.testing.assert_array_equal(updates["log_scale"], 0.0)


def test_sgd_momentum_equals_the_recurrence(tiny_config: Callable) -> None:
    optimizer = make_optimizer(tiny_config(), lambda count: 0.1)
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
        tuple(np.asarray(jax.random.key_data(named_key(*arguments))))
        for arguments in [(0, "a", 0), (0, "a", 1), (0, "b", 0), (1, "a", 0)]
    ]
    assert len(set(keys)) == 4


@pytest.mark.parametrize(("name", "devices"), [("otter", 1), ("declip", 4)])
def test_micro_batches_equal_the_whole_batch(
    tiny_config: Callable, name: str, devices: int
) -> None:
    # SimSiam's heads have batch norm; they are left out.
    changes = {"objective.name": name, "objective.simsiam_weight": 0.0}
    whole, in_parts = (vit_config(tiny_config, **changes, micro_batch=rows) for rows in (None, 4))
    metrics, state = trained(whole, devices)
    part_metrics, part_state = trained(in_parts, devices)
    np.testing.assert_allclose(part_metrics["loss"], metrics["loss"], rtol=1e-5)
    assert_close(part_state.variables, state.variables, rtol=1e-4, atol=1e-5)


def test_trust_goes_to_the_loss_in_micro_batches_and_on_devices(tiny_config: Callable) -> None:
    number = vit_config(tiny_config, **{"objective.alpha": 0.25})
    estimated = vit_config(tiny_config, **{"objective.alpha": "estimated", "micro_batch": 8})
    metrics, state = trained(number, 1, steps=1)
    own_metrics, own_state = trained(estimated, 8, steps=1)
    np.testing.assert_allclose(own_metrics["loss"], metrics["loss"], rtol=1e-5)
    assert_close(own_state.variables, state.variables, rtol=1e-3, atol=1e-5)


def test_known_positives_go_to_the_loss_in_micro_batches_and_on_devices(
    tiny_config: Callable,
) -> None:
    changes = {"objective.name": "infonce", "objective.known_positives": "ignore"}
    metrics, state = trained(vit_config(tiny_config, **changes), 1, steps=1)
    split = vit_config(tiny_config, **changes, micro_batch=8)
    own_metrics, own_state = trained(split, 8, steps=1)
    np.testing.assert_allclose(own_metrics["loss"], metrics["loss"], rtol=1e-5)
    assert_close(own_state.variables, state.variables, rtol=1e-3, atol=1e-5)


def test_scores_of_the_vocabulary_are_not_kept_for_the_whole_batch(tiny_config: Callable) -> None:
    words, rows = 20_000, 64
    changes = {"objective.name": "declip", "objective.simsiam_weight": 0.0, "objective.nns": False}
    config = vit_config(tiny_config, **changes, batch_size=rows, micro_batch=4)
    config.model.text.overrides.vocab_size = words
    train_step, state = build(config, mesh_of(1))
    batch = sharding.put_batch(mesh_of(1), batch_of(rows, config))
    used = train_step.lower(state, batch).compile().memory_analysis().temp_size_in_bytes
    slots = batch["masked_labels"].size
    assert used < 4 * words * slots  # float32 scores of all slots.


def test_dropout_of_a_row_does_not_depend_on_the_rows_beside_it() -> None:
    keys = jax.random.split(jax.random.key(0), 6)
    x = jnp.ones((6, 5, 7))
    for drop in (layers.dropout, layers.drop_examples):
        whole = drop(x, 0.5, keys)
        np.testing.assert_array_equal(whole[2:4], drop(x[2:4], 0.5, keys[2:4]))
    first, second = layers.split_key(keys, 2)
    assert first.shape == second.shape == (6,)
    drawn = jax.vmap(jax.random.bits)(jnp.concatenate([first, second]))
    assert len(set(drawn.tolist())) == 12


@pytest.mark.parametrize("name", ["otter", "declip"])
def test_split_parameters_equal_whole_ones(
    tiny_config: Callable, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharding, "SMALLEST_SPLIT", 64)
    changes = {"objective.name": name, "optimizer.learning_rate": 3e-3}
    metrics, state = trained(vit_config(tiny_config, **changes), 8)
    split_metrics, split_state = trained(vit_config(tiny_config, **changes, fsdp=True), 8)
    np.testing.assert_allclose(split_metrics["loss"], metrics["loss"], rtol=1e-6)
    assert_close(split_state.variables, state.variables, rtol=1e-3, atol=1e-4)
    if name == "declip":
        assert_close(split_state.memory, state.memory, rtol=1e-3, atol=1e-4)

    def bytes_of_device(tree) -> int:
        return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))

    for part in ("opt_state", "variables"):
        whole, split = (bytes_of_device(getattr(s, part)) for s in (state, split_state))
        assert split < 0.3 * whole, part  # An eighth, and what is too small to be split.


def exchanged_shapes(program: str) -> list[tuple[int, ...]]:
    """Shapes, their axes in order of size, of what a program's collectives put out on a device."""
    results = re.findall(r"= (.*?) (?:all-|reduce-scatter|collective-)[a-z-]*\(", program)
    shapes = [shape for result in results for shape in re.findall(r"\[([\d,]*)\]", result)]
    return [tuple(sorted(map(int, filter(None, shape.split(","))))) for shape in shapes]


def possible_parts(shape: tuple[int, ...], devices: int) -> list[tuple[int, ...]]:
    """A shape, one of a matrix, and what is left of it where one axis is split over devices."""
    return [shape, (math.prod(shape[:-1]), *shape[-1:])] + [
        (*shape[:axis], size // devices, *shape[axis + 1 :]) for axis, size in enumerate(shape)
    ]


@pytest.mark.parametrize("group", [None, 4])
def test_fsdp_exchanges_parameters_and_gradients_alone(
    tiny_config: Callable, group: int | None
) -> None:
    """A teacher gathers its parameters too; the memory saved is the state's that is split."""

    def compiled(fsdp: bool) -> tuple[TrainState, jax.stages.Compiled]:
        config = vit_config(tiny_config, fsdp=fsdp, batch_size=16)
        wide = {"hidden_size": 128, "intermediate_size": 512}
        with config.unlocked():
            config.model.image.overrides.update(wide)
            config.model.text.overrides.update(wide, vocab_size=4096)
        mesh = sharding.make_mesh(group if fsdp else None)
        train_step, state = build(config, mesh)
        batch = sharding.put_batch(mesh, batch_of(config=config))
        return state, train_step.lower(state, batch).compile()

    (whole, plain), (split, fsdp) = (compiled(fsdp=each) for each in (False, True))
    parameters = sum(leaf.nbytes for leaf in jax.tree.leaves(whole.variables.params))
    exchanged = exchanged_shapes(fsdp.as_text())
    assert parameters < 4 * sum(map(math.prod, exchanged)) < 3.3 * parameters
    # Whole ones or a device's part, as the axes lie; embeddings and the like are small.
    devices = group or 8
    allowed = {
        tuple(sorted(shape))
        for leaf in jax.tree.leaves(whole.variables.params)
        for shape in possible_parts(leaf.shape, devices)
    }
    assert {s for s in exchanged if math.prod(s) > 1024} <= allowed

    def used(program: jax.stages.Compiled) -> int:
        memory = program.memory_analysis()
        arguments, results = memory.argument_size_in_bytes, memory.output_size_in_bytes
        return arguments + results - memory.alias_size_in_bytes + memory.temp_size_in_bytes

    split_away = sharding.bytes_on_a_device(whole) - sharding.bytes_on_a_device(split)
    assert split_away > 2 * parameters  # Of parameters, momentum and teacher.
    assert used(plain) - used(fsdp) > 0.8 * split_away


@pytest.mark.parametrize("tower", ["vit_b32", "efficientnet_lite0"])
def test_gradients_are_float32_sums_where_towers_compute_in_bfloat16(
    tiny_config: Callable, tower: str
) -> None:
    """A bfloat16 sum has 8 bits, and so nothing in the lower half of its float32."""
    config = vit_config(tiny_config, **{"model.dtype": "bfloat16"})
    if tower == "efficientnet_lite0":
        config = tiny_config(**{"model.dtype": "bfloat16"})
    model, variables = dual_encoder.split(encoder.build_module(config))

    def loss(params: dual_encoder.Arrays) -> jax.Array:
        (image, text), _ = model.embed(variables._replace(params=params), batch_of(), train=True)
        return jnp.sum(jnp.square(image)) + jnp.sum(jnp.square(text))

    gradients = jax.jit(jax.grad(loss))(variables.params)
    for path, leaf in jax.tree.leaves_with_path(gradients):
        bits = np.asarray(leaf).view(np.uint32)
        assert not bits.any() or (bits & 0xFFFF).any(), jax.tree_util.keystr(path)


def test_towers_compute_the_same_with_weights_that_cross_devices_in_bfloat16(
    tiny_config: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is gathered is bfloat16, and so is a gradient: of a matrix, in 8 bits."""
    monkeypatch.setattr(sharding, "SMALLEST_SPLIT", 64)
    config = vit_config(tiny_config, **{"model.dtype": "bfloat16", "mesh.dtype": "bfloat16"})
    model, variables = dual_encoder.split(encoder.build_module(config))
    settings = step.StepSettings.of(config)
    gathered = {}

    def loss(params: dual_encoder.Arrays, halved: bool) -> jax.Array:
        kept = dataclasses.replace(settings, halved=halved, fsdp=True)
        learner = step.Learner(model, None, None, None, kept, mesh_of(8))
        used = learner.in_use(variables._replace(params=params))
        gathered[halved] = {str(x.dtype) for x in jax.tree.leaves(used.params) if x.ndim > 1}
        (image, text), _ = model.embed(used, batch_of(), train=True)
        return jnp.sum(jnp.square(image)) + jnp.sum(jnp.square(text))

    differentiate = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    value, exact = differentiate(variables.params, False)
    same, rounded = differentiate(variables.params, True)
    assert value == same
    heads = {str(variables.params["image_projection"]["kernel"].dtype)}
    assert gathered == {False: {"float32"}, True: {"bfloat16"} | heads}
    for tower in ("image", "text"):
        pairs = zip(jax.tree.leaves(exact[tower]), jax.tree.leaves(rounded[tower]), strict=True)
        for wanted, found in pairs:
            assert found.dtype == jnp.float32
            np.testing.assert_allclose(found, wanted, rtol=2**-6, atol=1e-2 * abs(wanted).max())
            low_bits = np.asarray(found).view(np.uint32) & 0xFFFF
            assert found.ndim < 2 or not low_bits.any()


def test_the_queue_stays_split(tiny_config: Callable) -> None:
    config = vit_config(tiny_config, **{"objective.name": "declip"})
    metrics, state = trained(config, 8)
    assert state.memory.features.sharding.spec == PartitionSpec("data")
    assert int(state.memory.filled) == 48
    assert metrics["loss_neighbor"] > 0
    parts = sum(value for name, value in metrics.items() if name.startswith("loss_"))
    np.testing.assert_allclose(parts, metrics["loss"], rtol=1e-5)


def test_declip_s_scale_stays_within_its_bounds(tiny_config: Callable) -> None:
    bounds = {"objective.min_scale": 20.0, "objective.initial_scale": 20.0}
    config = vit_config(
        tiny_config, **bounds, **{"objective.name": "declip", "optimizer.learning_rate": 100.0}
    )
    _, state = trained(config, 1)
    scale = np.exp(float(state.variables.params["log_scale"]))
    assert 20.0 * 0.9999 <= scale <= 100.01
