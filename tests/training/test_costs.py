"""What a step takes, against closed forms; the trace of the steps that were asked for."""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_step import batch_of, build, mesh_of, vit_config

from otter_jax import sharding
from otter_jax.training import costs

SIZE = 64


def test_costs_of_a_product_are_known() -> None:
    mesh = mesh_of(8)
    # Each device has all of `weights` and an eighth of the rows.
    product = jax.jit(lambda weights, rows: rows @ weights)
    weights = sharding.put_state(mesh, jnp.ones((SIZE, SIZE)))
    rows = sharding.put_rows(mesh, np.ones((8 * SIZE, SIZE), np.float32))
    lowered = product.lower(weights, rows)
    found = costs.measure(lowered, lowered, weights, "float32")
    assert found.flops == pytest.approx(2 * 8 * SIZE**3, rel=1e-3)
    assert found.state == 4 * SIZE**2
    # The weights, its own rows, and as many results.
    assert found.total - found.temporaries == pytest.approx(3 * 4 * SIZE**2, abs=1024)
    assert found.metrics()["memory/state_gib"] == found.state / 2**30
    assert "0.000 GiB parameters and state" in str(found)


def test_the_step_is_compiled_once_and_micro_batches_are_counted_whole(
    tiny_config: Callable,
) -> None:
    def lowered(config) -> tuple:
        train_step, state = build(config, mesh_of(2))
        batch = sharding.put_batch(mesh_of(2), batch_of(config=config))
        return train_step, state, batch, train_step.lower(state, batch)

    whole = vit_config(tiny_config)
    in_parts = vit_config(tiny_config, micro_batch=4)
    *_, step_of_whole = lowered(whole)
    train_step, state, batch, step_in_parts = lowered(in_parts)
    found = costs.measure(step_in_parts, step_of_whole, state, "float32")
    assert found.flops == lowered(whole)[-1].cost_analysis()["flops"]
    assert found.flops > 2 * step_in_parts.cost_analysis()["flops"]
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compiled.append(name) if "backend_compile" in name else None
    )
    try:
        train_step(state, batch)
    finally:
        jax.monitoring.clear_event_listeners()
    assert not compiled


@pytest.mark.parametrize(
    ("kind", "dtype", "teraflops"),
    [
        ("TPU v5 lite", "bfloat16", 197),
        ("TPU v5p", "bfloat16", 459),
        ("TPU v6 lite", "float32", 918),
        ("NVIDIA A100-SXM4-40GB", "bfloat16", 312),
        ("NVIDIA H100 80GB HBM3", "float32", 494),
        ("NVIDIA H100 PCIe", "bfloat16", 756),
        ("TPU v3", "bfloat16", 123 / 2),
    ],
)
def test_peaks_are_found_by_the_names_that_jax_gives(
    kind: str, dtype: str, teraflops: float
) -> None:
    assert costs.peak_flops(kind, dtype) == pytest.approx(teraflops * 1e12)


@pytest.mark.parametrize("kind", ["cpu", "NVIDIA A1000", "TPU v99"])
def test_an_unknown_chip_has_no_peak(kind: str) -> None:
    assert costs.peak_flops(kind, "float32") is None


def test_the_steps_asked_for_are_traced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, now = [], 0
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: calls.append((now, folder)))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append((now, "stop")))
    for steps in ((2, 3), (5, 9), ()):
        with costs.Profiler(steps, tmp_path) as profiler:
            for now in range(1, 7):
                profiler.before(now)
                profiler.after(now, jnp.ones(()))
    # The second run ends within its trace.
    assert calls == [(2, tmp_path), (3, "stop"), (5, tmp_path), (6, "stop")]


def test_no_gradient_is_computed_below_the_lowest_layer_that_is_trained(
    tiny_config: Callable,
) -> None:
    def flops(**changes: object) -> float:
        config = vit_config(tiny_config, **{"objective.name": "infonce"}, **changes)
        with config.unlocked():
            config.model.image.overrides.update(
                hidden_size=64, intermediate_size=256, num_hidden_layers=12
            )
        train_step, state = build(config, mesh_of(1))
        batch = sharding.put_batch(mesh_of(1), batch_of(config=config))
        return train_step.lower(state, batch).cost_analysis()["flops"]

    locked = {"model.image.trainable": r"blocks\.11|final_norm|projection"}
    assert flops(**locked) < 0.45 * flops()
