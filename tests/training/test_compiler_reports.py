"""What is read of XLA's own words, of a program compiled here and of what libtpu writes."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from otter_jax import sharding
from otter_jax.training.compiler_reports import Collective, Program, dumped, memory

# As libtpu writes an exchange that runs beside other work: once in each piece, on one channel.
ASYNCHRONOUS = """
  %ag.1 = (f32[8,16]{1,0:T(8,128)}, f32[64,16]{1,0}) all-gather-start(%x), channel_id=7
  %ag.2 = f32[64,16]{1,0:T(8,128)} all-gather(%x), channel_id=8, dimensions={0}
  %ag.3 = f32[64,16]{1,0:T(8,128)} all-gather(%x), channel_id=8, dimensions={0}
  %rs = bf16[8,2]{1,0} reduce-scatter(%y), channel_id=9
"""
REPORT = "Memory Space: default (color=0)\nTotal bytes: 1188854784 (1.11GiB)\n  cumulative_size;"


def test_collectives_of_a_compiled_program_are_found() -> None:
    mesh = sharding.make_mesh()
    rows = jax.ShapeDtypeStruct((64, 16), jnp.float32, sharding=sharding.split_rows(mesh))
    whole = sharding.replicated(mesh)

    def gather_and_sum(rows: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.lax.with_sharding_constraint(rows, whole) * 2, rows.sum(axis=0)

    jitted = jax.jit(gather_and_sum, out_shardings=whole)
    found = Program(jitted.lower(rows).compile().as_text()).collectives()
    assert sorted(found, key=lambda each: each.kind) == [
        Collective("all-gather", 4 * 64 * 16),
        Collective("all-reduce", 4 * 16),
    ]


def test_an_exchange_in_pieces_is_counted_once() -> None:
    assert Program(ASYNCHRONOUS).collectives() == [
        Collective("all-gather", 4 * 64 * 16),
        Collective("all-gather", 4 * 64 * 16),
        Collective("reduce-scatter", 2 * 8 * 2),
    ]


def test_memory_is_that_of_the_first_space() -> None:
    assert memory(REPORT) == 1188854784
    with pytest.raises(ValueError, match="does not say how many bytes"):
        memory("")


def test_dumped_is_the_steps_own(tmp_path: Path) -> None:
    assert dumped(tmp_path, "report.txt") is None
    (tmp_path / "module_1.jit_other.report.txt").write_text("other")
    assert dumped(tmp_path, "report.txt") is None
    (tmp_path / "module_2.jit_train_step.report.txt").write_text("step")
    assert dumped(tmp_path, "report.txt") == "step"


def test_traffic_of_a_product_is_its_operands_and_its_result() -> None:
    a, b = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((64, 512), (512, 256)))
    program = Program(jax.jit(jnp.matmul).lower(a, b).compile().as_text())
    assert program.traffic() == 4 * (64 * 512 + 512 * 256 + 64 * 256)
    assert program.cycles() == 0


def test_what_runs_in_a_loop_counts_as_often_as_it_runs() -> None:
    mesh = sharding.make_mesh()
    rows = jax.ShapeDtypeStruct((64, 16), jnp.float32, sharding=sharding.split_rows(mesh))

    def sums(rows: jax.Array) -> jax.Array:
        body = lambda _, total: jnp.sum(rows * total, axis=0)  # noqa: E731
        return jax.lax.fori_loop(0, 5, body, jnp.ones(16))

    jitted = jax.jit(sums, out_shardings=sharding.replicated(mesh))
    text = jitted.lower(rows).compile().as_text()
    for program in (text, text.replace("known_trip_count", "unknown")):  # Then by its condition.
        found = Program(program).collectives()
        assert [each for each in found if each.times > 1] == [Collective("all-reduce", 4 * 16, 5)]


def test_a_loop_reads_the_weights_of_its_layers_once() -> None:
    x, weights = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((8, 64), (24, 64, 64)))

    def through_layers(x: jax.Array, weights: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda x, weight: (x @ weight, None), x, weights)[0]

    program = Program(jax.jit(through_layers).lower(x, weights).compile().as_text())
    # Taken out of the array, and multiplied with; XLA:CPU writes down what it takes out.
    assert 1 <= program.traffic() / (4 * 24 * 64 * 64) < 4


def test_arrays_on_the_chip_are_no_traffic() -> None:
    text = """
ENTRY %main (x: f32[8,128]) -> f32[8,128] {
  %x = f32[8,128]{1,0:T(8,128)} parameter(0)
  %near = f32[8,128]{1,0:T(8,128)S(1)} fusion(%x), kind=kLoop, calls=%f, backend_config={"estimated_cycles":"100"}
  ROOT %far = f32[8,128]{1,0:T(8,128)} fusion(%near), kind=kLoop, calls=%f, backend_config={"estimated_cycles":"20"}
}"""  # noqa: E501
    assert Program(text).traffic() == 2 * 4 * 8 * 128
    assert Program(text).cycles() == 120
